"""Which data an MLflow run was made with: its page lists it by name, checksum, fields and size."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import mlflow
import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from mlflow.data.pandas_dataset import from_pandas

from rest_pg.records import Example, TrainingExample

# MLflow knows two names for one kind of source
warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted in")


class InputsHook:
    """Registers examples, by split, and whatever policies learn from; MLflow gets no text of them."""

    def __init__(self) -> None:
        self._catalog: DataCatalog | None = None
        self._known: set[tuple[str, str]] = set()

    @hook_impl
    def after_catalog_created(self, catalog: DataCatalog) -> None:
        """Keep the catalog, which knows where data lies."""
        self._catalog = catalog

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Register what a run was given."""
        self._register(dataset_name, data)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Register what a run made."""
        self._register(dataset_name, data)

    def _register(self, name: str, data: Any) -> None:
        run = mlflow.active_run()
        if run is None or (run.info.run_id, name) in self._known:
            return
        for context, records in _by_context(data):
            frame = pd.DataFrame([_flat(record) for record in records])
            dataset = from_pandas(frame, source=self._place(name), name=name)
            mlflow.log_input(dataset, context=context)
            self._known.add((run.info.run_id, name))

    def _place(self, name: str) -> str:
        """Return where a dataset lies, or its name if that isn't known."""
        dataset = self._catalog.get(name) if self._catalog is not None else None
        path = getattr(dataset, "_get_load_path", None)
        return name if path is None else str(path())


def _by_context(data: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield what is registered of a dataset: examples by split, training examples as they are."""
    if not isinstance(data, list) or not data:
        return
    if isinstance(data[0], Example):
        for split in sorted({example.split for example in data}):
            yield split, [example for example in data if example.split == split]
    elif isinstance(data[0], TrainingExample):
        yield "training", data


def _flat(record: Any) -> dict[str, Any]:
    """Lay a record out as a row: what is nested becomes text, so that it enters the checksum."""
    return {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
        for name, value in asdict(record).items()
    }
