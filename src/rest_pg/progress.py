"""How far a loop is: a bar where a person looks on, events where a machine reads, else nothing.

A loop that works in portions (shards) opens the whole first; the engine that it calls for each portion
then asks for the same task and goes on in the same bar.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVENT_SECONDS = 10.0
"""Between two events of a task in a log for machines."""
REDRAW_SECONDS = 0.5

Listener = Callable[[str, int, int], None]
"""Is told the task, how many units of it are done, and how many tokens were written for it."""
Item = TypeVar("Item")


class Audience:
    """Who follows this process, as its hook says: a person by default."""

    machine: bool = False
    """Events in the log take the bars' place."""
    bars: bool = True
    """Bars are drawn on a terminal."""
    listeners: list[Listener] = []  # noqa: RUF012  (one list for the process)


class Track:
    """One task: so many of so many units are done."""

    def __init__(self, task: str, total: int, unit: str, *, done: int = 0) -> None:
        """Show the task; ``done`` units of it were done before, and say nothing about its speed."""
        self.task, self.total, self.unit, self.done = task, total, unit, done
        self._before, self._n_tokens = done, 0
        self._started = self._told = self._drawn = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=task,
            disable=not shows_bars(),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:,} of {total:,} "
            + f"{unit}s{{postfix}}, {{remaining}} left",
        )

    def update(self, n: int = 1) -> None:
        """Count ``n`` units as done."""
        if n <= 0:
            return
        self.done += n
        self._bar.update(n)
        self._tell()

    def count_tokens(self, n: int) -> None:
        """Count tokens as written; they are shown by the second."""
        self._n_tokens += n
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self.note(f"{self.tokens_per_second:.0f} tokens/s")
        self._tell()

    def note(self, text: str) -> None:
        """Show some words behind the count."""
        self._bar.set_postfix_str(text)

    @property
    def tokens_per_second(self) -> float:
        """Tokens by time since the task began here."""
        return self._n_tokens / max(time.monotonic() - self._started, 1e-9)

    def close(self) -> None:
        """End the task; a portion's end doesn't."""
        if _open.get(self.task) is not self:
            self._bar.close()

    def _tell(self) -> None:
        """Tell the listeners where the task stands, and every so often a machine that reads the log."""
        for listener in Audience.listeners:
            listener(self.task, self.done, self._n_tokens)
        now = time.monotonic()
        if not Audience.machine or (now - self._told < EVENT_SECONDS and self.done < self.total):
            return
        self._told = now
        here = self.done - self._before
        fields: dict[str, object] = {"task": self.task, "done": self.done, "total": self.total}
        if here:
            left = (now - self._started) / here * (self.total - self.done)
            fields["seconds_left"] = round(left, 1)
        if self._n_tokens:
            fields["tokens_per_second"] = round(self.tokens_per_second, 1)
        logger.info(
            "%s: %d of %d %ss",
            self.task,
            self.done,
            self.total,
            self.unit,
            extra={"fields": fields},
        )


def shows_bars() -> bool:
    """Whether bars are seen: on a terminal, unless a machine reads the log."""
    return Audience.bars and not Audience.machine and sys.stderr.isatty()


_open: dict[str, Track] = {}


def track(task: str, total: int, unit: str, *, done: int = 0) -> Track:
    """Begin a task, or go on in the one of that name that is open."""
    return _open.get(task) or Track(task, total, unit, done=done)


@contextmanager
def whole(task: str, total: int, unit: str, *, done: int = 0) -> Iterator[Track]:
    """Begin a task whose portions are tracked by whoever works on them."""
    if task in _open:
        yield _open[task]
        return
    _open[task] = opened = Track(task, total, unit, done=done)
    try:
        yield opened
    finally:
        del _open[task]
        opened.close()


def tracked(items: Sequence[Item], task: str, unit: str) -> Iterable[Item]:
    """Yield the items of a task, one by one."""
    bar = track(task, len(items), unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have every task tell ``listener`` where it stands."""
    Audience.listeners.append(listener)
    try:
        yield
    finally:
        Audience.listeners.remove(listener)
