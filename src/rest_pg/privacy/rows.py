"""Rows of files: read with a digest each, and left out by it, all others as they were."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Row = tuple[str, Any]
"""A row's digest, and its value; without a value where the row can't be read."""


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


def can_lose_rows(path: Path) -> bool:
    """Whether rows can be taken out of a file of this kind."""
    return path.suffix in _WRITERS


def without_rows(path: Path, digests: Collection[str], temporary: Path) -> int:
    """Write a file without the rows of these digests; return how many those were."""
    return _WRITERS[path.suffix](path, frozenset(digests), temporary)


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
