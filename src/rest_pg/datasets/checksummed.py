"""Any of Kedro's single-file datasets, with a checksum."""

from __future__ import annotations

from functools import partial, wraps
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset

from rest_pg.datasets.base import SealedFileDataset


class SealedDataset(SealedFileDataset):
    """Any of Kedro's datasets that keep one file, sealed: figures, tables, plots, texts."""

    def __init__(
        self,
        *,
        filepath: str,
        dataset: dict[str, Any],
        **kept: Any,
    ) -> None:
        """Store what ``dataset`` (its type and arguments, without a path) reads and writes."""
        super().__init__(filepath=filepath, **kept)
        self._dataset = dataset
        shown = getattr(type(self._at(Path(filepath))), "preview", None)
        if shown is not None:
            # kedro-viz tells tables from plots by the return type of the dataset's own method
            self.preview = wraps(shown)(partial(self._preview))

    def _read(self, path: Path) -> Any:
        return self._at(path).load()

    def _write(self, path: Path, data: Any) -> None:
        self._at(path).save(data)

    def _at(self, path: Path) -> Any:
        return AbstractDataset.from_config("sealed", {**self._dataset, "filepath": str(path)})

    def _preview(self, *args: Any, **kwargs: Any) -> Any:
        return self._at(self._newest()).preview(*args, **kwargs)

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"dataset": self._dataset}
