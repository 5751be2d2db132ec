"""What a run takes: where it stands while it runs, each node's time, and the run's time and memory."""

from __future__ import annotations

import logging
import resource
import time
from typing import Any

import mlflow
import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.io.core import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.exceptions import MlflowException

from rest_pg.memory import release_memory
from rest_pg.times import (
    SIDE_BY_SIDE_COLUMNS,
    STAGES,
    TIME_COLUMNS,
    Place,
    configuration_of,
    places_of,
    seconds_left,
    side_by_side,
)

logger = logging.getLogger(__name__)

_NOTHING_ESTIMATED = pd.DataFrame(columns=SIDE_BY_SIDE_COLUMNS)
SHORT_SECONDS = 1.0
"""A node that takes less has loaded no model."""


class UsageHook:
    """Says where the run stands at each node, and keeps what each took; at its end, the whole run's.

    Seconds by node are kept below data/ as the run goes, so that an interrupted run and the one that
    goes on are counted together.
    """

    def __init__(self) -> None:
        self._run_started = self._node_started = time.perf_counter()
        self._catalog: DataCatalog | None = None
        self._places: dict[str, Place] = {}
        self._expected: dict[str, float] = {}
        self._measured: dict[str, float] = {}
        self._table = pd.DataFrame(columns=TIME_COLUMNS)
        self._goes_on = False

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start the clock, and look up what is known of the nodes' times."""
        self._run_started = time.perf_counter()
        self._catalog, self._measured = catalog, {}
        self._goes_on = bool(run_params.get("only_missing_outputs"))
        self._places = places_of(
            pipeline, {stage: pipelines[stage] for stage in STAGES if stage in pipelines}
        )
        self._table = _load(catalog, "node_seconds", TIME_COLUMNS)
        known = self._estimate()
        if not len(known):  # the run before this one says something too
            known = self._table[self._table["finished"].astype(bool)]
        self._expected = {
            name: seconds
            for name, seconds in zip(known["node"], known["seconds"], strict=True)
            if name in self._places
        }

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock, and say where it stands."""
        self._node_started = time.perf_counter()
        place = self._places.get(node.name)
        if place is None:
            logger.info("── %s", node.name)
            return
        names = list(self._places)
        left = seconds_left(self._expected, self._measured, names[place.number - 1 :])
        fields = place.fields() | {"seconds_left": None if left is None else round(left, 1)}
        logger.info("── %s", place.describe(left), extra={"fields": fields})
        if "report" in node.outputs:  # which shows what is known by then
            self._lay_side_by_side()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Say how long the node took; what it dropped is no part of the next one's memory."""
        seconds = time.perf_counter() - self._node_started
        if seconds > SHORT_SECONDS:  # looking for what can be released takes half a second
            release_memory()
        place = self._places.get(node.name)
        fields = {
            **(place.fields() if place else {"node": node.name}),
            "seconds": round(seconds, 3),
        }
        logger.info("   %s took %.1f s", node.name, seconds, extra={"fields": fields})
        self._measured[node.name] = seconds
        self._note(node.name, seconds, finished=True)
        if seconds > SHORT_SECONDS:  # the rest is kept with the next one, or at the end
            self._keep()

    @hook_impl
    def on_node_error(self, node: Node) -> None:
        """Keep what an unfinished node took: it counts when the node is finished later."""
        self._note(node.name, time.perf_counter() - self._node_started, finished=False)

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Keep what is known."""
        self._keep()

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Say what the run took, beside its estimate; put it into MLflow."""
        seconds, memory = time.perf_counter() - self._run_started, peak_memory_gb()
        self._keep()
        self._compare()
        fields = {"seconds": round(seconds, 1), "peak_memory_gb": round(memory, 2)}
        logger.info(
            "the run took %.1f minutes and at most %.1f GB",
            seconds / 60,
            memory,
            extra={"fields": fields},
        )
        if mlflow.active_run() is not None:
            try:
                mlflow.log_metrics({"run_seconds": seconds, "peak_memory_gb": memory})
            except MlflowException as error:
                logger.warning("MLflow took no run time: %s", error)

    def _estimate(self) -> pd.DataFrame:
        """Return the estimate that was made for this configuration; empty if there is none."""
        assert self._catalog is not None
        columns = ["node", "part", "seconds", "configuration"]
        table = _load(self._catalog, "estimate", columns)
        return (
            table[table["configuration"] == configuration_of(self._catalog)]
            if len(table)
            else table
        )

    def _note(self, name: str, seconds: float, *, finished: bool) -> None:
        """Put a node's time into the table, with what an interruption had cost before."""
        before = self._table[self._table["node"] == name]
        if self._goes_on and len(before) and not before["finished"].astype(bool).iloc[0]:
            seconds += float(before["seconds"].iloc[0])
        place = self._places.get(name)
        row = [name, place.part if place else "", round(seconds, 3), finished]
        others = self._table[self._table["node"] != name]
        self._table = pd.DataFrame([*others.values.tolist(), row], columns=TIME_COLUMNS)

    def _keep(self) -> None:
        if self._catalog is not None and "node_seconds" in self._catalog and len(self._table):
            try:
                self._catalog.save("node_seconds", self._table)
            except (DatasetError, OSError) as error:  # a full disk is reported by who needs it
                logger.warning("the nodes' times could not be kept: %s", error)

    def _lay_side_by_side(self) -> pd.DataFrame:
        """Keep the estimate beside the measured times of what is finished; empty if there is none."""
        assert self._catalog is not None
        estimate = self._estimate()
        known = any(name in self._measured for name in estimate["node"])
        table = side_by_side(estimate, self._table) if known else _NOTHING_ESTIMATED
        if known or _is_there(
            self._catalog, "estimate_and_time"
        ):  # it must not stay an earlier run's
            self._catalog.save("estimate_and_time", table)
        return table

    def _compare(self) -> None:
        """Lay the estimate beside the measured times, in the log and among the run's artifacts."""
        table = self._lay_side_by_side()
        if table.empty:
            return
        logger.info(
            "estimated by kedro doctor, and measured:\n\n%s\n",
            table.fillna("").to_string(index=False),
            extra={
                "fields": {
                    "parts": table.astype(object).where(table.notna(), None).to_dict("records")
                }
            },
        )


def _is_there(catalog: DataCatalog, name: str) -> bool:
    return name in catalog and catalog.exists(name)


def _load(catalog: DataCatalog, name: str, columns: list[str]) -> pd.DataFrame:
    """Return a table, or an empty one if it isn't there, is damaged or has other columns."""
    try:
        table = catalog.load(name)
    except DatasetError:  # or isn't in this catalog at all
        table = pd.DataFrame()
    return table if set(columns) <= set(table.columns) else pd.DataFrame(columns=columns)


def peak_memory_gb() -> float:
    """Return the highest resident memory of this process and of any child that ended, in GB."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(u.ru_maxrss for u in usage) * 1024 / 1e9
