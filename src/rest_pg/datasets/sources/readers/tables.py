"""Parquet, read by few rows at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyarrow import ArrowException, RecordBatch, default_memory_pool, parquet

from rest_pg.datasets.sources.readers.records import Columns, RawRecord, broken

BUFFER = 16 * 2**20
"""Bytes of a table that are read at once, in the mean; a single huge row may be more."""


def read_parquet(path: Path, columns: Columns | None) -> Iterator[tuple[str, RawRecord]]:
    """Read a table: as many rows at once as make up a buffer in the mean, and a single huge one.

    Raises:
        DatasetError: the file is cut or damaged, or lacks a column.
    """
    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as table:
            names = _names(path, table.schema_arrow.names, columns)
            found = table.metadata
            n_bytes = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
            n_rows = int(min(max(BUFFER * found.num_rows / max(n_bytes, 1), 1), 1024))
            for batch in table.iter_batches(
                batch_size=n_rows, columns=None if columns is None else list(names)
            ):
                if batch.nbytes > BUFFER:  # what reading it took beside goes before its copy comes
                    default_memory_pool().release_unused()
                for i in range(len(batch)):
                    number += 1
                    yield f"{path}, row {number}", _row(batch, i, names)
    except (ArrowException, OSError) as error:
        remedy = "the Parquet file is cut or damaged: copy or export it again"
        raise broken(path, f"row {number + 1}", error, remedy) from error


def _names(path: Path, header: list[str], columns: Columns | None) -> dict[str, str]:
    """Return the name of each column that is read, by the file's own."""
    if columns is None:
        places = {name: i for i, name in enumerate(header)}
    else:
        try:
            places = columns.places(header)
        except ValueError as error:
            raise broken(path, "", error, "each column needs a name of its own") from error
        if missing := [name for name in columns.required if name not in places]:
            problem = f"no column is called {' or '.join(missing)}: found {', '.join(header)[:200]}"
            raise broken(path, "", problem, "rename the columns")
    if len(places) < len(header) and columns is None:
        raise broken(path, "", f"a column is there twice: {header}", "rename or remove one")
    return {header[i]: name for name, i in places.items()}


def _row(batch: RecordBatch, place: int, names: dict[str, str]) -> RawRecord:
    try:
        (row,) = batch.slice(place, 1).to_pylist()
    except (
        ValueError,
        OverflowError,
    ) as error:  # a time beyond the calendar, a text that is no UTF-8
        return {"unreadable": str(error), "expected": "values that Python can hold"}
    return {names.get(name, name): value for name, value in row.items()}
