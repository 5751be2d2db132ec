"""One writer per data folder, also on a shared filesystem and between containers.

The lock is a small file. Its owner renews the file's time every few seconds. It is stale if its owner has
certainly ended, or if its time is older than a limit by the filesystem's own clock.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import click

from rest_pg.storage.owner import Owner, this_process
from rest_pg.temporary import filesystem_time, temporary_name

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = ".lock"
"""The lock's file, in the folder itself: whatever path leads there, it is the same file."""
GUARD = ".lock.guard"
"""Empty; locked by the system for the moments in which a stale lock is replaced."""
BEAT_SECONDS = 5.0
"""Between two renewals."""
LIMIT_SECONDS = 120.0
"""A lock that nobody renewed for so long is stale. A shared filesystem may show times a minute late."""
OTHER_FOLDER = (
    "Wait until it ends, or run in a second copy of the project, which has a data folder of its own "
    "(`git worktree add ../second`; docs/before_a_run.md)."
)


class FolderInUse(click.ClickException):
    """Another process writes the folder."""


class FolderLost(click.ClickException):
    """Another process took the folder while this one was suspended or could not reach it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lock's file says."""

    owner: Owner
    purpose: str
    """A command, for people. No parameters: they may name a user who is to be forgotten."""
    since: str
    """UTC, by the holder's clock: for people."""
    token: str
    """Random: tells this hold from every other."""

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Holder | None:
        """Read a lock's file; none if it is damaged."""
        try:
            values = json.loads(text)
            return Holder(**values | {"owner": Owner(**values["owner"])})
        except (ValueError, TypeError, KeyError):
            return None


class FolderLock:
    """A folder that one process at a time writes; those that read never ask.

    ::

        with FolderLock(project / "data", "kedro run"):
            ...

    A second hold by the same thread takes over from the first: an earlier run of this thread has ended, or
    it has started this one.
    """

    _held: ClassVar[dict[Path, FolderLock]] = {}
    """Holds of this process, by the lock's file."""
    _live: ClassVar[set[str]] = set()
    """Tokens of holds that this process takes or has. A file of this process with another token was left over."""

    def __init__(self, directory: Path, purpose: str) -> None:
        """Name the folder, and what is done with it: a command without its parameters."""
        self._directory, self._purpose = directory.resolve(), purpose
        self._file = self._directory / NAME
        self._holder: Holder | None = None
        self._thread = 0
        self._stop = threading.Event()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the folder, or raise at once.

        Raises:
            FolderInUse: another process, or another thread of this one, holds it.
            OSError: the folder cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        earlier = FolderLock._held.get(self._file)
        if earlier is not None and earlier._thread == threading.get_ident() and earlier._is_own():
            earlier._hand_over()
            self._begin(earlier._holder)
            return
        mine = self._describe()
        FolderLock._live.add(mine.token)
        try:
            while not self._create(mine):
                self._displace()
        except BaseException:
            FolderLock._live.discard(mine.token)
            raise
        self._begin(mine)

    def release(self) -> None:
        """Give the folder back; a lock that was lost, or never taken, is left alone."""
        if self._holder is None or self._holder.owner != this_process():  # a forked child's copy
            return
        self._hand_over()
        FolderLock._live.discard(self._holder.token)
        if self._is_own():
            self._file.unlink(missing_ok=True)
        self._holder = None

    def check(self) -> None:
        """Raise ``FolderLost`` if another process has taken the folder from this one.

        A lock's file that somebody removed is written again.
        """
        current = FolderLock._held.get(self._file)
        if self._holder is None or current not in (None, self):  # a session within this one has it
            return
        if self._is_own():
            return
        if self._file.exists() or not self._create(self._holder):
            raise FolderLost(
                f"{self._directory} was taken by {_words(self._read())}, while this run was suspended or could "
                "not reach it. Nothing more is written. When the other run has ended, run again with "
                "--only-missing-outputs."
            )
        if current is None:
            self._begin(self._holder)

    def _describe(self) -> Holder:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Holder(this_process(), self._purpose, since, secrets.token_hex(8))

    def _begin(self, holder: Holder | None) -> None:
        self._holder, self._thread = holder, threading.get_ident()
        self._stop = threading.Event()
        FolderLock._held[self._file] = self
        atexit.register(self.release)
        threading.Thread(
            target=self._beat, args=(self._stop,), name="folder lock", daemon=True
        ).start()

    def _hand_over(self) -> None:
        """Stop renewing; the file stays."""
        self._stop.set()
        FolderLock._held.pop(self._file, None)
        atexit.unregister(self.release)

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a shared filesystem may be away for a moment
                if self._is_own():
                    os.utime(self._file)

    def _is_own(self) -> bool:
        found = self._read()
        return found is not None and self._holder is not None and found == self._holder

    def _read(self) -> Holder | None:
        try:
            return Holder.from_json(self._file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None

    def _create(self, holder: Holder) -> bool:
        """Write the lock's file if there is none: whole from the first moment, and by one process alone."""
        text = holder.to_json()
        draft = temporary_name(self._directory / f"{NAME}.{holder.token}")
        try:
            draft.write_text(text, encoding="utf-8")
            try:
                os.link(draft, self._file)
            except FileExistsError:
                # a network filesystem may answer late, and then wrongly
                return draft.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                return self._create_exclusively(text)  # a filesystem without hard links
            return True
        finally:
            draft.unlink(missing_ok=True)

    def _create_exclusively(self, text: str) -> bool:
        try:
            with self._file.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _displace(self) -> None:
        """Remove a stale lock.

        Raises:
            FolderInUse: it is not stale.
        """
        self._refuse_unless_stale()
        with self._guarded():
            seen = self._refuse_unless_stale()
            if seen is None:
                return
            if seen.is_running is None and not self._is_still(seen):
                raise FolderInUse(self._refusal(seen))
            logger.warning("took %s over: %s has ended", self._directory, _words(seen.holder))
            self._file.unlink(missing_ok=True)

    def _refuse_unless_stale(self) -> _Seen | None:
        seen = self._look()
        if seen is None or seen.is_running is False:
            return seen
        if seen.is_running or abs(seen.age) <= LIMIT_SECONDS:
            raise FolderInUse(self._refusal(seen))
        return seen

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let one process at a time look and remove: else two could take a stale lock over."""
        with (self._directory / GUARD).open("a") as guard:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # not on every shared filesystem
                    fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _look(self) -> _Seen | None:
        """Return what there is of a lock; none if there is no file."""
        try:
            # opening it has a network filesystem look again
            with self._file.open(encoding="utf-8", errors="replace") as file:
                holder, renewed = Holder.from_json(file.read()), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        age = filesystem_time(self._directory) - renewed
        return _Seen(holder, renewed, age, _is_running(holder))

    def _is_still(self, seen: _Seen) -> bool:
        """Watch a lock for two beats: a clock that was set makes a living one look old."""
        time.sleep(2 * BEAT_SECONDS)
        again = self._look()
        return again is None or (again.holder, again.renewed) == (seen.holder, seen.renewed)

    def _refusal(self, seen: _Seen) -> str:
        life = ""
        if seen.is_running is None:
            life = (
                f" (last sign of life {max(seen.age, 0):.0f} s ago; after {LIMIT_SECONDS:.0f} s without one it "
                "counts as ended)"
            )
        return f"{self._directory} is in use by {_words(seen.holder)}{life}. {OTHER_FOLDER}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lock that is there."""

    holder: Holder | None
    """None: the file is damaged, or not yet written."""
    renewed: float
    """Seconds, by the filesystem's clock."""
    age: float
    """Seconds since then, by the same clock."""
    is_running: bool | None
    """Whether its holder runs; none: that cannot be known from here."""


def _is_running(holder: Holder | None) -> bool | None:
    if holder is None:
        return None
    if holder.owner == this_process():
        return holder.token in FolderLock._live
    return holder.owner.is_running()


def _words(holder: Holder | None) -> str:
    if holder is None:
        return "another process (its lock cannot be read)"
    return f"`{holder.purpose}` on host {holder.owner.host}, process {holder.owner.pid}, since {holder.since}"
