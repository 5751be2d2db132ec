"""Removes temporary files of ended runs and finished work, and ends engines that a node left open."""

from __future__ import annotations

import logging
from pathlib import Path

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline.node import Node

from rest_pg.backends.engines import close_engines
from rest_pg.storage.unfinished import forget_finished, remove_finished
from rest_pg.temporary import sweep_temporary

logger = logging.getLogger(__name__)


class SweepHook:
    """Removes what interrupted runs left half written."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Sweep the project's data; what may still be written stays."""
        removed = sweep_temporary(Path(context.project_path) / "data")
        if removed:
            logger.info("removed %d files that an interrupted run had left half written", removed)


class FinishedWorkHook:
    """Removes a node's shards and checkpoints when its outputs are saved."""

    def __init__(self) -> None:
        self._unsaved: set[str] = set()

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Keep what an earlier node finished and did not save."""
        forget_finished()
        self._unsaved = set(node.outputs)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Remove the work behind the node's outputs, when the last of them is saved."""
        if dataset_name in self._unsaved:
            self._unsaved.discard(dataset_name)
            if not self._unsaved:
                remove_finished()


class EngineHook:
    """Ends the engines that a node started, so that the next one has their memory; also after an error."""

    @hook_impl
    def after_node_run(self) -> None:
        """End what the node left open."""
        close_engines()

    @hook_impl
    def on_node_error(self) -> None:
        """End what the node left open."""
        close_engines()
