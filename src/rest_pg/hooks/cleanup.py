"""Removes temporary files of interrupted runs, and ends engines that a node left open."""

from __future__ import annotations

import logging
from pathlib import Path

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

from rest_pg.backends.engines import close_engines
from rest_pg.temporary import sweep_temporary

logger = logging.getLogger(__name__)


class SweepHook:
    """Removes what interrupted runs left half written."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Sweep the project's data; what a living process writes stays."""
        removed = sweep_temporary(Path(context.project_path) / "data")
        if removed:
            logger.info("removed %d files that an interrupted run had left half written", removed)


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
