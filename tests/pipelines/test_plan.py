import json
import shutil
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline

from rest_pg import pipeline_registry
from rest_pg.config import (
    EvaluationParams,
    ExpectationParams,
    LongLampParams,
    MaximizationParams,
    PassageParams,
    PlanParams,
    PromptParams,
    SelectionParams,
    TrainingParams,
)
from rest_pg.cost import ModelSize, sampling_operations
from rest_pg.datasets.sources.longlamp import LongLampDataset
from rest_pg.pipelines.plan.nodes import (
    Work,
    check_documents,
    check_records,
    create_plan,
    log_plan,
)
from rest_pg.runtime.session import RunParameters

PROJECT = Path(__file__).parents[2]
TINY = {
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": 10,
}


def plan_of(
    env: str, work: list[Work] | None = None, **changes: object
) -> tuple[pd.DataFrame, PlanParams]:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env=env)
    values = loader["parameters"]
    values["plan"] = values["plan"] | changes
    plan = PlanParams(**values["plan"])
    table = create_plan(
        values["n_iterations"],
        PromptParams(**values["prompt"]),
        TrainingParams(**values["sft"]),
        ExpectationParams(**values["expectation"]),
        SelectionParams(**values["selection"]),
        MaximizationParams(**values["maximization"]),
        EvaluationParams(**values["evaluation"]),
        plan,
        work,
    )
    return table, plan


def test_the_paper_s_setting_is_planned_from_its_configuration(caplog) -> None:
    roomy = {"examples": {"train": 13693, "validation": 4560, "test": 4560}}
    table, plan = plan_of("paper", **roomy, policy=TINY, judge=TINY)
    rows = table.set_index("stage")
    # 1.4 million generations, as its issue: 3 iterations of 32 samples for each of 13,693 prompts
    drawn = [rows.loc[f"iteration_{t}.samples", "texts"] for t in (1, 2, 3)]
    assert sum(drawn) == 3 * 32 * 13693
    # 10,000 steps of 64 prompts, each of 5,120 + 400 tokens
    assert rows.loc["sft", "tokens"] == 10_000 * 64 * (5120 + 400)
    assert rows.loc["iteration_1.policy", "texts"] == 10 * 13693
    size = ModelSize(
        body=4 * (2 * 4 + 2 * 2) + 3 * 4 * 8, hidden=4, vocabulary=10, layers=1, query_size=4
    )
    assert rows.loc["iteration_2.samples", "petaflop"] == pytest.approx(
        sampling_operations(size, n=13693, m=32, prompt=5120, output=400) / 1e15, abs=5e-4
    )
    assert (table["petaflop_unshared"] >= table["petaflop"]).all()
    # 120 documents of 200 tokens a user, each with 768 numbers; a sample is kept at 9 bytes a token
    users = 13693 + 2 * 4560
    assert rows.loc["retrieval", "texts"] == 120 * users
    assert rows.loc["retrieval", "gigabytes"] == pytest.approx(users * 120 * 3972 / 1e9, abs=5e-4)
    assert rows.loc["iteration_1.samples", "gigabytes"] == pytest.approx(
        13693 * 32 * 400 * 9 / 1e9, abs=5e-4
    )
    with caplog.at_level("INFO"):
        log_plan(table, plan)
    assert "nothing was started" in caplog.text


def test_the_embedded_default_is_planned_without_a_judge() -> None:
    table, _ = plan_of("local", policy=TINY)
    assert not table["stage"].str.contains("score").any()
    assert table["stage"].tolist()[:3] == ["retrieval", "sft", "iteration_1.samples"]


def test_what_cannot_work_is_refused_and_a_small_disk_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"sizes of 'no/such'[\s\S]*plan.policy"):
        plan_of("local", policy="no/such")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    plan_of("local", policy=TINY)
    assert "are free here: run from a larger disk" in caplog.text


def dry(monkeypatch: pytest.MonkeyPatch, **changes: object) -> dict[str, Pipeline]:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    values = loader["parameters"] | {"dry_run": True} | changes
    monkeypatch.setattr(RunParameters, "values", values)
    return pipeline_registry.register_pipelines()


def test_a_dry_run_puts_a_plan_in_the_place_of_every_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipelines = dry(monkeypatch)
    names = {n.name for p in pipelines.values() for n in p.nodes}
    assert names == {"check_configuration", "check_documents", "create_plan", "log_plan"}
    monkeypatch.setattr(RunParameters, "values", RunParameters.values | {"dry_run": False})
    assert pipelines.keys() == pipeline_registry.register_pipelines().keys()
    assert "check_records" in {
        n.name for n in dry(monkeypatch, data_format="longlamp")["study"].nodes
    }


def test_the_study_is_planned_by_its_own_nodes_worked_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = {"seeds": [7, 8, 9]}
    planned = dry(monkeypatch, study=seeds, n_iterations=2)["study"]
    (own,) = [n for n in planned.nodes if n.name == "create_plan"]
    work = own.func.keywords["work"]
    kwargs = {"policy": TINY, "judge": TINY, "teacher": TINY}
    table, _ = plan_of("local", work=work, **kwargs)
    rows = table.set_index("stage")
    # seven systems of three seeds; those that are self-trained are evaluated behind each of two iterations
    assert rows.loc["finetune, 9 times", "texts"] == 9 * 78
    assert rows.loc["maximize, 18 times", "prompts"] == 18 * 78
    # the control takes the first iteration's samples of REST-PG, and draws those of the second
    assert rows.loc["sample_responses, 15 times", "texts"] == 15 * 78 * 8
    assert rows.loc["sample_held_out, 27 times", "prompts"] == 27 * 34
    assert rows.loc["score_samples for training, 15 times", "texts"] == 15 * 78 * 8
    # 27 times by the reward, and the seven final systems of each seed by the second judge
    assert rows.loc["score_samples held out, 48 times", "prompts"] == 48 * 34
    assert rows.loc["write_reasoning_paths, 1 times", "texts"] == 78


def test_exploration_is_planned_with_its_largest_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = dry(monkeypatch)["exploration"]
    (own,) = [n for n in planned.nodes if n.name == "create_plan"]
    table, _ = plan_of("local", work=own.func.keywords["work"], policy=TINY)
    rows = table.set_index("stage")
    assert rows.loc["sample_responses, 1 times", "texts"] == 78 * 8
    assert rows.loc["maximize, 3 times", "prompts"] == 3 * 78


def test_the_teacher_reads_a_reference_and_writes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = plan_of("paper", policy=TINY, judge=TINY, teacher=TINY)
    row = table.set_index("stage").loc["reasoning_paths"]
    assert (row["prompts"], row["texts"]) == (13693, 13693)
    assert row["tokens"] == 13693 * (5120 + 400 + 400)


LONGLAMP = LongLampParams(
    task="auto",
    setting="user",
    max_examples={"train": 5},
    max_profile_size=3,
    max_document_words=20,
    max_reference_words=20,
    near_copies="keep",
)


def test_a_dry_run_reads_the_data(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    plan = PlanParams(examples={}, output_tokens=1, operations_per_second=1.0, policy=TINY)
    plan = plan.model_copy(update={"checked_records": 2})
    good = {"name": "ann", "input": "Write.", "output": "Text.", "profile": [{"abstract": "A."}]}
    for split in ("train", "val", "test"):
        lines = [good, good | {"output": 7}, {}]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = LongLampDataset(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"1 of the first 2 records .* line 2, field output"):
        check_records(data.load(), LONGLAMP, "stop", plan)
    with caplog.at_level("INFO"):
        check_records(data.load(), LONGLAMP, "reject", plan)
        assert "data: the first 2 records checked, 1 rejected" in caplog.text
        check_records(LongLampDataset(path="no/such").load(), LONGLAMP, "stop", plan)
        assert "data: can't be read here" in caplog.text
        documents = [{"user": "a", "text": "One two three.", "source": "1", "id": "1"}] * 3
        passages = PassageParams(min_words=1, max_words=9)
        check_documents(documents, passages, "stop", plan)
        assert "data: the first 2 records checked, 0 rejected, 1 documents" in caplog.text
    with pytest.raises(ValueError, match="can't be used"):
        check_documents([{"user": 1, "source": "1", "id": "1"}], passages, "stop", plan)


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({}, ["retrieval", "sft", "iteration_1.samples", "iteration_1.policy"]),
        ({"test": 10_000_000}, ["retrieval", "evaluation.sft.samples", "evaluation.sft.scores"]),
        ({"train": 10_000_000}, ["iteration_3.samples", "iteration_3.scored_samples"]),
    ],
)
def test_the_page_on_scaling_has_the_plan_s_figures(changed, stages) -> None:
    page = (PROJECT / "docs" / "scaling.md").read_text()
    examples = {"train": 13693, "validation": 4560, "test": 4560} | changed
    rows = plan_of("paper", examples=examples)[0].set_index("stage")
    for stage in stages:
        assert f"| {rows.loc[stage, 'petaflop']:,.0f} |" in page, stage
    if not changed:
        assert f"{rows['petaflop'].sum():,.0f} petaflop" in page
