"""Which process made a file, and whether that process is certainly gone.

A process id alone says nothing: it is used again, and each container counts its own. So an owner is named by
the machine's boot, its process-id namespace, the process id and the time at which the process started.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")
ENDED = "ZX"
"""States of ``/proc/PID/stat`` in which a process runs no longer; its parent has not asked for its status yet."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from every other one on any machine."""

    host: str
    """For people: a host name need not be unique."""
    boot: str
    """Random id of the machine's current boot; empty if the system has none."""
    namespace: str
    """Inode of the process-id namespace (each container has its own); empty if the system has none."""
    pid: int
    started: str
    """Clock ticks from boot to the start of the process; empty if the system does not say."""

    @property
    def tag(self) -> str:
        """Return what stands for this process in a file name; empty parts where the system says nothing."""
        return f"{_short(self.boot)}-{self.namespace}-{self.pid}-{self.started}"

    @staticmethod
    def from_tag(tag: str) -> Owner | None:
        """Read what :attr:`tag` wrote; none for any other text."""
        found = re.fullmatch(r"([0-9a-f]{0,16})-(\d*)-(\d+)-(\d*)", tag)
        return Owner("", found[1], found[2], int(found[3]), found[4]) if found else None

    def is_running(self) -> bool | None:
        """Say whether the process runs; none if that cannot be known from here.

        It can be known on the same boot, from the same process-id namespace.
        """
        here = this_process()
        if not self.boot or not self.namespace or self.namespace != here.namespace:
            return None
        if _short(self.boot) != _short(here.boot):
            return None
        started = _started(self.pid)
        if started is not None and not self.started:
            return None  # this process or a later one of the same number
        return started == self.started and started is not None


def this_process() -> Owner:
    """Return the running process; after a fork, the child."""
    return _describe(os.getpid())


@lru_cache(maxsize=8)
def _describe(pid: int) -> Owner:
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        namespace = str(NAMESPACE.stat().st_ino)
    except OSError:  # not Linux
        boot = namespace = ""
    return Owner(socket.gethostname(), boot, namespace, pid, _started(pid) or "")


def _short(boot: str) -> str:
    return boot.replace("-", "")[:16]


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since boot; none if there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the command may hold spaces and brackets: fields count from the last bracket
    fields = text.rpartition(")")[2].split()
    return None if not fields or fields[0] in ENDED else fields[19]
