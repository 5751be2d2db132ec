"""`kedro doctor` on a small project of its own, with a tiny policy; its estimate worked by hand."""

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import build_tokenizer
from kedro.framework.project import configure_project, pipelines
from kedro.pipeline import Pipeline, node
from trust.conftest import Project

from rest_pg import cli
from rest_pg.config import (
    EvaluationParams,
    ExpectationParams,
    MaximizationParams,
    PreferenceParams,
    SelectionParams,
    TrainingParams,
)
from rest_pg.cost import ModelSize, Rates
from rest_pg.doctor import machine
from rest_pg.doctor.calibration import Batch, Linear, Speed, try_longest_batch
from rest_pg.doctor.estimate import Lengths, Workload, by_part, estimate, expected_lengths
from rest_pg.doctor.findings import Finding, histogram, lay_out, ok
from rest_pg.pipelines.self_training.nodes import sample_responses, score_samples
from rest_pg.pipelines.sft.nodes import finetune
from rest_pg.records import PolicyCheckpoint, TrainingExample
from rest_pg.runtime.session import RunParameters
from rest_pg.times import places_of
from rest_pg.wiring import bind

# F = 20, H = 30, a token's attention to another 8
SIZE = ModelSize(body=10, hidden=3, vocabulary=5, layers=1, query_size=2)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("doctor") / "project")


@pytest.fixture
def doctor(project: Project, monkeypatch):
    """The command in the project's directory; returns its exit status and what it printed."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(RunParameters, "values", None)
    configure_project("rest_pg")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.doctor, ["--env", "trust", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result.exit_code, result.output

    yield run
    pipelines.configure(None)


def test_a_sound_project_is_estimated_and_nothing_else_is_written(
    doctor, project, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine.OtherWork, "SHARE", 2.0)  # whatever else runs beside the tests
    before = set(project.root.rglob("*"))
    status, text = doctor()
    assert status == 0, text
    assert "0 problems, 0 warnings" in text
    assert "70 records gave 70 documents by 10 users" in text
    assert "24 train examples by 6 users" in text
    written = {p.name for p in set(project.root.rglob("*")) - before if p.is_file()}
    assert written == {"estimate.csv", "estimate.csv.sha256"}
    assert not list(tmp_path.iterdir())
    table = pd.read_csv(project.root / "data/08_reporting/estimate.csv").set_index("node")
    assert (table["seconds"] >= 0).all()
    # 24 prompts of 4 samples; 3 epochs
    assert table.loc["iteration_1.sample_responses", ["prompts", "texts"]].tolist() == [24, 96]
    assert table.loc["sft.finetune", "seconds"] > 0
    assert {"import_policy", "iteration_1.maximize", "evaluation.base.measure_samples"} <= set(
        table.index
    )


@pytest.mark.parametrize(
    ("given", "found", "remedy"),
    [
        pytest.param(
            "base_policy.source=./nowhere",
            "problem  base_policy.source  ./nowhere is not there",
            "name 'embedded', a hub id, or a directory",
            id="missing_model",
        ),
        pytest.param(
            "base_policy.source=nobody/nothing",
            "nobody/nothing is not in the hub's cache and HF_HUB_OFFLINE is set",
            "hf download nobody/nothing",
            id="missing_hub_model",
        ),
        pytest.param(
            "examples.min_profile_size=50",
            "0 users have enough documents",
            "lower examples.min_profile_size",
            id="too_few_documents",
        ),
        pytest.param(
            "prompt.max_tokens=64",
            "tokens without any document",
            "raise it, or shorten the template",
            id="small_budget",
        ),
        pytest.param("sft.epochs=0", "epochs", "greater than 0", id="bad_parameter"),
        pytest.param(
            "n_iteration=3", "no such parameter: n_iteration", "n_iterations?", id="no_parameter"
        ),
        pytest.param("sft.max_tokens=100", "above max_tokens=100", "raise it", id="long_examples"),
    ],
)
def test_what_would_stop_a_run_is_said_before_with_its_remedy(
    doctor, given: str, found: str, remedy: str
) -> None:
    status, text = doctor("--no-calibration", "--params", given)
    assert status == 1, text
    assert found in text
    assert remedy in text
    assert "Traceback" not in text


def test_a_model_at_fault_and_an_unknown_environment_are_problems(doctor, project) -> None:
    weights = project.root / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    status, text = doctor("--no-calibration")
    weights.write_bytes(whole)
    assert status == 1
    assert "cut or damaged" in text
    assert "copy or download it again" in text
    status, text = doctor("--no-calibration", "--env", "trsut")
    assert status == 1
    assert "there is no environment 'trsut'" in text
    assert "Did you mean trust" in text


def test_missing_data_is_a_problem(doctor, project) -> None:
    raw = project.root / "data" / "01_raw" / "documents.jsonl"
    hidden = raw.rename(raw.with_suffix(".hidden"))
    status, text = doctor("--no-calibration")
    hidden.rename(raw)
    assert status == 1
    assert "documents.jsonl is not there" in text
    assert "--params documents=FILE" in text
    assert "estimate" not in text


def test_a_broken_template_is_a_problem(doctor, project) -> None:
    template = project.root / "conf" / "base" / "prompts" / "response.jinja"
    before = template.read_text()
    template.write_text("{{ instruction }} {{ misspelt }}")
    status, text = doctor("--no-calibration")
    template.write_text("{% if %}")
    broken = doctor("--no-calibration")
    template.write_text(before)
    assert (status, broken[0]) == (1, 1)
    assert "'misspelt' is undefined" in text
    assert "problem  response.jinja" in broken[1]


@pytest.mark.parametrize("policies", [1.0, 2.5])
def test_a_full_disk_is_a_problem(doctor, project, monkeypatch, policies: float) -> None:
    # the import takes room for two, the run for three
    size = sum(file.stat().st_size for file in (project.root / "model").iterdir())
    usage = shutil.disk_usage("/")._replace(free=int(policies * size))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    status, text = doctor("--no-calibration")
    assert status == 1
    assert ("problem  disk of data/" in text) == (policies > 1)
    assert "delete old versions below data/06_models" in text


def test_little_memory_is_a_problem(doctor, monkeypatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: -(10**12))
    status, text = doctor("--no-calibration")
    assert status == 1
    assert "problem  memory" in text
    assert "set maximization.lora and sft.lora" in text


def test_a_library_outside_its_bounds_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=3"\ndependencies = ["click<1", "no-such-thing", "torch"]\n'
    )
    levels = {f.subject: f.level for f in machine.check_versions(tmp_path)}
    assert levels == {"Python": "ok", "click": "problem", "no-such-thing": "problem"}


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free = machine.available_memory()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert machine.available_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() > min(free, 3000)


def test_other_work_is_warned_of(monkeypatch) -> None:
    times = namedtuple("times", "user system idle steal")
    machines = iter([times(0, 0, 0, 0), times(8, 0, 8, 4)])
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: next(machines))
    mine = iter([times(0, 0, 0, 0), times(2, 1, 0, 0)])
    monkeypatch.setattr(
        machine.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(mine))
    )
    # 20 seconds of all processors: 8 idle, 3 ours
    (finding,) = machine.OtherWork().check()
    assert finding.found == "other programs took 45% of the processors meanwhile"


def test_findings_are_laid_out_with_their_remedies() -> None:
    findings = [
        ok("CPU", "2 threads"),
        Finding(level="problem", subject="disk", found="full\nreally", remedy="delete"),
    ]
    assert lay_out(findings).splitlines() == [
        "  ok       CPU   2 threads",
        "  problem  disk  full",
        "                 really",
        "                 → delete",
    ]


def test_a_histogram_worked_by_hand() -> None:
    lines = histogram([1, 10, 11, 20, 20], limit=20, n_bins=2).splitlines()
    assert [line.split() for line in lines] == [
        ["1", "to", "10", "tokens", "2", "█" * 20],
        ["11", "to", "20", "tokens", "3", "█" * 30],
    ]


def test_one_sample_is_taken_to_the_limit() -> None:
    assert expected_lengths([3, 9], n=4, m=2, limit=8) == [3, 3, 3, 3, 8, 8, 8, 8]
    assert expected_lengths([3], n=2, m=1, limit=8) == [3, 8]


def test_a_generator_s_batch_is_read_from_its_arguments() -> None:
    inner = {"backend": "rest_pg.backends.shared_prefix.SharedPrefixGenerator"}
    outer = {"backend": "rest_pg.backends.resumable.ResumableGenerator"}
    arguments = {"generator": inner | {"arguments": {"max_rows": 5}}, "prompts_per_shard": 3}
    assert Batch.of(outer | {"arguments": arguments}) == Batch(5, 3)
    assert Batch.of(outer | {"arguments": {"generator": inner}}) == Batch(32, 64)
    assert Batch.of(inner) == Batch(32, None)


def workload(**changes: object) -> Workload:
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 3}
    training = {"epochs": 2, "batch_size": 1, "learning_rate": 0.1, "max_tokens": 16}
    values: dict[str, object] = {
        "size": SIZE,
        "n_examples": {"train": 2, "validation": 1, "test": 1},
        "lengths": {"prompts": Lengths(prompt=4, outputs=[2])},
        "former": {},
        "measured": {"read": 7.0},
        "batch": Batch(4, None),
        "learnt_per_prompt": 1,
        "expectation": ExpectationParams(samples_per_prompt=2, decoding=decoding),
        "evaluation": EvaluationParams(samples_per_prompt=1, decoding=decoding, n_bootstrap=100),
        "sft": TrainingParams(**training),
        "maximization": MaximizationParams(start="sft", **training),
    }
    return Workload(**(values | changes))  # type: ignore[arg-type]


SPEED = Speed(
    sampling=Rates(start_seconds=1, prefill=174, step_seconds=0.5, decode=82, attention=4),
    training_start=3,
    training=234,
    scoring=Linear(start=2, each=0.25),
)


def method() -> tuple[Pipeline, dict[str, Pipeline]]:
    parameters = ["params:response_format", "params:expectation", "params:seed"]
    drawing = [
        node(
            bind(sample_responses, iteration=t),
            [f"policy_{t}", "prompts", "generator", *parameters],
            [f"iteration_{t}.samples", f"figures_{t}"],
            name=f"iteration_{t}.sample_responses",
        )
        for t in (1, 2)
    ]
    scoring = [
        node(
            score_samples,
            [f"iteration_{t}.samples", "prompts", "reward"],
            f"iteration_{t}.scored_samples",
            name=f"iteration_{t}.score_samples",
        )
        for t in (1, 2)
    ]
    reading = Pipeline([node(lambda r: r, "raw", "prompts", name="read")])
    training = node(
        finetune,
        [
            *("base_policy", "sft_examples", "trainer"),
            *("params:sft", "params:seed", "params:retrieval"),
        ],
        ["policy_1", "training_figures"],
        name="sft.finetune",
    )
    stages = {
        "data_ingestion": reading,
        "sft": Pipeline([training]),
        "self_training": Pipeline([*drawing, *scoring]),
    }
    return sum(stages.values(), Pipeline([])), stages


def test_an_estimate_worked_by_hand() -> None:
    pipeline, stages = method()
    table = estimate(pipeline, places_of(pipeline, stages), workload(), SPEED)
    seconds = dict(zip(table["node"], table["seconds"], strict=True))
    # prefill of 2 prompts at 174 operations each: 2 s; lengths 2, 2, 2 and 3: two steps; 5 tokens behind
    # first ones: 5 * 82 / 82; attending to 1, 1, 1 and 1 + 2: 6 * 8 / 4
    assert seconds["iteration_1.sample_responses"] == 1 + 2 + 2 * 0.5 + 5 + 12
    # 3 passes of 2 epochs of 2 rows: 4 * (20 + 8 * 2) + 2 * (50 + 8 * 5) = 324
    assert seconds["sft.finetune"] == pytest.approx(3 + 3 * 2 * 2 * 324 / 234, abs=1e-3)
    # what the first scoring loads, the second finds
    assert seconds["iteration_1.score_samples"] == 2 + 4 * 0.25
    assert seconds["iteration_2.score_samples"] == 4 * 0.25
    assert seconds["read"] == 7
    assert table["part"].drop_duplicates().tolist() == [
        "data_ingestion",
        "sft",
        "self_training, iteration 1",
        "self_training, iteration 2",
    ]
    sums = by_part(table, price_per_hour=3600).set_index("part")
    assert sums.loc["self_training, iteration 2", "seconds"] == 21 + 1
    assert sums.loc["all", "cost"] == pytest.approx(sums.loc["all", "seconds"], abs=0.1)


def test_a_former_run_s_lengths_and_shards_count() -> None:
    pipeline, stages = method()
    work = workload(former={"iteration_1.samples": [3, 3, 1, 1]}, batch=Batch(4, 1))
    table = estimate(pipeline, places_of(pipeline, stages), work, SPEED).set_index("node")
    # shards of 3, 3 and of 1, 1: 2 steps and none; 4 tokens behind first ones, attending to 1 + 2 each
    assert table.loc["iteration_1.sample_responses", "seconds"] == 1 + 2 + 1 + 4 + 6 * 8 / 4
    # no former run of the second: 2, 2 and 2, 3: 1 and 2 steps
    assert table.loc["iteration_2.sample_responses", "seconds"] == 1 + 2 + 1.5 + 5 + 12


def test_an_m_step_s_heaviest_batch_is_tried(tmp_path) -> None:
    """Two prompts a step, of each one kept and one rejected sample as long as a sample may be."""
    examples = [
        TrainingExample(example_id=str(i), prompt="p" * i, completion="word ") for i in range(1, 5)
    ]
    params = MaximizationParams(
        epochs=1,
        batch_size=2,
        learning_rate=1e-3,
        max_tokens=40,
        start="previous",
        preference=PreferenceParams(beta=0.1, likelihood=0.2),
    )
    selection = SelectionParams(
        threshold=0.0,
        relative_to="prompt_mean",
        max_per_prompt=1,
        weighting="uniform",
        rejected_per_prompt=1,
    )
    asked = {}

    class Trainer:
        def train(self, policy, rows, params, seed):
            asked.update(rows=rows, params=params)
            written = tmp_path / "written"
            written.mkdir()
            return PolicyCheckpoint(written), {}

    def try_batch(longest: int) -> list[tuple[str, int, float, bool]]:
        try_longest_batch(
            Trainer(),
            PolicyCheckpoint(tmp_path),
            examples,
            build_tokenizer(),
            params,
            selection,
            longest,
        )
        return [(e.example_id, len(e.completion), e.weight, e.finished) for e in asked["rows"]]

    # 12 tokens with the end token, of a byte each
    one, other = (11, 1.0, True), (11, -1.0, False)
    assert try_batch(12) == [("4", *one), ("4", *other), ("3", *one), ("3", *other)]
    assert asked["params"].max_steps == 1
    assert not (tmp_path / "written").exists()
    assert {length for _, length, *_ in try_batch(99)} == {40 - 4 - 1}  # within max_tokens
