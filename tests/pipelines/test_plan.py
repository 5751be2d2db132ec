import shutil
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader

from rest_pg import pipeline_registry
from rest_pg.config import (
    EvaluationParams,
    ExpectationParams,
    MaximizationParams,
    PlanParams,
    PromptParams,
    SelectionParams,
    TrainingParams,
)
from rest_pg.cost import ModelSize, sampling_operations
from rest_pg.hooks import RunParameters
from rest_pg.pipelines.plan.nodes import create_plan, log_plan

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


def plan_of(env: str, **changes: object) -> tuple[pd.DataFrame, PlanParams]:
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


def test_a_dry_run_puts_the_plan_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    monkeypatch.setattr(RunParameters, "values", loader["parameters"] | {"dry_run": True})
    pipelines = pipeline_registry.register_pipelines()
    assert {n.name for p in pipelines.values() for n in p.nodes} == {"create_plan", "log_plan"}
    assert {"__default__", "study", "self_training"} <= set(pipelines)


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
