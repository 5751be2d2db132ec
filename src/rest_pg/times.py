"""Where a node stands in the method, how long it took, and how long that was estimated to take.

Two small tables below data/08_reporting: ``estimate.csv`` by ``kedro doctor``, ``node_seconds.csv`` by
every run. Both have a row per node; :func:`side_by_side` lays them out by stage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from rest_pg.freshness import flatten

STAGES = ("data_ingestion", "reasoning_path", "sft", "self_training", "evaluation")
"""The method's pipelines, in order."""
SIDE_BY_SIDE = "estimate_and_time.csv"
TIME_COLUMNS = ["node", "part", "seconds", "finished"]
"""Of ``node_seconds.csv``; seconds of a node that isn't finished were spent before an interruption."""
SIDE_BY_SIDE_COLUMNS = ["part", "estimated_seconds", "measured_seconds", "ratio"]
WHOLE = "all"

BACKENDS = ("retriever", "teacher", "reward", "generator", "trainer")
TIMELESS = {
    "log",
    "mlflow_run_id",
    "dry_run",
    "doctor",
    "plan",
    "inference",
    "calibration",
}
"""Parameters that no node's time in the method depends on."""

_ITERATION = re.compile(r"(?:^|\.)iteration_(\d+)\.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands in the pipeline at hand."""

    node: str
    number: int
    """The how-manieth node it is, from 1."""
    n_nodes: int
    stage: str
    """The pipeline of the method that it belongs to; empty if none."""
    stage_number: int
    n_stages: int
    iteration: int | None
    n_iterations: int

    @property
    def part(self) -> str:
        """The stage, and of self-training the iteration too."""
        if self.stage == "self_training" and self.iteration is not None:
            return f"{self.stage}, iteration {self.iteration}"
        return self.stage or self.node.partition(".")[0]

    def describe(self, seconds_left: float | None = None) -> str:
        """Say where the node stands, and about how much time is left."""
        words = []
        if self.stage and self.n_stages > 1:
            words.append(f"stage {self.stage_number} of {self.n_stages}")
        if self.iteration is not None:
            words.append(f"iteration {self.iteration} of {self.n_iterations}")
        left = "" if seconds_left is None else f", about {in_words(seconds_left)} left"
        return " · ".join([*words, f"{self.node} ({self.number} of {self.n_nodes} nodes{left})"])

    def fields(self) -> dict[str, Any]:
        """Return what a log for machines says of the node."""
        return {
            "node": self.node,
            "stage": self.stage,
            "iteration": self.iteration,
            "number": self.number,
            "nodes": self.n_nodes,
        }


def places_of(pipeline: Pipeline, method: Mapping[str, Pipeline]) -> dict[str, Place]:
    """Return each node's place, by name.

    Args:
        pipeline: what is run.
        method: the pipelines of the method's stages, in order; only those that are run are counted.
    """
    stage_of = {n.name: stage for stage, own in reversed(list(method.items())) for n in own.nodes}
    nodes = [node.name for node in pipeline.nodes]
    present = {stage_of.get(name) for name in nodes}
    numbers = {stage: i for i, stage in enumerate((s for s in method if s in present), start=1)}
    found = {name: _ITERATION.search(name) for name in nodes}
    iterations = {name: int(match[1]) for name, match in found.items() if match}
    return {
        name: Place(
            node=name,
            number=number,
            n_nodes=len(nodes),
            stage=stage_of.get(name, ""),
            stage_number=numbers.get(stage_of.get(name, ""), 0),
            n_stages=len(numbers),
            iteration=iterations.get(name),
            n_iterations=max(iterations.values(), default=0),
        )
        for number, name in enumerate(nodes, start=1)
    }


def in_words(seconds: float) -> str:
    """Say a time as a person would: 40 s, 3.5 minutes, 2.1 hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def seconds_left(
    expected: Mapping[str, float], measured: Mapping[str, float], left: Iterable[str]
) -> float | None:
    """Return how long the nodes ``left`` will take: as expected, times what the others really took.

    Early on the expectation counts for more: a tenth of it stands on both sides of that ratio. None
    if nothing is expected of any of them.
    """
    waiting = [expected[name] for name in left if name in expected]
    if not waiting:
        return None
    prior = sum(expected.values()) / 10
    done = [name for name in measured if name in expected]
    really, planned = (sum(times[name] for name in done) for times in (measured, expected))
    return sum(waiting) * (really + prior) / (planned + prior) if planned + prior else 0.0


def describe(catalog: DataCatalog, name: str) -> dict[str, Any]:
    """Return how a dataset is configured; empty if there is none of that name."""
    dataset = catalog.get(name)
    return {} if dataset is None else dict(dataset._describe())


def configuration_of(catalog: DataCatalog) -> str:
    """Digest what an estimate holds for: parameters and back-ends."""
    values = flatten(catalog.load("parameters"))
    kept = {name: v for name, v in values.items() if name.split(".")[0] not in TIMELESS}
    backends = {name: describe(catalog, name) for name in BACKENDS}
    text = json.dumps([kept, backends], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunTimes:
    """What the report says of time: what ``kedro doctor`` estimated for this run, and what it took so far."""

    def __init__(self, directory: str) -> None:
        """Read what the run at hand keeps in ``directory`` (data/08_reporting)."""
        self._path = Path(directory, SIDE_BY_SIDE)

    def read(self) -> pd.DataFrame:
        """Return :func:`side_by_side`'s table; empty if nothing was estimated for this configuration."""
        columns = pd.DataFrame(columns=SIDE_BY_SIDE_COLUMNS)
        return pd.read_csv(self._path) if self._path.exists() else columns


def side_by_side(estimate: pd.DataFrame, node_seconds: pd.DataFrame) -> pd.DataFrame:
    """Lay estimated and measured seconds side by side, by part of the run.

    Args:
        estimate: of ``kedro doctor``: node, part, seconds.
        node_seconds: of runs: :data:`TIME_COLUMNS`.

    Returns:
        A row per part, in the estimate's order, and their sum: estimated and measured seconds, and measured
        by estimated. What isn't finished counts on neither side.
    """
    finished = node_seconds[node_seconds["finished"].astype(bool)]
    rows: list[tuple[str, float, float]] = []
    for part, own in estimate[estimate["node"].isin(finished["node"])].groupby("part", sort=False):
        # small nodes count too, for which nothing was estimated
        seconds = finished.loc[finished["part"] == part, "seconds"].sum()
        rows.append((str(part), float(own["seconds"].sum()), float(seconds)))
    table = pd.DataFrame(rows, columns=SIDE_BY_SIDE_COLUMNS[:3])
    table.loc[len(table)] = [WHOLE, *table[SIDE_BY_SIDE_COLUMNS[1:3]].sum()]
    table["ratio"] = table["measured_seconds"] / table["estimated_seconds"].where(lambda s: s > 0)
    return table.round(3)
