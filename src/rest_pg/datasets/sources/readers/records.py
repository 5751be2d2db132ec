"""Raw records, the columns that are wanted of them, and the error of a broken file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from kedro.io.core import DatasetError

RawRecord = dict[str, Any]
"""``source`` (file and place), ``file``, ``id`` within it, and the fields; or ``unreadable`` with the
reason, and ``expected``; or ``left_out`` with the reason, where a file is no document."""


@dataclass(frozen=True)
class Columns:
    """The fields that a file must have, and those that it may have. Others are not read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """Return all of them."""
        return frozenset(self.required + self.optional)

    def places(self, header: Iterable[str]) -> dict[str, int]:
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

    def pick(self, record: dict[str, Any]) -> RawRecord:
        """Return the known fields of a JSON object by their plain names."""
        if record.keys() <= self.names:
            return record
        try:
            places = self.places(record)
        except ValueError as error:
            return {"unreadable": str(error), "expected": "each field once"}
        values = list(record.values())
        return {name: values[place] for name, place in places.items()}


@lru_cache(maxsize=1024)
def plain_name(cell: str) -> str:
    """Return a column's name as it is compared."""
    return unicodedata.normalize("NFC", cell).strip("\ufeff \t\r\n\xa0").lower()


def broken(path: Path, place: str, problem: object, remedy: str) -> DatasetError:
    """Return the error of a file that can't be read to its end, whatever ``bad_records`` says."""
    where = f"{path}, {place}" if place else str(path)
    return DatasetError(f"{where}: {problem}. {remedy[:1].upper()}{remedy[1:]}.")
