"""Names of what is being written: a run that is killed leaves them behind, and the next one sweeps them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
SCRATCH = ".rest-pg-policy-"


def temporary_name(path: Path) -> Path:
    """Return the name that a file or directory has while it is written."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def make_temporary_directory(place: Path | None = None) -> Path:
    """Make a directory for a policy that has no version yet, below ``place`` or the system's.

    If this process is killed before the policy has moved to its version, the next run sweeps it.
    """
    suffix = f".{os.getpid()}{TEMPORARY}"
    return Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=suffix, dir=place))


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Give a directory of the system's that goes at the end, or with the next run if this one is killed."""
    path = make_temporary_directory()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep_temporary(root: Path) -> int:
    """Remove what interrupted runs left half written; what a living process writes stays.

    Args:
        root: searched to its depth; the system's temporary directory isn't.

    Returns:
        How many files and directories were removed.
    """
    removed = 0
    scratch = Path(tempfile.gettempdir()).glob(f"{SCRATCH}*{TEMPORARY}")
    for path in [*root.rglob(f".*{TEMPORARY}"), *scratch]:
        owner = path.name.removesuffix(TEMPORARY).rpartition(".")[2]
        if owner.isdigit() and not _is_alive(int(owner)):
            # runs of other projects may sweep the system's directory at the same time
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += not path.exists()
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
