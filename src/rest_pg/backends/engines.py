"""Engines that go on from token ids: their shape, which of them are open, and how all are ended."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rest_pg.records import PolicyCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One text to be gone on from, once per seed."""

    tokens: Sequence[int]
    seeds: Sequence[int]
    sampling: Mapping[str, Any]
    """By vLLM's names: ``max_tokens`` at least, ``temperature``, ``top_p``, ``stop_token_ids`` and so on."""


@dataclass(slots=True)
class Written:
    """What an engine wrote behind a text for one seed."""

    tokens: list[int] = field(default_factory=list)
    """The end token included, if it came to one."""
    text: str | None = None
    """In the place of ``tokens``, from an engine that doesn't show them."""
    ended: bool = False
    """Whether it came to an end token."""
    log_probabilities: dict[int, float] = field(default_factory=dict)
    """Of the last token, for each of ``logprob_token_ids``."""


class Engine(Protocol):
    """Writes with a policy, and holds processes or memory until it is closed."""

    def write(
        self, policy: PolicyCheckpoint, asks: Sequence[Ask], task: str
    ) -> list[list[Written]]:
        """Go on from every text: one list per ask, in order, of one result per seed, in order.

        Args:
            policy: a directory, or a hub id where the engine knows it.
            asks: texts.
            task: what progress is called.
        """

    def close(self) -> None:
        """End it; one that is closed already stays as it is."""


_open: list[Engine] = []


def opened(engine: Engine) -> None:
    """Remember an engine that is about to start, so that it is ended whatever happens."""
    if engine not in _open:
        _open.append(engine)


def closed(engine: Engine) -> None:
    """Forget an engine that has ended."""
    if engine in _open:
        _open.remove(engine)


@atexit.register
def close_engines() -> None:
    """End every engine that is open: what a node started must not outlive it."""
    while _open:
        _open.pop().close()
