"""Typed records as JSON Lines."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from kedro.io.core import DatasetError
from kedro.utils import load_obj
from kedro_datasets._typing import TablePreview
from pydantic import TypeAdapter, ValidationError

from rest_pg.datasets.base import SealedFileDataset

SHOWN_CHARACTERS = 300
"""Characters of a value in a preview, at most."""


class RecordsDataset(SealedFileDataset):
    """A list of records of one type as JSON Lines: one record a line, checked on load.

    Lines are split at ``\\n`` only: U+2028 and its kin may stand inside a text.
    """

    def __init__(
        self,
        *,
        filepath: str,
        record: str,
        **kept: Any,
    ) -> None:
        """Store records of the class at the dotted path ``record`` in ``filepath``."""
        super().__init__(filepath=filepath, **kept)
        self._record = load_obj(record)
        self._adapter: TypeAdapter[Any] = TypeAdapter(self._record)

    def _read(self, path: Path) -> list[Any]:
        records = []
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    records.append(self._adapter.validate_json(line))
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"])) or "line"
                    raise DatasetError(
                        f"{path}, line {number}, {where}: {first['msg']}, found "
                        f"{str(first['input'])[:80]!r}. Delete this version and run again."
                    ) from error
        return records

    def _write(self, path: Path, data: list[Any]) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for record in data:
                file.write(json.dumps(self._adapter.dump_python(record, mode="json")) + "\n")

    def preview(self, nrows: int = 10) -> TablePreview:
        """Return the first records as kedro-viz shows tables; long texts are cut."""
        with self._newest().open(encoding="utf-8", newline="\n") as lines:
            records = [json.loads(line) for line in islice(lines, nrows)]
        columns = list(records[0]) if records else []
        rows = [[_cut(record[name]) for name in columns] for record in records]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"record": self._record}


def _cut(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
