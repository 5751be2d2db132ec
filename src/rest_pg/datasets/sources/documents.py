"""A user's own documents, and requests to be answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

from rest_pg.datasets.sources.readers import READERS, RawRecord


class DocumentsDataset(AbstractDataset[None, list[RawRecord]]):
    """Author-attributed documents: ``user``, ``text``, optional ``title``, ``date``.

    As JSON Lines, a JSON array, CSV with a header, or Parquet; or a directory with a folder per user and
    a text file (.txt, .md) per document in it, whose name is the title.
    """

    PARAMETER, FIELDS = "documents", "user and text"

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Read the file or directory at ``filepath``."""
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> list[RawRecord]:
        """Return one raw record per document; blank lines are skipped.

        Raises:
            DatasetError: there is no such file, or its name has another ending.
        """
        if not self._path.exists():
            raise DatasetError(
                f"{self._path} is not there: put your {self.PARAMETER} in it, one JSON object a line "
                f"with {self.FIELDS}, or name another file with --params {self.PARAMETER}=FILE."
            )
        if self._path.is_dir():
            return list(_folders(self._path))
        if self._path.suffix not in READERS:
            raise DatasetError(
                f"{self._path} ends in {self._path.suffix!r}, which can't be read: name a file that "
                f"ends in {', '.join(READERS)}, or a directory with a folder per user"
            )
        return [
            {**record, "source": source, "id": source.rpartition(", ")[2].replace(" ", "-")}
            for source, record in READERS[self._path.suffix](self._path)
        ]

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}

    def _exists(self) -> bool:
        return self._path.exists()


class RequestsDataset(DocumentsDataset):
    """Requests to be answered, as JSON Lines: ``user``, ``request``, ``documents`` by that user."""

    PARAMETER, FIELDS = "requests", "user, request and documents"


def _folders(root: Path) -> Iterator[RawRecord]:
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in (".txt", ".md")):
        place = path.relative_to(root)
        record: RawRecord = {"source": str(path), "id": str(place)}
        if len(place.parts) == 1:
            yield record | {"unreadable": "a file in no user's folder"}
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            yield record | {"unreadable": str(error)}
        else:
            yield record | {"user": place.parts[0], "text": text, "title": path.stem}
