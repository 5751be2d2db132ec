"""Runs that overlap, end without a word or meet a wrong clock: real `kedro run` processes in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rest_pg.storage.lock import NAME

from .conftest import FULL, KEDRO, Ledger, Project, Run, run_id

SHORT = "data_ingestion,reasoning_path"
"""Pipelines that make what the later nodes of a run load: examples, profiles, prompts."""


class Running:
    """A `kedro run` that something else happens to while it goes on."""

    def __init__(self, project: Project, *arguments: str, module: str = KEDRO) -> None:
        self.log = project.root / f"{time.monotonic_ns()}.log"
        environment = os.environ | {
            "PYTHONPATH": str(project.root / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", module, "run", "--env", "trust", *arguments],
                cwd=project.root,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.text
            time.sleep(0.02)

    def wait(self) -> Run:
        status = self.process.wait()
        return Run(self.text.splitlines(), status)

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="several runs: `make trust`; tests/storage has the short part")
def test_a_second_run_is_refused_and_one_past_the_lock_changes_nothing(
    project: Project, finished: tuple[Run, dict[str, bytes]], ledger: Ledger
) -> None:
    """The other run has another seed, and saves newer versions of all that the first one loads again."""
    project.clean()
    first = Running(project)
    first.wait_until(lambda: "sft.finetune (" in first.text)
    started = time.monotonic()
    second = project.kedro("--params", "seed=8")
    refused = time.monotonic() - started
    assert second.status == 1, second.text
    assert second.nodes() == []
    (line,) = [line for line in second.lines if line.startswith("Error: ")]
    said = (f"process {first.process.pid},", f"host {os.uname().nodename},", "since 20", "worktree")
    assert all(word in line for word in said), line
    assert "Traceback" not in second.text
    reading = subprocess.run(
        [sys.executable, "-m", "kedro", "clean"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert reading.returncode == 0, reading.stderr  # to look is free
    first.process.send_signal(signal.SIGSTOP)
    (project.root / "data" / NAME).unlink()
    other = project.kedro("--pipelines", SHORT, "--params", "seed=8")
    assert other.status == 0, other.text
    first.process.send_signal(signal.SIGCONT)
    done = first.wait()
    assert done.status == 0, done.text
    survived = project.results() == finished[1]
    ledger.add("another run in the same folder", survived=survived, cases=2)
    assert survived
    print(f"refused after {refused:.1f} s, the start of Kedro included")
    # the newest examples are the other run's: all that came of them is made again
    again = project.kedro("--only-missing-outputs")
    assert again.status == 0, again.text
    assert "create_examples" in again.nodes()
    assert project.results() == finished[1]
    survived = clean(project, run_id(again))
    ledger.add("old versions removed", survived=survived)
    assert survived


def clean(project: Project, mlflow_run_id: str) -> bool:
    """Remove old versions; say whether a run that goes on has nothing to do."""
    raw = (project.root / "data/01_raw/documents.jsonl").read_bytes()
    removed = subprocess.run(
        [sys.executable, "-m", "kedro", "clean", "--yes"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert removed.returncode == 0, removed.stderr
    assert "old versions" in removed.stdout
    assert (project.root / "data/01_raw/documents.jsonl").read_bytes() == raw
    kept = {p.parent for p in project.root.glob("data/0[2-7]*/**/20*Z")}
    assert all(len(list(place.iterdir())) == 1 for place in kept)
    given = ("--only-missing-outputs", "--params", f"mlflow_run_id={mlflow_run_id}")
    return set(project.kedro(*given).nodes()) <= {
        "evaluation.log_results"
    }  # it prints, and stores nothing


UNPINNED = f"""
import rest_pg.hooks.versions as hook
hook.pin_versions = lambda *given: None
hook.load_own = lambda dataset: None
{KEDRO}
"""
"""As runs were, before each loaded its own versions only."""


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="several runs: `make trust`; tests/storage has the short part")
def test_a_mixture_of_two_runs_is_made_again(project: Project, ledger: Ledger) -> None:
    project.clean()
    alone = project.kedro("--pipelines", SHORT)
    assert alone.status == 0, alone.text
    expected = prepared(project)
    project.clean()
    first = Running(project, "--pipelines", SHORT, module=UNPINNED)
    first.wait_until(lambda: "read_documents (" in first.text)
    first.process.send_signal(signal.SIGSTOP)
    (project.root / "data" / NAME).unlink()
    other = project.kedro("--to-nodes", "create_examples", "--params", "seed=8")
    assert other.status == 0, other.text
    first.process.send_signal(signal.SIGCONT)
    mixed = first.wait()
    assert mixed.status == 0, mixed.text
    # of another run's examples, and nobody else made prompts
    assert prepared(project)["prompts.jsonl"] != expected["prompts.jsonl"]
    assert len(list((project.root / "data/05_model_input/prompts.jsonl").iterdir())) == 1
    again = project.kedro("--pipelines", SHORT, "--only-missing-outputs")
    assert again.status == 0, again.text
    survived = prepared(project) == expected
    ledger.add("a mixture of two runs", survived=survived)
    assert survived


def prepared(project: Project) -> dict[str, bytes]:
    """The newest versions of all that comes before the first training, by name."""
    places = [p for p in project.root.glob("data/0[2-5]*/*.jsonl") if p.is_dir()]
    return {place.name: (newest(place) / place.name).read_bytes() for place in places}


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="several runs: `make trust`; tests/storage has the short part")
def test_shards_and_checkpoints_survive_other_runs(
    project: Project, finished: tuple[Run, dict[str, bytes]], ledger: Ledger
) -> None:
    """Killed in a training and in sampling, each time with a run of other parameters in between."""
    project.clean()
    data = project.root / "data"

    def kill_when(pattern: str, node: str, *arguments: str) -> str:
        run = Running(project, *arguments)
        run.wait_until(lambda: f"{node} (" in run.text and any(data.glob(pattern)))
        run.process.kill()
        assert run.wait().status == -signal.SIGKILL
        assert (data / NAME).exists()  # the next run sees that its owner has ended
        return run.text

    kill_when("06_models/checkpoints/*/checkpoint-*/complete.json", "sft.finetune")
    other = project.kedro("--nodes", "sft.finetune", "--params", "sft.epochs=1")
    assert other.status == 0, other.text
    resumed = kill_when(
        "07_model_output/shards/*/*.jsonl", "iteration_1.sample_responses", "--only-missing-outputs"
    )
    trained = "the training goes on behind step" in resumed
    other = project.kedro("--nodes", "evaluation.sft.sample_held_out", "--params", "seed=8")
    assert other.status == 0, other.text
    last = project.kedro("--only-missing-outputs")
    assert last.status == 0, last.text
    assert f"took {data} over: `" in other.text
    sampled = "shards were done already" in last.text
    survived = trained and sampled and project.results() == finished[1]
    ledger.add("work kept through other runs", survived=survived, cases=2)
    assert survived, (trained, sampled)
    # what was finished and saved needs no room any more
    work = [*data.glob("07_model_output/*shards/*"), *data.glob("06_models/checkpoints/*")]
    assert not work, work


@pytest.mark.slow
def test_a_clock_that_was_set_back_stops_a_run_before_any_work(
    project: Project, finished: tuple[Run, dict[str, bytes]], ledger: Ledger
) -> None:
    """What the run would save must not be older than what is there."""
    place = newest(project.root / "data/03_primary/examples.jsonl")
    future = place.rename(place.with_name("2199-01-01T00.00.00.000Z"))
    try:
        late = project.kedro()
        assert late.status == 1
        assert late.nodes() == []
        assert "examples has the version 2199-01-01T00.00.00.000Z" in late.text
        reading = project.kedro("--pipelines", "reasoning_path")
        assert reading.status == 0, reading.text
    finally:
        future.rename(place)
    ledger.add("a clock that was set back", survived=True)


def newest(place: Path) -> Path:
    return max(place.iterdir())
