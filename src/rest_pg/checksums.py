"""Checksums of what is kept: a file's beside it, a policy's in its directory; what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TypeVar

from kedro.io.core import DatasetError

from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import temporary_name

SEAL = ".sha256"
"""Behind a file's name: the file with its checksum, as ``sha256sum --check`` reads it."""
COMPLETE = "complete.json"
"""Written last into a policy's directory: the size and SHA-256 of each of its files."""

AnyPath = TypeVar("AnyPath", bound=PurePath)


def seal_of(path: AnyPath) -> AnyPath:
    """Return where a file's checksum stands."""
    return path.with_name(path.name + SEAL)


def write_seal(temporary: Path, path: Path) -> None:
    """Write the checksum of what is about to take a file's place."""
    sync(temporary)
    seal = temporary_name(seal_of(path))
    seal.write_text(f"{_digest(temporary)}  {path.name}\n", encoding="utf-8")
    sync(seal)
    seal.replace(seal_of(path))


def reseal(temporary: Path, path: Path) -> None:
    """Put a changed file in a file's place, with its new checksum if it had one."""
    if seal_of(path).exists():
        write_seal(temporary, path)
    temporary.replace(path)


def check_seal(path: Path) -> None:
    """Raise ``DatasetError`` unless a file matches its checksum."""
    try:
        expected = seal_of(path).read_text(encoding="utf-8").split()[0]
        found = _digest(path)
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} or its checksum {seal_of(path).name} can't be read: {error}. "
            "Run again with --only-missing-outputs: it is made anew."
        ) from error
    if found != expected:
        raise DatasetError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, and {expected[:12]}… was saved. "
            "Run again with --only-missing-outputs: it is made anew."
        )


def passes(check: Callable[[Path], None], path: Path) -> bool:
    """Whether a check of this module raises nothing."""
    try:
        check(path)
    except DatasetError:
        return False
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file written to the disk itself."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def mark_complete(path: Path) -> None:
    """Write the size and SHA-256 of each file of a policy, synced to disk."""
    files = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name != COMPLETE:
            sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
    with (path / COMPLETE).open("w", encoding="utf-8") as marker:
        json.dump({"files": files}, marker, indent=2)
        marker.flush()
        os.fsync(marker.fileno())


def check_policy(path: Path) -> None:
    """Raise ``DatasetError`` if a policy's directory isn't whole, byte for byte."""
    try:
        marker = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        files = {name: (own["bytes"], own["sha256"]) for name, own in marker["files"].items()}
    # a damaged marker may lack any of its names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} has no readable {COMPLETE}: it was not saved to the end. "
            "Delete it, then run again with --only-missing-outputs."
        ) from error
    for name, (size, digest) in files.items():
        file = path / name
        found = file.stat() if file.is_file() else None
        if found is None or found.st_size != size:
            raise DatasetError(
                f"{file} holds {found.st_size if found else 'no'} bytes, and {size} were "
                "saved. Run again with --only-missing-outputs: the policy is made anew."
            )
        if _known_digest(file, found.st_size, found.st_mtime_ns) != digest:
            raise DatasetError(
                f"{file} is damaged: its SHA-256 isn't the one that was saved. "
                "Run again with --only-missing-outputs: the policy is made anew."
            )


def files_of(policy: Path) -> list[str]:
    """Return the names that a policy's marker lists; none if it can't be read, as the check will say."""
    try:
        names = json.loads((policy / COMPLETE).read_text(encoding="utf-8"))["files"]
        return [name for name in names if Path(name).name == name]  # and nothing beside the policy
    except (OSError, ValueError, KeyError, TypeError):
        return []


def policy_fingerprint(policy: PolicyCheckpoint) -> str:
    """Name a policy by its content: the checksums of its files, or where it has none, its files."""
    marker = policy.path / COMPLETE
    if marker.is_file():
        return hashlib.sha256(marker.read_bytes()).hexdigest()
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in policy.path.iterdir())
    return json.dumps(files)


@lru_cache(maxsize=1024)
def _known_digest(path: Path, size: int, changed: int) -> str:
    """Digest a large file once per process, as long as it doesn't change."""
    return _digest(path)
