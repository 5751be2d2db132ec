"""What a run takes: each node's time in a line, and the run's time and peak memory at its end."""

from __future__ import annotations

import logging
import resource
import time

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.pipeline.node import Node
from mlflow.exceptions import MlflowException

from rest_pg.memory import release_memory

logger = logging.getLogger(__name__)

SHORT_SECONDS = 1.0
"""A node that takes less has loaded no model."""


class UsageHook:
    """Logs each node's time in a line, and the run's time and peak memory at its end."""

    def __init__(self) -> None:
        self._run_started = self._node_started = time.perf_counter()

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Start the clock."""
        self._run_started = time.perf_counter()

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        self._node_started = time.perf_counter()
        logger.info("── %s", node.name)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Say how long the node took; what it dropped is no part of the next one's memory."""
        seconds = time.perf_counter() - self._node_started
        if seconds > SHORT_SECONDS:  # looking for what can be released takes half a second
            release_memory()
        logger.info("   %s took %.1f s", node.name, seconds)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Say what the run took; put it into MLflow."""
        seconds, memory = time.perf_counter() - self._run_started, peak_memory_gb()
        logger.info("the run took %.1f minutes and at most %.1f GB", seconds / 60, memory)
        if mlflow.active_run() is not None:
            try:
                mlflow.log_metrics({"run_seconds": seconds, "peak_memory_gb": memory})
            except MlflowException as error:
                logger.warning("MLflow took no run time: %s", error)


def peak_memory_gb() -> float:
    """Return the highest resident memory of this process and of any child that ended, in GB."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(u.ru_maxrss for u in usage) * 1024 / 1e9
