"""Names of what is being written. A killed run leaves such files; a later run removes what is certainly dead.

A name holds the boot, the process-id namespace, the process and its start (:class:`~rest_pg.storage.owner.Owner`).
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rest_pg.storage.owner import Owner, this_process

TEMPORARY = ".tmp"
SCRATCH = ".rest-pg-policy-"
OLD_SECONDS = 7 * 24 * 3600.0
"""After which a file counts as abandoned if its process is another machine's or container's."""
RAW = "01_raw"
"""Users' own files, below ``data/``: nothing is removed there."""
_NAME = re.compile(r"\..+\.(?P<owner>[0-9a-f]{0,16}-\d*-\d+-\d*|\d+)\.tmp", re.DOTALL)
"""Ours; earlier versions of this project wrote the process id alone."""


def temporary_name(path: Path) -> Path:
    """Return the name that a file or directory has while it is written."""
    return path.with_name(f".{path.name}.{this_process().tag}{TEMPORARY}")


def make_temporary_directory(place: Path | None = None) -> Path:
    """Make a directory for a policy that has no version yet, below ``place`` or the system's.

    If this process is killed before the policy has moved to its version, a later run sweeps it.
    """
    suffix = f".{this_process().tag}{TEMPORARY}"
    return Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=suffix, dir=place))


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Give a directory of the system's that goes at the end, or with a later run if this one is killed."""
    path = make_temporary_directory()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def filesystem_time(directory: Path) -> float:
    """Return the time that a file written now has, in seconds: a server's clock need not agree with this machine's.

    Raises:
        OSError: the directory cannot be written.
    """
    probe = temporary_name(directory / f"clock.{secrets.token_hex(8)}")
    try:
        probe.write_text("", encoding="utf-8")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def sweep_temporary(root: Path) -> int:
    """Remove what interrupted runs left half written.

    Args:
        root: searched to its depth, but for users' own files; of the system's temporary directory, only
            policies that had no version yet.

    Returns:
        How many files and directories were removed.
    """
    abandoned = [path for path in find_temporary(root) if is_abandoned(path)]
    for path in abandoned:
        # runs of other projects may sweep the system's directory at the same time
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # a folder that is only read here
                path.unlink(missing_ok=True)
    return sum(not path.exists() for path in abandoned)


def find_temporary(root: Path) -> list[Path]:
    """Return what has a temporary name of this project's, whether it is being written or not."""
    scratch = Path(tempfile.gettempdir()).glob(f"{SCRATCH}*{TEMPORARY}")
    below = (p for p in root.rglob(f".*{TEMPORARY}") if p.relative_to(root).parts[0] != RAW)
    return [path for path in (*below, *scratch) if _NAME.fullmatch(path.name)]


def is_abandoned(path: Path) -> bool:
    """Say whether the process that wrote a file has certainly ended, or if that is unknown, the file is a week old."""
    found = _NAME.fullmatch(path.name)
    owner = Owner.from_tag(found["owner"]) if found else None
    running = owner.is_running() if owner else None
    if running is not None:
        return not running
    try:
        changed = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
        return filesystem_time(path.parent) - changed > OLD_SECONDS
    except OSError:  # it is being written, or removed
        return False
