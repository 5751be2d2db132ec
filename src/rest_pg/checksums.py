"""Checksums of what is kept: a file's beside it, a policy's in its directory; what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, TypeVar

from kedro.io.core import DatasetError

from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import temporary_name

SEAL = ".sha256"
"""Behind a file's name: the file with its checksum, as ``sha256sum --check`` reads it."""
COMPLETE = "complete.json"
"""Written last into a policy's directory: the size and SHA-256 of each of its files."""
ROWS = "rows.json"
"""Beside checkpoints: digests of the examples that the training is of, so that a forgotten user's is found."""

AnyPath = TypeVar("AnyPath", bound=PurePath)


def seal_of(path: AnyPath) -> AnyPath:
    """Return where a file's checksum stands."""
    return path.with_name(path.name + SEAL)


def put_sealed(
    temporary: Path,
    path: Path,
    *,
    seal: Path | None = None,
    beside: Mapping[Path, str | None] | None = None,
    known: str | None = None,
    done: Callable[[Path], None] = lambda part: None,
) -> None:
    """Put a file in a file's place with its checksum; a stop at any step leaves one of the two, whole.

    All is written first, so that a full disk changes nothing; what follows are renames. In between, the
    seal names both the file that goes and the one that comes, and what stands beside the old one is gone:
    nothing may be said of one file that is true of the other.

    Args:
        temporary: the new file, on the same filesystem.
        path: where it goes.
        seal: where its checksum stands, if it isn't beside it: the file is reached by a link.
        beside: further small files and their new texts; without a text, none stays.
        known: the old file's seal; none: what is in its place.
        done: called with each part that has changed, in order.
    """
    named = seal or seal_of(path)
    seal = named.resolve() if named.is_symlink() else named
    if known is None:
        known = _text_of(seal)
    own = f"{digest_of(temporary)}  {named.name.removesuffix(SEAL)}\n"
    parts = dict(beside or {})
    steps: list[tuple[Path, Path | None]] = []
    sync(temporary)
    try:
        for target, text in ((seal, own + known), *((part, None) for part in parts)):
            steps.append((target, _prepare(target, text, len(steps))))
        steps.append((path, temporary))
        for target, text in (*parts.items(), *(((seal, own),) if known else ())):
            steps.append((target, _prepare(target, text, len(steps))))
        for target, source in steps:
            if source is None:
                target.unlink(missing_ok=True)
            else:
                source.replace(target)
            done(target)
    finally:
        for _, source in steps:
            if source is not None:
                source.unlink(missing_ok=True)


def _prepare(target: Path, text: str | None, step: int) -> Path | None:
    if text is None:
        return None
    temporary = temporary_name(target.with_name(f"{target.name}.{step}"))
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def reseal(temporary: Path, path: Path) -> None:
    """Put a changed file in a file's place, with its new checksum if it had one."""
    if seal_of(path).exists():
        put_sealed(temporary, path)
    else:
        temporary.replace(path)


def check_seal(path: Path) -> None:
    """Raise ``DatasetError`` unless a file matches its checksum."""
    try:
        lines = seal_of(path).read_text(encoding="utf-8").splitlines()
        expected = [line.split()[0] for line in lines]  # two, where the file was being replaced
        found, last = digest_of(path), expected[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} or its checksum {seal_of(path).name} can't be read: {error}. "
            "Run again with --only-missing-outputs: it is made anew."
        ) from error
    if found not in expected:
        raise DatasetError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, and {last[:12]}… was saved. "
            "Run again with --only-missing-outputs: it is made anew."
        )


def passes(check: Callable[[Path], None], path: Path) -> bool:
    """Whether a check of this module raises nothing."""
    try:
        check(path)
    except DatasetError:
        return False
    return True


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file written to the disk itself."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def mark_complete(path: Path) -> None:
    """Write the size and SHA-256 of each file of a policy, synced to disk."""
    files = {}
    for name in _names_below(path):
        sync(path / name)
        files[name] = {"bytes": (path / name).stat().st_size, "sha256": digest_of(path / name)}
    with (path / COMPLETE).open("w", encoding="utf-8") as marker:
        json.dump({"files": files}, marker, indent=2)
        marker.flush()
        os.fsync(marker.fileno())


def _names_below(path: Path) -> list[str]:
    """Return the files of a policy, those of its directories too, by their names within it."""
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in found if name != COMPLETE)


def check_policy(path: Path) -> None:
    """Raise ``DatasetError`` if a policy's directory isn't whole, byte for byte, or holds any other file.

    A library may read a file that was added later: a second safetensors file, a template, code. Hidden files,
    which file managers leave, are read by none.
    """
    try:
        marker = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        files = {name: (own["bytes"], own["sha256"]) for name, own in marker["files"].items()}
    # a damaged marker may lack any of its names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} has no readable {COMPLETE}: it was not saved to the end. "
            "Delete it, then run again with --only-missing-outputs."
        ) from error
    added = [n for n in _names_below(path) if n not in files and not Path(n).name.startswith(".")]
    if added:
        raise DatasetError(
            f"{path} holds {', '.join(added[:3])}{', …' if len(added) > 3 else ''}, which wasn't saved with the "
            "policy: a model's library might read it. Move it elsewhere."
        )
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
        # and nothing beside the policy
        return [n for n in names if ".." not in Path(n).parts and not Path(n).is_absolute()]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def example_digest(example: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a training example's id and texts."""
    content = json.dumps([example[name] for name in ("example_id", "prompt", "completion")])
    return hashlib.sha256(content.encode()).hexdigest()


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
    return digest_of(path)
