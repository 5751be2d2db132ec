"""LongLaMP's records as their authors publish them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import load_dataset
from kedro.io.core import AbstractDataset, DatasetError

from rest_pg.datasets.sources.documents import path_of
from rest_pg.datasets.sources.readers import RawRecord, read_lines, reader_of

logger = logging.getLogger(__name__)

_PART = re.compile(r"-(\d+)-of-(\d+)")


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
        self._path, self._name = None if path is None else str(path_of(path, "longlamp_path")), name
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
        files = sorted(path for path in directory.iterdir() if path.is_file())
        found = [
            paths
            for name in self.SPLITS[split]
            for suffix in self.FORMATS
            for paths in (
                [p for p in files if _plain(p) == f"{name}{suffix}"][:1],
                [
                    p
                    for p in files
                    if _plain(p).startswith(f"{name}-") and _plain(p).endswith(suffix)
                ],
            )
            if paths
        ]
        if not found:
            raise DatasetError(
                f"{directory} holds no {split}{self.FORMATS[0]} (nor {', '.join(self.FORMATS[1:])}): put "
                "LongLaMP's three splits in it, or name another directory with --params longlamp_path=DIR"
            )
        if others := [path.name for paths in found[1:] for path in paths]:
            names = [path.name for path in found[0]]
            logger.warning("%s: %s is read, and not %s", directory, names, others)
        _check_parts(directory, found[0])
        return found[0]

    def _read(self, files: Mapping[str, list[Path]]) -> Iterator[RawRecord]:
        for split, paths in files.items():
            for path in paths:
                for source, record in reader_of(path)(path, None):
                    yield {**record, "source": source, "file": str(path), "split": split}

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
                place = {"source": f"{path}, {split} {number}", "file": f"{path} ({split})"}
                yield {**row, **place, "split": split}

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"path": self._path, "name": self._name, "tasks": self._tasks}

    def _exists(self) -> bool:
        return True


def _plain(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _check_parts(directory: Path, paths: list[Path]) -> None:
    """Raise ``DatasetError`` if one of the parts that the names count is missing."""
    numbers = [match for path in paths if (match := _PART.search(path.name))]
    there = {int(match[1]) for match in numbers}
    if missing := {n for match in numbers for n in range(int(match[2]))} - there:
        name = paths[0].name
        raise DatasetError(
            f"{directory}: part {min(missing)} is missing beside {name}: copy it too"
        )


def _examples(path: Path) -> Iterator[RawRecord]:
    """Read the examples of another run as records: only their names are others."""
    for source, record in read_lines(path):
        split = str(record.get("split"))
        own = {**record, "output": record.get("reference"), "source": source, "file": str(path)}
        if split in ("train", "validation", "test"):
            yield own | {"split": "val" if split == "validation" else split}
        else:
            problem = f"an example of the split {split[:40]!r}"
            yield own | {"unreadable": own.get("unreadable", problem), "split": "train"}
