"""Processes killed and interrupted at random points of every stage: nothing is lost, no byte differs."""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import pytest

from .conftest import FULL, POINTS, Ledger, Project, Run, Stop, node_of, run_id

STAGES = {
    "sft.finetune": "training",
    "evaluation.sft.sample_held_out": "sampling",
    "evaluation.sft.score_samples": "scoring",
    "iteration_1.sample_responses": "sampling",
    "iteration_1.score_samples": "scoring",
    "iteration_1.maximize": "training",
    "evaluation.iteration_1.score_samples": "scoring",
}
if not FULL:
    STAGES = {n: STAGES[n] for n in ("iteration_1.sample_responses", "iteration_1.maximize")}
SIGNALS = (signal.SIGKILL, signal.SIGINT)
SECONDS = 30
"""In which a run must have ended behind Ctrl-C, on a machine that does other things as well."""


@dataclass
class Chain:
    """A run that was stopped once in every stage, and what came of it."""

    faults: list[str]
    lost: set[str]
    repeated: int
    """How often a finished shard was worked through again, at most."""
    left_over: list[Path]
    again: list[str]
    """What an unchanged run that goes on ran still."""
    seconds_to_stop: list[float]
    """From each Ctrl-C to the end of its run."""


@pytest.mark.slow
def test_runs_that_are_stopped_in_every_stage_end_as_one_that_was_not(
    finished: tuple[Run, dict[str, bytes]], ledger: Ledger, tmp_path: Path
) -> None:
    n_workers = min(os.cpu_count() or 1, POINTS)
    free: Queue[Project] = Queue()
    for i in range(n_workers):
        free.put(Project(tmp_path / str(i)))

    def work(chain: int) -> Chain:
        own = free.get()
        try:
            return stop_in_every_stage(own, finished, chain)
        finally:
            free.put(own)

    with ThreadPoolExecutor(n_workers) as pool:
        chains = list(pool.map(work, range(POINTS)))
    for chain in chains:
        for fault in chain.faults:
            ledger.add(
                fault, survived=not chain.lost, lost=len(chain.lost), repeated=chain.repeated
            )
        ledger.slowest_stop = max(ledger.slowest_stop, *chain.seconds_to_stop, 0.0)
    for chain in chains:
        assert chain.faults
        assert max(chain.seconds_to_stop, default=0) < SECONDS
        assert chain.lost == set()
        assert chain.repeated == 0
        assert chain.left_over == []
        assert set(chain.again) <= {"evaluation.log_results"}


def stop_in_every_stage(
    project: Project, finished: tuple[Run, dict[str, bytes]], chain: int
) -> Chain:
    reference, expected = finished
    seconds = reference.seconds()
    draw = random.Random(chain)
    project.clean()
    runs: list[Run] = []
    faults: list[str] = []
    seconds_to_stop: list[float] = []
    going_on: list[str] = []
    for i, node in enumerate(n for n in reference.nodes() if n in STAGES):
        number = SIGNALS[(chain + i) % 2]
        stop = Stop(number, node, draw.uniform(0, 0.9 * seconds[node]))
        runs.append(project.kedro(*going_on, stop=stop))
        going_on = ["--only-missing-outputs"]
        if runs[-1].status == 0:  # the node was quicker than the signal, and so was all behind it
            break
        hit = STAGES.get(runs[-1].nodes()[-1], "another node")  # that of a node behind, it may be
        faults.append(f"{number.name} in {hit}")
        if number is signal.SIGINT:
            assert "the run was stopped by SIGINT" in runs[-1].text, runs[-1].text
            assert "kedro run --only-missing-outputs --env trust" in runs[-1].text
            seconds_to_stop.append(runs[-1].seconds_to_stop or 0.0)
    runs.append(project.kedro(*going_on))
    assert runs[-1].status == 0, runs[-1].text
    found = project.results()
    kept = Counter(shard for run in runs for shard in shards_kept(run) if shard[0] in STAGES)
    again = project.kedro("--only-missing-outputs", "--params", f"mlflow_run_id={run_id(runs[-1])}")
    return Chain(
        faults=faults,
        lost={name for name, data in expected.items() if found.get(name) != data},
        repeated=max(kept.values(), default=1) - 1,
        left_over=list(project.root.glob("data/**/.*.tmp")),
        again=again.nodes(),
        seconds_to_stop=seconds_to_stop,
    )


def shards_kept(run: Run) -> list[tuple[str, str]]:
    """Which shards a run finished, by the node that did."""
    found, node = [], ""
    for line in run.lines:
        node = node_of(line) or node
        match = re.search(r"shard \d+ of \d+ is kept", line)
        if match:
            found.append((node, match[0]))
    return found
