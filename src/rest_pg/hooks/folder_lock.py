"""Lets one run at a time write the project's data; those that only read are never held up."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.io.core import AbstractVersionedDataset
from kedro.pipeline import Pipeline

from rest_pg.storage.lock import FolderLock


class FolderLockHook:
    """Holds ``data/`` from before the first step of a run to behind its last."""

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Take the folder, before any other hook; raise ``FolderInUse`` if another run has it.

        A run that stores nothing (``dry_run``) takes nothing.
        """
        stored = (catalog.get(name) for name in pipeline.all_outputs())
        if any(isinstance(dataset, AbstractVersionedDataset) for dataset in stored):
            lock = FolderLock(Path(run_params["project_path"]) / "data", _command(run_params))
            lock.acquire()
            self._lock = lock
        try:
            return (yield)
        except BaseException:  # no further hook is called then
            self._release()
            raise

    @hook_impl(wrapper=True)
    def after_pipeline_run(self) -> Generator[None, Any, Any]:
        """Give the folder back, whatever the other hooks do."""
        try:
            return (yield)
        finally:
            self._release()

    @hook_impl(wrapper=True)
    def on_pipeline_error(self) -> Generator[None, Any, Any]:
        """Give the folder back, whatever the other hooks do."""
        try:
            return (yield)
        finally:
            self._release()

    @hook_impl(tryfirst=True)
    def before_dataset_saved(self) -> None:
        """Raise ``FolderLost`` if another run took the folder while this one was suspended."""
        if self._lock is not None:
            self._lock.check()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


def _command(run_params: dict[str, Any]) -> str:
    """Say which run it is."""
    words = ["kedro run"]
    if run_params.get("env"):
        words.append(f"--env {run_params['env']}")
    if run_params.get("pipeline_names"):
        words.append(f"--pipelines {','.join(run_params['pipeline_names'])}")
    return " ".join(words)
