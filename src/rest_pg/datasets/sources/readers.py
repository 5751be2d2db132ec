"""Readers of JSON Lines, JSON, CSV and Parquet: each yields a record's place and the record.

Readers yield raw records as they find them; a node judges them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ijson
import ijson.backends.python as slow_ijson
from pyarrow import ArrowException, default_memory_pool, parquet

BUFFER = 16 * 2**20
"""Bytes read at once from a JSON array: the parser copies a string anew with each part, and single
strings are 256 MB long."""

RawRecord = dict[str, Any]
"""``source`` (file and line), ``id`` within it, and what stood there: ``user``, ``text``, ``title``,
``date``, or ``unreadable`` with the reason."""


def read_lines(path: Path) -> Iterator[tuple[str, RawRecord]]:
    """Yield the place and the record of each line of a JSON Lines file; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                source = f"{path}, line {number}"
                try:
                    yield source, _as_record(json.loads(line))
                except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                    yield source, {"unreadable": str(error)}


def _json(path: Path) -> Iterator[tuple[str, RawRecord]]:
    """Read a file called .json: one array, or JSON Lines all the same."""
    with path.open("rb") as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return read_lines(path) if first == b"{" else _items(path)


def _items(path: Path) -> Iterator[tuple[str, RawRecord]]:
    """Read a JSON array item by item; halves of characters stop the quick parser, and not the slow one."""
    number = 0
    for parser in (ijson, slow_ijson):
        with path.open("rb") as file:
            items = parser.items(file, "item", use_float=True, buf_size=BUFFER)
            try:
                for place, item in enumerate(items, start=1):
                    if place > number:
                        number = place
                        yield f"{path}, item {number}", _as_record(item)
            except (ijson.JSONError, UnicodeDecodeError) as error:
                if isinstance(error, UnicodeDecodeError) and parser is ijson:
                    continue
                yield f"{path}, item {number + 1}", {"unreadable": str(error)}
            return


def _rows(path: Path) -> Iterator[tuple[str, RawRecord]]:
    """Read a table by few rows at once: as many as make up a buffer in the mean, and a single huge one."""
    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as table:
            found = table.metadata
            n_bytes = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
            n_rows = int(min(max(BUFFER * found.num_rows / max(n_bytes, 1), 1), 1024))
            for batch in table.iter_batches(batch_size=n_rows):
                if batch.nbytes > BUFFER:  # what reading it took beside goes before its copy comes
                    default_memory_pool().release_unused()
                for i in range(len(batch)):
                    number += 1
                    yield f"{path}, row {number}", batch.slice(i, 1).to_pylist()[0]
    except (ArrowException, OSError) as error:
        yield f"{path}, row {number + 1}", {"unreadable": str(error)}


def _csv(path: Path) -> Iterator[tuple[str, RawRecord]]:
    """Read a table with a header; fields may hold whole texts, line ends included."""
    csv.field_size_limit(2**31 - 1)
    number = 0
    # what is no valid UTF-8 becomes lone surrogates, which the check of records names
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), start=1):
                # a cell that isn't there is no text; more cells than the header names have no key
                yield f"{path}, row {number}", {k: v for k, v in row.items() if k and v}
        except csv.Error as error:
            yield f"{path}, row {number + 1}", {"unreadable": str(error)}


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, RawRecord]]]] = {
    ".jsonl": read_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _rows,
}
"""How a file is read, by its ending: each yields a record's place and the record."""


def _as_record(value: Any) -> RawRecord:
    return value if isinstance(value, dict) else {"unreadable": f"a JSON {type(value).__name__}"}
