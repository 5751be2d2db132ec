"""Raw records, the columns that are wanted of them, and the error of a broken file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io.core import DatasetError

RawRecord = dict[str, Any]
"""``source`` (file and place), ``file``, ``id`` within it, and the fields; or ``unreadable`` with the
reason, and ``expected``; or ``left_out`` with the reason, where a file is no document."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields that a file must have, and those that it may have. Others are not read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all of them."""
        return self.required + self.optional

    def places(self, header: Iterable[object]) -> dict[str, int]:
        """Return where each known name stands in a header; case and white space don't count.

        Raises:
            ValueError: a name stands there twice.
        """
        found: dict[str, int] = {}
        for place, cell in enumerate(header):
            name = plain_name(cell)
            if name in self.names:
                if name in found:
                    raise ValueError(f"the column {name!r} is there twice: rename or remove one")
                found[name] = place
        return found

    def pick(self, record: Mapping[str, Any]) -> RawRecord:
        """Return the known fields of a JSON object by their plain names."""
        try:
            places = self.places(record)
        except ValueError as error:
            return {"unreadable": str(error), "expected": "each field once"}
        values = list(record.values())
        return {name: values[place] for name, place in places.items()}


def plain_name(cell: object) -> str:
    """Return a column's name as it is compared."""
    return unicodedata.normalize("NFC", str(cell)).strip("\ufeff \t\r\n\xa0").lower()


def as_record(value: Any, columns: Columns | None) -> RawRecord:
    """Return a JSON value as a raw record."""
    if not isinstance(value, dict):
        return {"unreadable": f"a JSON {type(value).__name__}"}
    return value if columns is None else columns.pick(value)


def broken(path: Path, place: str, problem: object, remedy: str) -> DatasetError:
    """Return the error of a file that can't be read to its end, whatever ``bad_records`` says."""
    where = f"{path}, {place}" if place else str(path)
    return DatasetError(f"{where}: {problem}. {remedy[:1].upper()}{remedy[1:]}.")
