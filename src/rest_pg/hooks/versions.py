"""Has a run load its own versions, and everything else as it was when the run started."""

from __future__ import annotations

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.io.core import AbstractVersionedDataset
from kedro.pipeline import Pipeline

from rest_pg.freshness import content_of, stored_content
from rest_pg.storage.versions import load_own, pin_versions


class VersionsHook:
    """Pins versions at the start of a run; what has no versions must not change while the run goes on."""

    def __init__(self) -> None:
        self._catalog = DataCatalog()
        self._known: dict[str, str | None] = {}
        """Content of each dataset without versions, when the run started or when it wrote it."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Pin what the run loads; raise ``VersionInFuture`` if it could save nothing newer."""
        pin_versions(catalog, pipeline.datasets(), pipeline.all_outputs())
        self._catalog = catalog
        loaded = {name for node in pipeline.nodes for name in node.inputs}
        self._known = {name: self._content(name) for name in loaded if self._can_change(name)}

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Have what is saved now be loaded from now on."""
        load_own(self._catalog.get(dataset_name))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Note what was saved."""
        if dataset_name in self._known:
            self._known[dataset_name] = self._content(dataset_name)

    @hook_impl(tryfirst=True)
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Raise ``DatasetError`` if another process changed what was loaded."""
        if dataset_name not in self._known:
            return
        if self._known[dataset_name] != self._content(dataset_name):
            raise DatasetError(
                f"{dataset_name} was changed by another process while this run was using it "
                f"({self._catalog.get(dataset_name)}). Run again with --only-missing-outputs: what was made from "
                "the earlier content is then made again."
            )

    def _can_change(self, name: str) -> bool:
        dataset = self._catalog.get(name)
        if dataset is None or isinstance(dataset, MemoryDataset):
            return False
        return not (isinstance(dataset, AbstractVersionedDataset) and dataset._version)

    def _content(self, name: str) -> str | None:
        dataset = self._catalog.get(name)
        return stored_content(dataset) or content_of(dataset)
