import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import example

from rest_pg.config import Decoding, EvaluationParams, RetrievalParams
from rest_pg.metrics import is_degenerate, measure_response
from rest_pg.pipelines.data_ingestion.counts import COLUMNS as COUNTED
from rest_pg.pipelines.data_ingestion.statistics import describe_data
from rest_pg.pipelines.evaluation.nodes import (
    COLUMNS,
    METRICS,
    create_results,
    log_system,
    measure_samples,
    reported_split,
)
from rest_pg.pipelines.evaluation.reading import (
    MOST,
    browse_examples,
    browse_iterations,
    draw_some,
)
from rest_pg.pipelines.evaluation.report import create_report, describe_run, state_result
from rest_pg.records import (
    Profile,
    Prompt,
    RetrievedDocument,
    Sample,
    Score,
    ScoredSample,
    SelectedSample,
)
from rest_pg.times import TIME_COLUMNS, RunTimes, side_by_side

PARAMS = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=1, max_new_tokens=8),
    n_bootstrap=400,
)


def table(rewards: list[float]) -> pd.DataFrame:
    rows = [
        {
            "example_id": f"e{i}",
            "sample_index": 0,
            "user_id": f"u{i // 2}",
            "split": "test",
            "task": "",
        }
        | dict.fromkeys(METRICS, 0.0)
        | {"reward": reward}
        for i, reward in enumerate(rewards)
    ]
    return pd.DataFrame(rows)


def test_measures_worked_by_hand() -> None:
    same = measure_response("we sail the ships home", "we sail the ships home", [])
    assert same["rouge_1"] == same["rouge_2"] == same["rouge_l"] == 1
    assert same["words"] == 5
    # 3 of 4 words are shared, and in order: precision = recall = 3/4
    near = measure_response("we sail ships far", "we sail ships home", [])
    assert near["rouge_1"] == near["rouge_l"] == pytest.approx(0.75)
    # bigrams: 2 of 3 shared
    assert near["rouge_2"] == pytest.approx(2 / 3)
    assert 0 < near["meteor"] < same["meteor"] <= 1
    assert 0 < near["chrf"] < same["chrf"] == pytest.approx(1)
    # two 8-grams, and one of them is in the document
    nine = "a b c d e f g h i"
    assert measure_response(nine, "x", ["a b c d e f g h x"])["copied"] == 0.5
    empty = measure_response("", "x", [])
    assert empty["rouge_1"] == empty["chrf"] == 0


def test_loops_are_found() -> None:
    assert is_degenerate("the ships of war " * 4)
    assert not is_degenerate("the ships of war " * 3)


def test_results_pair_each_system_with_sft() -> None:
    sft, later = [0.1, 0.5, 0.2, 0.9] * 3, [0.2, 0.6, 0.3, 1.0] * 3
    results = create_results(PARAMS, 7, base=table(sft), sft=table(sft), iteration_1=table(later))
    assert list(results.columns) == COLUMNS
    rows = results.set_index(["system", "metric"])
    difference = rows.loc[("iteration_1", "reward_minus_sft")]
    # every example gains 0.1: paired, the interval has no width
    assert difference[["mean", "ci_low", "ci_high"]].tolist() == pytest.approx([0.1] * 3)
    assert rows.loc[("sft", "reward")]["mean"] == pytest.approx(0.425)
    assert ("sft", "reward_minus_sft") not in rows.index
    again = create_results(PARAMS, 7, base=table(sft), sft=table(sft), iteration_1=table(later))
    pd.testing.assert_frame_equal(results, again)
    assert "improves on SFT on 6 held-out users: +0.1000" in state_result(results)


def test_mixed_tasks_have_results_of_their_own() -> None:
    measured = table([0.1, 0.5, 0.2, 0.9])
    measured["task"] = ["review", "review", "topic", "topic"]
    rows = create_results(PARAMS, 7, sft=measured).set_index(["split", "metric"])["mean"]
    assert rows["test", "reward"] == pytest.approx(0.425)
    assert rows["test:review", "reward"] == pytest.approx(0.3)
    assert rows["test:topic", "reward"] == pytest.approx(0.55)


def test_improvement_is_not_claimed_across_zero() -> None:
    results = create_results(
        PARAMS, 7, sft=table([0.1, 0.5, 0.2, 0.9] * 3), iteration_1=table([0.4, 0.6, 0.1, 0.7] * 3)
    )
    assert "no certain difference" in state_result(results)
    # MLflow's page says the same, with the table
    assert f"**{state_result(results)}**" in describe_run(results)
    assert "iteration_1  0.4500 [" in describe_run(results)


def test_few_users_have_means_and_no_interval() -> None:
    gains = {"sft": [0.1, 0.5] * 5, "iteration_1": [0.2, 0.6] * 5}
    results = create_results(PARAMS, 7, **{name: table(own) for name, own in gains.items()})
    assert (results["n_users"] == 5).all()
    assert results["mean"].notna().all()
    assert results[["ci_low", "ci_high"]].isna().all(axis=None)
    sentence = state_result(results)
    assert sentence.startswith("Fewer than 6 test users (5): no interval")
    assert "improves" not in sentence
    page = describe_run(results)
    assert "nan" not in page
    assert "95%" not in page
    # one user more, and both are there
    enough = {name: table(own + own[:2]) for name, own in gains.items()}
    results = create_results(PARAMS, 7, **enough)
    assert results[["ci_low", "ci_high"]].notna().all(axis=None)
    assert "improves on SFT on 6 held-out users" in state_result(results)
    assert "95%" in describe_run(results)


def scored_sample(response: str) -> ScoredSample:
    sample = Sample(
        example_id="e1",
        sample_index=0,
        text=response,
        reasoning_path="<b>calm</b>",
        response=response,
        malformed="",
        finished=True,
        n_tokens=2,
    )
    return ScoredSample(sample=sample, score=Score(reward=0.4))


def test_measure_log_and_report(tmp_path: Path) -> None:
    test = example(1, split="test")
    prompt = Prompt(
        example_id="e1",
        user_id="ann",
        split="test",
        text="",
        input="x",
        reference=test.reference,
        n_tokens=1,
        n_documents=0,
        n_words_cut=0,
    )
    scored = [scored_sample("<script>alert(1)</script> The harbour")]
    profile = Profile(example_id="e1", documents=())
    measured = measure_samples(scored, [prompt], [profile])
    assert measured["reward"].tolist() == [0.4]
    assert 0 < measured["similarity"].item() < 1
    assert "second_judge" not in measured
    again = measure_samples(scored, [prompt], [profile], scored)
    assert again["second_judge"].tolist() == [0.4]
    assert log_system(measured, step=2) == {"test_reward": {"value": 0.4, "step": 2}}
    assert log_system(measured, step=None) == {}
    results = create_results(PARAMS, 7, sft=measured, iteration_1=measured)
    figures = dict.fromkeys(
        [
            "train_reward_mean",
            "train_reward_kept_mean",
            "kept_fraction",
            "prompts_without_kept",
            "malformed",
            "duplicates",
            "mean_words",
            "sampling_seconds",
            "sampling_tokens_per_second",
            "training_seconds",
            "training_tokens_per_second",
        ],
        0.5,
    )
    times = side_by_side(
        pd.DataFrame({"node": ["sft.finetune"], "part": ["sft"], "seconds": [40.0]}),
        pd.DataFrame([["sft.finetune", "sft", 50.0, True]], columns=TIME_COLUMNS),
    )
    times.to_csv(tmp_path / "estimate_and_time.csv", index=False)
    html = create_report(
        results,
        [test],
        [profile],
        describe_data([test], RetrievalParams(k=2)),
        {"paths": 3, "words_median": 20, "copied": 0.125},
        7,
        RunTimes(str(tmp_path)),
        ingestion_counts=pd.DataFrame(
            [["<b>d</b>.csv", "records", "dropped", "bad record", "bad_records", 3]],
            columns=COUNTED,
        ),
        scored_sft=scored,
        scored_iteration_1=scored,
        sampling_sft={"seconds": 2.0, "tokens_per_second": 50.0},
        sampling_iteration_1={"seconds": 1.0, "tokens_per_second": 100.0},
        figures_iteration_1=figures,
        drawn_iteration_1=scored,
        kept_iteration_1=[SelectedSample(sample=scored[0].sample, reward=0.4, weight=1.0)],
        fine_tuning={"seconds": 6.0, "tokens_per_second": 10.0},
    )
    assert "<script>alert(1)" not in html
    page = shown(html)
    (row,) = page["held_out"]["examples"]
    assert row["reference"] == test.reference
    assert row["answers"]["iteration_1"][0]["path"] == "<b>calm</b>"
    (prompt,) = page["iterations"][0]["prompts"]
    assert prompt["kept"] == 1
    # of 2 + 1 + 6 + 0.5 + 0.5 seconds
    assert "<td>sft: training</td><td>6.0</td><td>60%</td><td>10</td>" in html
    assert "12.5% of their runs of eight words stand in the reference" in html
    assert "<td>sft</td><td>40.0</td><td>50.0</td><td>1.25</td>" in html
    assert f"What the users wrote has {len(test.reference.split())} words in the mean" in html
    assert "<td>&lt;b&gt;d&lt;/b&gt;.csv</td><td>records</td><td>dropped</td>" in html
    assert 'src="http' not in html


def shown(html: str) -> dict[str, Any]:
    """What the page's script reads."""
    (data,) = re.findall(
        r'<script type="application/json" id="browse">(.*?)</script>', html, re.DOTALL
    )
    found: dict[str, Any] = json.loads(data)
    return found


def one(example_id: str, response: str, reward: float, index: int = 0) -> ScoredSample:
    sample = replace(
        scored_sample(response).sample, example_id=example_id, sample_index=index, malformed=""
    )
    return ScoredSample(sample=sample, score=Score(reward=reward))


def test_examples_are_browsed_by_what_they_gained() -> None:
    held_out = [example(i, split="test") for i in (1, 2)] + [example(3, split="train")]
    profiles = [
        Profile(
            example_id=e.example_id,
            documents=(RetrievedDocument(document_id="d", text="t", similarity=0.25),),
        )
        for e in held_out
    ]
    scored = {
        "sft": [one("e1", "we sail at dawn", 0.5), one("e2", "x", 0.1)],
        "iteration_1": [one("e1", "we never sail at  dawn", 0.4), one("e2", "y", 0.3)],
    }
    found = browse_examples(held_out, profiles, scored, 7, system="iteration_1", baseline="sft")
    assert [row["gain"] for row in found["examples"]] == [0.2, -0.1]
    worst = found["examples"][1]
    assert worst["answers"]["iteration_1"][0]["text"] == [
        ("we ", False),
        ("never ", True),
        ("sail at  dawn", False),
    ]
    assert worst["documents"] == [{"id": "d", "similarity": 0.25, "text": "t"}]


def test_a_page_holds_no_more_examples_than_can_be_read() -> None:
    many = list(range(3 * MOST))
    some = draw_some(many, 7)
    assert len(set(some)) == MOST
    assert some == sorted(some) == draw_some(many, 7)
    assert draw_some(many, 8) != some
    assert draw_some(many[:MOST], 7) == many[:MOST]


def test_iterations_are_browsed_best_sample_first() -> None:
    drawn = [one("e1", "a b", 0.2, 0), one("e1", "c", 0.6, 1), one("e1", "d", 0.1, 2)]
    kept = [
        SelectedSample(sample=drawn[1].sample, reward=0.6, weight=1.0),
        SelectedSample(sample=drawn[2].sample, reward=0.1, weight=-1.0),
    ]
    ((prompt,),) = (
        own["prompts"]
        for own in browse_iterations([example(1)], {"iteration_1": drawn}, {"iteration_1": kept}, 7)
    )
    assert [(s["reward"], s["weight"]) for s in prompt["samples"]] == [
        (0.6, 1),
        (0.2, 0),
        (0.1, -1),
    ]
    assert (prompt["mean"], prompt["best"], prompt["kept"]) == (0.3, 0.6, 1)


def test_a_run_that_asked_validation_users_alone_says_so() -> None:
    own = table([0.1, 0.5, 0.2, 0.9] * 3).assign(split="validation")
    results = create_results(PARAMS, 7, sft=own, iteration_1=own)
    assert reported_split(results) == "validation"
    assert "6 held-out users (validation)" in state_result(results)
    assert "Held-out validation users" in describe_run(results)
    assert "iteration_1  0.4250 [" in describe_run(results)
