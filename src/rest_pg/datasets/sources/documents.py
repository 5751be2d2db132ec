"""A user's own documents, and requests to be answered."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

from rest_pg.datasets.sources.folders import ENDINGS, read_folders
from rest_pg.datasets.sources.readers import Columns, RawRecord, ending_of, reader_of

logger = logging.getLogger(__name__)


def path_of(value: object, parameter: str) -> Path:
    """Return a path that was given as a parameter.

    Raises:
        DatasetError: it is no text: ``--params`` reads 2024 and 0123 as numbers.
    """
    if not isinstance(value, str):
        raise DatasetError(
            f"{parameter}={value!r} was read as a {type(value).__name__}, not as a name: write "
            f"{parameter}=./NAME"
        )
    return Path(value)


class DocumentsDataset(AbstractDataset[None, list[RawRecord]]):
    """Author-attributed documents: ``user``, ``text``, optional ``title``, ``date``.

    As JSON Lines, a JSON array, CSV with a header, or Parquet; or a directory with a folder per user and
    a text file (.txt, .md) per document in it, whose name is the title.
    """

    PARAMETER, FIELDS = "documents", "user and text"
    COLUMNS = Columns(("user", "text"), ("title", "date"))

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Read the file or directory at ``filepath``."""
        self._path = path_of(filepath, self.PARAMETER)
        self.metadata = metadata

    def load(self) -> list[RawRecord]:
        """Return one raw record per document; blank lines are skipped.

        Raises:
            DatasetError: there is no such file, its name has another ending, it holds no record, or it is
                broken: cut in an array, a quote or a table.
        """
        if not self._path.exists():
            raise DatasetError(
                f"{self._path} is not there: put your {self.PARAMETER} in it, one JSON object a line "
                f"with {self.FIELDS}, or name another file with --params {self.PARAMETER}=FILE."
            )
        if self._path.is_dir():
            return self._load_folders()
        try:
            records = [
                {
                    **record,
                    "source": source,
                    "file": str(self._path),
                    "id": source.rpartition(", ")[2].replace(" ", "-"),
                }
                for source, record in reader_of(self._path)(self._path, self.COLUMNS)
            ]
        except OSError as error:
            raise DatasetError(f"{self._path} can't be read: {error}") from error
        if not records:
            raise DatasetError(
                f"{self._path} holds no record: put your {self.PARAMETER} in it, with {self.FIELDS}"
            )
        return records

    def _load_folders(self) -> list[RawRecord]:
        records = list(read_folders(self._path))
        if all("skipped" in record for record in records):
            endings = Counter(ending_of(Path(str(record["source"]))) for record in records)
            found = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in endings.items())
            raise DatasetError(
                f"{self._path} holds no text file ({', '.join(ENDINGS)}) in a user's folder; found: "
                f"{found or 'nothing'}. If your documents are in one file, name that file."
            )
        return records

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
    COLUMNS = Columns(("user", "request", "documents"))
