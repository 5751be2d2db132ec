"""Faults on purpose, in a small project of its own: a tiny policy, real `kedro run` processes.

`make trust` tries many points (TRUST_POINTS) and writes data/08_reporting/trust.csv; `make test` few.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import build_policy

PROJECT = Path(__file__).parents[2]
FULL = "TRUST_POINTS" in os.environ
POINTS = int(os.environ.get("TRUST_POINTS", "1"))
COLUMNS = ("fault", "injected", "survived", "lost", "repeated")

PARAMETERS = """
n_iterations: 1
passages: {min_words: 3, max_words: 30}
examples:
  setting: user
  validation_share: 0.2
  test_share: 0.2
  examples_per_user: {train: 4, validation: 2, test: 2}
  max_users: 10
  max_profile_size: 3
  min_profile_size: 2
  max_reference_words: 12
  n_key_items: 1
retrieval: {k: 1}
prompt: {max_tokens: 700, system: ""}
response_format: {reasoning: false}
sft: {epochs: 3, batch_size: 1, learning_rate: 1.0e-2, max_tokens: 1000}
expectation:
  samples_per_prompt: 4
  decoding: {temperature: 1.0, top_p: 1.0, max_new_tokens: 48}
maximization:
  {start: sft, epochs: 2, batch_size: 1, learning_rate: 1.0e-3, max_tokens: 1000, preference: null}
selection:
  {threshold: 0.0, relative_to: zero, max_per_prompt: 1, weighting: uniform, rejected_per_prompt: 0}
evaluation:
  samples_per_prompt: 1
  decoding: {temperature: 1.0, top_p: 1.0, max_new_tokens: 32}
  n_bootstrap: 100
"""

CATALOG = """
raw_documents: {type: rest_pg.datasets.sources.documents.DocumentsDataset, filepath: data/01_raw/documents.jsonl}
retriever:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.retrievers.Bm25Retriever
reward:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.resumable.ResumableReward
  arguments:
    reward:
      backend: rest_pg.backends.judges.RubricJudge
      arguments: {template: conf/base/prompts/judge.jinja, model: ./model, aggregation: expected}
    directory: data/07_model_output/score_shards
    samples_per_shard: 4
generator:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.resumable.ResumableGenerator
  arguments:
    generator:
      backend: rest_pg.backends.shared_prefix.SharedPrefixGenerator
      arguments: {max_rows: 16, dtype: float32}
    directory: data/07_model_output/shards
    prompts_per_shard: 4
trainer:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.sft_trainer.SharedPromptTrainer
  arguments: {directory: data/06_models/checkpoints, checkpoint_steps: 10}
"""

KEDRO = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a background job starts
runpy.run_module("kedro", run_name="__main__", alter_sys=True)
"""

WORDS = [
    "harbour",
    "ship",
    "pier",
    "tide",
    "rope",
    "sail",
    "wind",
    "coast",
    "gull",
    "net",
    "deck",
    "mast",
    "storm",
    "crew",
    "port",
]


def node_of(line: str) -> str:
    """The node that begins with a line of the log; empty if none does."""
    found = re.search(r"── (?:.* · )?(\S+) \(\d+ of \d+ nodes", line)
    return found[1] if found else ""


def run_id(run: Run) -> str:
    """The MLflow run that a finished `kedro run` names."""
    match = re.search(r"mlflow_run_id=(\w+)", run.text)
    assert match, run.text
    return match[1]


@dataclass(frozen=True)
class Run:
    """What a `kedro run` printed, and how it ended."""

    lines: list[str]
    status: int
    seconds_to_stop: float | None = None
    """From the signal to the end; none: there was no signal, or it came too late."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def seconds(self) -> dict[str, float]:
        """How long each node took."""
        found = (re.search(r"   (\S+) took ([\d.]+) s", line) for line in self.lines)
        return {m[1]: float(m[2]) for m in found if m}

    def nodes(self) -> list[str]:
        return list(filter(None, map(node_of, self.lines)))


@dataclass(frozen=True)
class Stop:
    """A signal, some seconds after a node began."""

    number: signal.Signals
    node: str
    after: float


def copy_project(root: Path) -> None:
    """Copy what a run needs of the project, and put a tiny policy into ``model``."""
    for name in ("conf", "src"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(PROJECT / "pyproject.toml", root)
    build_policy(root / "model")


class Project:
    """A project directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        copy_project(root)
        trust = root / "conf" / "trust"
        trust.mkdir()
        source = f"base_policy: {{source: {root / 'model'}}}\n"
        (trust / "parameters.yml").write_text(PARAMETERS + source)
        (trust / "catalog.yml").write_text(CATALOG)
        (root / "data" / "01_raw").mkdir(parents=True)
        self.write_documents()

    def write_documents(self, canary: str = "") -> None:
        draw = random.Random(5)
        with (self.root / "data" / "01_raw" / "documents.jsonl").open("w") as file:
            for user in range(10):
                for number in range(7):
                    text = " ".join(draw.choices(WORDS, k=9))
                    own = f" {canary}" if canary and user == 0 else ""
                    record = {
                        "user": f"user{user}",
                        "text": text + own,
                        "date": f"2001-01-1{number}",
                    }
                    file.write(json.dumps(record) + "\n")

    def clean(self) -> None:
        """Forget every run."""
        for path in self.root.glob("data/0[2-8]*"):
            shutil.rmtree(path)
        shutil.rmtree(self.root / "mlartifacts", ignore_errors=True)
        (self.root / "mlflow.db").unlink(missing_ok=True)

    def kedro(self, *arguments: str, stop: Stop | None = None) -> Run:
        """Run Kedro as a person would, to its end or to the signal."""
        return self._call("run", "--env", "trust", *arguments, stop=stop)

    def forget(self, *arguments: str, stop: Stop | None = None) -> Run:
        """Forget a user as a person would."""
        return self._call("forget", *arguments, stop=stop)

    def _call(self, *arguments: str, stop: Stop | None) -> Run:
        command = [sys.executable, "-c", KEDRO, *arguments]
        environment = os.environ | {
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        stopped_at: list[float] = []

        def send(number: signal.Signals) -> None:
            if process.poll() is None:
                stopped_at.append(time.monotonic())
                process.send_signal(number)

        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if stop and node_of(line) == stop.node:
                threading.Timer(stop.after, send, (stop.number,)).start()
        status = process.wait()
        return Run(lines, status, time.monotonic() - stopped_at[0] if stopped_at else None)

    def results(self) -> dict[str, bytes]:
        """What must not depend on interruptions: samples, scores, results, by name."""
        found = {}
        for pattern in ("*/samples.jsonl", "*/scored_samples.jsonl", "*/selected_samples.jsonl"):
            for place in self.root.glob(f"data/07_model_output/{pattern}"):
                newest = max(place.iterdir())
                name = str(place.relative_to(self.root))
                found[name] = (newest / place.name).read_bytes()
        for place in self.root.glob("data/06_models/policy_*"):
            newest = max(place.iterdir())
            found[place.name] = (newest / place.name / "model.safetensors").read_bytes()
        found["results"] = (self.root / "data/08_reporting/results.csv").read_bytes()
        return found


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("trust") / "project")


@pytest.fixture(scope="session")
def finished(project: Project) -> tuple[Run, dict[str, bytes]]:
    """An uninterrupted run of the small project, and its results."""
    project.clean()
    run = project.kedro()
    assert run.status == 0, run.text
    return run, project.results()


@dataclass
class Ledger:
    """The table of faults."""

    rows: dict[str, dict[str, int | str]] = field(default_factory=dict)
    slowest_stop: float = 0.0
    """Seconds from Ctrl-C to the end of a run."""

    def add(
        self, fault: str, *, survived: bool, lost: int = 0, repeated: int = 0, cases: int = 1
    ) -> None:
        row = self.rows.setdefault(
            fault, {"fault": fault, "injected": 0, "survived": 0, "lost": 0, "repeated": 0}
        )
        row["injected"] = int(row["injected"]) + cases
        row["survived"] = int(row["survived"]) + survived * cases
        row["lost"] = int(row["lost"]) + lost
        row["repeated"] = max(int(row["repeated"]), repeated)


@pytest.fixture(scope="session")
def ledger() -> Iterator[Ledger]:
    kept = Ledger()
    started = time.monotonic()
    yield kept
    if FULL and kept.rows:
        path = PROJECT / "data" / "08_reporting" / "trust.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept.rows.values())
        widths = "{:<44}" + "{:>10}" * 4
        print("\n" + widths.format(*COLUMNS))
        for row in kept.rows.values():
            print(widths.format(*row.values()))
        if kept.slowest_stop:
            print(f"Ctrl-C ended a run after {kept.slowest_stop:.1f} seconds at most")
        print(f"{(time.monotonic() - started) / 60:.1f} minutes; {path.relative_to(PROJECT)}")
