"""CSV and its relatives: any of four delimiters, a header with the columns' names, strict quoting."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from rest_pg.datasets.sources.readers.files import encoding_of, open_text
from rest_pg.datasets.sources.readers.records import Columns, RawRecord, broken

logger = logging.getLogger(__name__)

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_QUOTES = "close the quote, and double each quote within a text that stands in quotes"


def read_delimited(path: Path, columns: Columns | None) -> Iterator[tuple[str, RawRecord]]:
    """Read a table with a header; cells may hold whole texts, line ends included.

    A row with more or fewer cells than the header is unreadable, and named by its line.

    Raises:
        DatasetError: there is no header with the columns, a column is there twice, or a quote isn't closed.
    """
    assert columns is not None
    csv.field_size_limit(2**31 - 1)
    encoding = encoding_of(path)
    with open_text(path, encoding) as file:
        n_before, first = _first_line(file)
        delimiter = _delimiter_of(path, first, columns, f"line {n_before + 1}", encoding)
        logger.info(
            "%s: columns are separated by %s, text is %s", path, DELIMITERS[delimiter], encoding
        )
        rows = csv.reader(
            chain([first], file),
            delimiter=delimiter,
            skipinitialspace=f"{delimiter} " in first and delimiter != " ",
            strict=True,
        )
        number, end = 0, n_before
        try:
            header = next(rows)
            places = columns.places(header)
            least = max(i for i, name in enumerate(header, start=1) if name.strip())
            end = n_before + rows.line_num
            for row in rows:
                line, end = end + 1, n_before + rows.line_num
                if not any(row):
                    continue
                number += 1
                source = f"{path}, line {line}, row {number}"
                if len(row) < least or (len(row) > least and any(map(str.strip, row[least:]))):
                    yield source, _uneven(row, least, delimiter)
                else:
                    yield source, {name: row[i] for name, i in places.items() if row[i]}
        except csv.Error as error:
            place = f"the row that starts in line {end + 1}"
            raise broken(path, place, error, _QUOTES) from error


def _uneven(row: list[str], least: int, delimiter: str) -> RawRecord:
    return {
        "unreadable": f"{len(row)} cells",
        "expected": f"{least} cells, as in the header (put a text that holds a "
        f"{DELIMITERS[delimiter]} or a line end into double quotes)",
    }


def _first_line(file: TextIO) -> tuple[int, str]:
    """Return the first line that is neither blank nor Excel's ``sep=;``, and the number of lines before it."""
    for number, line in enumerate(file):
        if line.strip() and not line.lower().lstrip('"').startswith("sep="):
            return number, line
    return 0, ""


def _delimiter_of(path: Path, first: str, columns: Columns, place: str, encoding: str) -> str:
    """Return the delimiter that finds the columns in the first line."""
    headers = {d: _cells(first, d) for d in DELIMITERS}
    for delimiter, header in headers.items():
        try:
            places = columns.places(header)
        except ValueError as error:
            raise broken(path, place, error, "each column needs a name of its own") from error
        if set(columns.required) <= places.keys():
            names = [name.strip().lower() for name in header if name.strip()]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                problem = f"the column {twice[0]!r} is there twice"
                raise broken(path, place, problem, "rename or remove one")
            return delimiter
    delimiter = max(headers, key=lambda d: len(headers[d]))
    found = ", ".join(ascii(cell)[:40] for cell in headers[delimiter][:10])
    needed = delimiter.join(columns.required)
    raise broken(
        path,
        place,
        f"the header names no column {' and '.join(columns.required)}: found {found} "
        f"(separated by {DELIMITERS[delimiter]}, {encoding})",
        f"rename the columns; if the file has no header, add one: {needed}",
    )


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []
