"""Readers of JSON Lines, JSON, CSV and Parquet: each yields a record's place and the record.

Readers yield raw records as they find them, and a node judges them. A record that can't be read is
yielded as ``unreadable`` with the reason. A file that is broken as a whole raises ``DatasetError``:
nobody can tell how many records it lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kedro.io.core import DatasetError

from rest_pg.datasets.sources.readers.delimited import read_delimited
from rest_pg.datasets.sources.readers.json_files import read_json, read_lines
from rest_pg.datasets.sources.readers.records import Columns, RawRecord
from rest_pg.datasets.sources.readers.tables import read_parquet

__all__ = ["READERS", "Columns", "RawRecord", "ending_of", "read_lines", "reader_of"]

Reader = Callable[[Path, Columns | None], Iterator[tuple[str, RawRecord]]]

READERS: Mapping[str, Reader] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".parquet": read_parquet,
}
"""How a file is read, by its ending in any case; ``.gz`` may follow it."""

SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst")


def ending_of(path: Path) -> str:
    """Return a file's ending in lower case, without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def reader_of(path: Path) -> Reader:
    """Return what reads a file.

    Raises:
        DatasetError: nothing reads its ending; the remedy is named.
    """
    ending = ending_of(path)
    if ending in READERS:
        return READERS[ending]
    remedy = f"name a file that ends in {', '.join(READERS)}, or a directory with a folder per user"
    if ending in SPREADSHEETS:
        remedy = "save the sheet as CSV (UTF-8) and name that file"
    elif ending in ARCHIVES:
        remedy = "unpack it and name the file in it"
    raise DatasetError(f"{path} ends in {ending!r}, which can't be read: {remedy}")
