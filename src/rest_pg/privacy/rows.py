"""Rows of files: read with a digest each, and taken out by it, all others as they were."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from kedro.io.core import DatasetError
from pyarrow import parquet

from rest_pg.checksums import check_seal, digest_of, passes, put_sealed, seal_of, sync
from rest_pg.datasets.base import ORIGIN, origin_of, text_of
from rest_pg.freshness import Origin
from rest_pg.privacy.places import Place
from rest_pg.temporary import temporary_name

Row = tuple[str, Any]
"""A row's digest, and its value; without a value where the row can't be read."""
FORGOTTEN = "forgotten"
"""The input, in a file's provenance, that names what it was before rows were taken out."""


class DamagedError(ValueError):
    """A file, or a row in it, that can't be read."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file: lines, objects of lists, table rows.

    Raises:
        DamagedError: the file can't be read to its end.
        OSError: it can't be opened.
    """
    try:
        yield from _READERS.get(path.suffix, _no_rows)(path)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise DamagedError(f"{path} can't be read: {error}") from error


def without_rows(path: Path, digests: Collection[str], temporary: Path) -> int:
    """Write a file without the rows of these digests; return how many those were."""
    return _WRITERS[path.suffix](path, frozenset(digests), temporary)


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
    if place.path.suffix not in _WRITERS or not place.path.exists():
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True, default=str).encode())


# ---- JSON Lines: all other lines stay as they are, byte for byte ----


def _read_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for line in lines:
            content = line.rstrip(b"\r\n")
            try:
                yield _digest(content), json.loads(content) if content.strip() else None
            except (ValueError, RecursionError):
                yield _digest(content), DamagedError("not JSON")


def _without_lines(path: Path, digests: frozenset[str], temporary: Path) -> int:
    removed = 0
    with path.open("rb") as lines, temporary.open("wb") as kept:
        for line in lines:
            if _digest(line.rstrip(b"\r\n")) in digests:
                removed += 1
            else:
                kept.write(line)
    return removed


# ---- CSV: a row may have several lines ----


def _csv_rows(path: Path) -> Iterator[tuple[bytes, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for cells in csv.reader(lines(), strict=True):
        content = "".join(taken).encode("utf-8", "surrogateescape")
        taken.clear()
        yield content, cells


def _read_csv(path: Path) -> Iterator[Row]:
    rows = _csv_rows(path)
    header = [cell.removeprefix("\ufeff").strip() for cell in next(rows, (b"", []))[1]]
    for content, cells in rows:
        yield _digest(content.rstrip(b"\r\n")), dict(zip(header, cells, strict=False))


def _without_csv(path: Path, digests: frozenset[str], temporary: Path) -> int:
    removed = 0
    with temporary.open("wb") as kept:
        for number, (content, _) in enumerate(_csv_rows(path)):
            if number and _digest(content.rstrip(b"\r\n")) in digests:
                removed += 1
            else:
                kept.write(content)
    return removed


# ---- JSON: the objects of its lists, at any depth, and the rows of MLflow's tables ----


def _load_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("columns"), list)
        and isinstance(value.get("data"), list)
        and all(isinstance(row, list) for row in value["data"])
    )


def _read_json(path: Path) -> Iterator[Row]:
    value = _load_json(path)
    if isinstance(value, dict) and not _is_table(value):
        yield _digest_of(value), value
    yield from _objects(value)


def _objects(value: Any) -> Iterator[Row]:
    if _is_table(value):
        for row in value["data"]:
            found = dict(zip(map(str, value["columns"]), row, strict=False))
            yield _digest_of(found), found
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield _digest_of(item), item
            yield from _objects(item)


def _without_json(path: Path, digests: frozenset[str], temporary: Path) -> int:
    value = _load_json(path)
    kept, removed = _prune(value, digests)
    if removed:
        temporary.write_text(json.dumps(kept), encoding="utf-8")
    return removed


def _prune(value: Any, digests: frozenset[str]) -> tuple[Any, int]:
    if _is_table(value):
        columns = list(map(str, value["columns"]))
        kept = [
            row
            for row in value["data"]
            if _digest_of(dict(zip(columns, row, strict=False))) not in digests
        ]
        gone = len(value["data"]) - len(kept)
        # "index" is pandas' name for the rows' own names
        index = value.get("index")
        if gone and isinstance(index, list) and len(index) == len(value["data"]):
            return {**value, "data": kept, "index": index[: len(kept)]}, gone
        return {**value, "data": kept}, gone
    if isinstance(value, Mapping):
        pairs = {name: _prune(inner, digests) for name, inner in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list):
        stay = [i for i in value if not (isinstance(i, Mapping) and _digest_of(i) in digests)]
        pruned = [_prune(item, digests) for item in stay]
        gone = len(value) - len(stay) + sum(n for _, n in pruned)
        return [item for item, _ in pruned], gone
    return value, 0


# ---- Parquet: schema, types and metadata stay ----


def _read_parquet(path: Path) -> Iterator[Row]:
    table = parquet.read_table(path)
    yield from zip(_row_digests(table), _row_values(table), strict=True)


def _row_values(table: pa.Table) -> Iterator[Any]:
    # vectors aren't needed to tell whose a row is
    names = [name for name in table.column_names if name != "embedding"]
    yield from table.select(names).to_pylist()


def _row_digests(table: pa.Table) -> list[str]:
    if {"text", "embedding"} <= set(table.column_names):
        return [str(key) for key in table.column("text").to_pylist()]
    return [_digest_of(row) for row in _row_values(table)]


def _without_parquet(path: Path, digests: frozenset[str], temporary: Path) -> int:
    table = parquet.read_table(path)
    stay = [key not in digests for key in _row_digests(table)]
    if not all(stay):
        parquet.write_table(table.filter(pa.array(stay, type=pa.bool_())), temporary)
    return stay.count(False)


def _no_rows(path: Path) -> Iterator[Row]:
    yield from ()


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_WRITERS: Mapping[str, Callable[[Path, frozenset[str], Path], int]] = {
    ".jsonl": _without_lines,
    ".json": _without_json,
    ".csv": _without_csv,
    ".parquet": _without_parquet,
}


def whole_digest(path: Path) -> str | None:
    """Return the digest of a JSON file that is one object: taking it out is deleting the file."""
    if path.suffix != ".json":
        return None
    value = _load_json(path)
    return _digest_of(value) if isinstance(value, dict) else None


def check_readable(path: Path) -> None:
    """Raise ``DamagedError`` if a file doesn't match its checksum."""
    try:
        if is_sealed(path):
            check_seal(path)
    except DatasetError as error:
        raise DamagedError(str(error)) from error
