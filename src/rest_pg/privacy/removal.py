"""Taking rows out of files, and files away: all or nothing, checksum and provenance with them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from kedro.io.core import DatasetError

from rest_pg.checksums import check_seal, digest_of, passes, put_sealed, seal_of, sync
from rest_pg.datasets.base import ORIGIN, origin_of, text_of
from rest_pg.freshness import Origin
from rest_pg.privacy.places import Place
from rest_pg.privacy.rows import DamagedError, can_lose_rows, without_rows
from rest_pg.temporary import temporary_name

FORGOTTEN = "forgotten"
"""The input, in a file's provenance, that names what it was before rows were taken out."""


def remove_rows(place: Place, digests: Collection[str], before: str | None) -> int:
    """Take rows out of a file, and renew its checksum and its provenance: all or nothing.

    A stop at any step leaves the file before or the file after; the same call then does the rest. A file
    that is a link is written where it really lies. A checksum that didn't match stays as it is: a damaged
    file never becomes a whole one.

    Args:
        place: the file.
        digests: of the rows.
        before: what the file was called as an input, until now; none: nothing is said of its provenance.

    Returns:
        How many rows were taken out; none is no error.
    """
    if not can_lose_rows(place.path) or not place.path.exists():
        return 0
    real = place.path.resolve()
    temporary = temporary_name(real)
    try:
        removed = without_rows(place.path, digests, temporary)
        # another provenance first: nobody may take the file for what it was
        _renew_origin(place, before)
        if removed:
            shutil.copymode(real, temporary)
            _replace(place, temporary, real)
        _finish_seal(place)
        return removed
    finally:
        temporary.unlink(missing_ok=True)


def is_sealed(path: Path) -> bool:
    """Whether a file has a checksum."""
    return seal_of(path).exists()


def is_damaged(path: Path) -> bool:
    """Whether a file has a checksum that it doesn't match."""
    return is_sealed(path) and not passes(check_seal, path)


def remove_file(place: Place) -> bool:
    """Delete a file of the user's alone, or a page that is made again, and first what stands beside it."""
    was_there = place.path.exists()
    for part in (seal_of(place.path), origin_of(place.path), place.path):
        if part.is_symlink():
            part.resolve().unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        if place.store is not None and place.key is not None:
            place.store.remove(place.key.with_name(part.name))
    return was_there


def stored_origin(path: Path) -> Origin | None:
    """Return what made a file or a policy; none if nothing says so."""
    file = path / ORIGIN if path.is_dir() else origin_of(path)
    try:
        return Origin.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None


def digests_of(origin: Origin) -> list[str]:
    """Return what a file was called as an input: now, and before rows were taken out."""
    return [origin.digest, *str(origin.inputs.get(FORGOTTEN, "")).split()]


def _renew_origin(place: Place, before: str | None) -> None:
    """Say of a file that rows are missing: another provenance, which still names the one before."""
    origin = None if before is None else stored_origin(place.path)
    if origin is None or origin.inputs.get(FORGOTTEN) == before:
        return
    renewed = replace(origin, inputs={**origin.inputs, FORGOTTEN: str(before)})
    _write(place, origin_of(place.path), renewed.to_json())


def _replace(place: Place, temporary: Path, real: Path) -> None:
    seal = seal_of(place.path)
    if not seal.exists() or is_damaged(place.path):
        temporary.replace(real)
        _mirror(place, place.path)
        return
    known = None
    if place.store is not None and place.key is not None:
        known = place.store.text(seal_of(place.key)) or ""
    # what stands beside a file is where its link is
    put_sealed(temporary, real, seal=seal, known=known, done=lambda part: _mirror(place, part))


def _finish_seal(place: Place) -> None:
    """Leave one checksum, where an interrupted removal left those of both files."""
    seal = seal_of(place.path)
    if len((text_of(seal) or "").splitlines()) > 1 and not is_damaged(place.path):
        _write(place, seal, f"{digest_of(place.path)}  {place.path.name}\n")


def _write(place: Place, part: Path, text: str) -> None:
    temporary = temporary_name(part.resolve())
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(part.resolve())
    finally:
        temporary.unlink(missing_ok=True)
    _mirror(place, part)


def _mirror(place: Place, part: Path) -> None:
    """Put a changed part of a copy into its object store."""
    if place.store is not None and place.key is not None:
        place.store.put(place.key.with_name(part.name))


def check_readable(path: Path) -> None:
    """Raise ``DamagedError`` if a file doesn't match its checksum."""
    try:
        if is_sealed(path):
            check_seal(path)
    except DatasetError as error:
        raise DamagedError(str(error)) from error
