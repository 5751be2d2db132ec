from itertools import pairwise

import pandas as pd
import pytest
from conftest import example

from rest_pg.config import Decoding, EvaluationParams, RetrievalParams
from rest_pg.pipelines.data_ingestion.statistics import describe_data
from rest_pg.pipelines.study import create_pipeline
from rest_pg.pipelines.study.nodes import (
    COMPARED,
    CONTRAST_COLUMNS,
    STUDY_COLUMNS,
    compare_systems,
    count_costs,
    create_study_table,
    draw_curves,
    follow_iterations,
    remove_profiles,
)
from rest_pg.pipelines.study.report import (
    create_study_report,
    plot_contrasts,
    plot_iterations,
    state_contrasts,
    state_p,
)
from rest_pg.records import Profile, RetrievedDocument, Sample, Score, ScoredSample

PARAMS = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=1, max_new_tokens=8),
    n_bootstrap=200,
)
COSTS = {"samples": 4, "tokens": 200, "seconds": 10.0, "tokens_per_second": 20.0}
SFT = [0.1, 0.5, 0.2, 0.9] * 3


def measured(rewards: list[float]) -> pd.DataFrame:
    rows = [
        {
            "example_id": f"{split}{i}",
            "sample_index": 0,
            "user_id": f"u{i // 2}",
            "split": split,
            "task": "",
        }
        | dict.fromkeys(COMPARED, 0.0)
        | {"reward": reward}
        for split in ("validation", "test")
        for i, reward in enumerate(rewards)
    ]
    return pd.DataFrame(rows)


def by_seed(system: str, *rewards: list[float]) -> dict[str, pd.DataFrame]:
    return {f"{system}__{seed}": measured(own) for seed, own in enumerate(rewards)}


def metrics() -> dict[str, pd.DataFrame]:
    better = [r + gain for r, gain in zip(SFT, (0.1, 0.1, 0.2, 0.2) * 3, strict=True)]
    return by_seed("sft", SFT, SFT) | by_seed("rest_pg", better, SFT)


def test_the_table_worked_by_hand() -> None:
    table = create_study_table(PARAMS, 7, **metrics())
    assert list(table.columns) == STUDY_COLUMNS
    rows = table.set_index(["system", "split", "metric"])
    ours = rows.loc[("rest_pg", "test", "reward")]
    # 0.425, and half of the mean gain of 0.15, since one of two seeds gained nothing
    assert ours["mean"] == pytest.approx(0.5)
    assert ours[["n_users", "n_examples", "n_seeds"]].tolist() == [6, 12, 2]
    # mean gains .05 .05 .1 .1, three times: mean 0.075, standard deviation 0.026112, t = 9.950 with 11 degrees
    assert ours["p_value"] == pytest.approx(7.78e-7, abs=1e-6)
    assert pd.isna(rows.loc[("sft", "test", "reward"), "p_value"])


def test_contrasts_worked_by_hand() -> None:
    table = compare_systems(PARAMS, 7, **metrics())
    assert list(table.columns) == CONTRAST_COLUMNS
    row = table.set_index(["against", "split", "metric"]).loc[("sft", "test", "reward")]
    assert row["difference"] == pytest.approx(0.075)
    assert row["relative"] == pytest.approx(0.075 / 0.425, abs=1e-6)
    # seeds are resampled too: a resample may draw the one without a gain twice
    assert row["ci_low"] == 0
    assert 0.15 < row["ci_high"] < 0.2
    assert "no certain difference from sft" in state_contrasts(table)[0]
    one = {k: v for k, v in metrics().items() if k.endswith("__0")}
    assert (
        "REST-PG improves on sft: +0.1500 (+35.3%)"
        in (state_contrasts(compare_systems(PARAMS, 7, **one))[0])
    )


def test_a_p_value_is_never_written_as_zero() -> None:
    assert [state_p(p) for p in (0.0, 0.0004, 0.0414)] == ["p < 0.001", "p < 0.001", "p = 0.041"]


def test_a_split_of_one_example_has_no_p_value() -> None:
    one = {k: v.groupby("split").head(1) for k, v in metrics().items()}
    table = create_study_table(PARAMS, 7, **one)
    assert table["p_value"].isna().all()
    (sentence,) = state_contrasts(compare_systems(PARAMS, 7, **one))
    assert sentence.startswith("Fewer than 6 test users (1): no interval")


def test_iterations_are_followed_by_system() -> None:
    curves = {"rest_pg__0__7": measured(SFT), "rest_pg__1__7": measured([r + 0.1 for r in SFT])}
    # the second judge reads final systems alone
    curves["rest_pg__0__7"] = curves["rest_pg__0__7"].drop(columns="second_judge")
    table = follow_iterations(PARAMS, 7, **curves)
    test = table[table["split"] == "test"]
    assert test[["system", "iteration"]].to_numpy().tolist() == [["rest_pg", 0], ["rest_pg", 1]]
    assert test["mean"].tolist() == pytest.approx([0.425, 0.525])


def test_each_system_has_its_curves_worked_by_hand() -> None:
    curves = {"rest_pg__0__7": measured(SFT), "rest_pg__1__7": measured([r + 0.1 for r in SFT])}
    iterations = follow_iterations(PARAMS, 7, **curves)
    better = by_seed("rest_pg", [r + 0.1 for r in SFT])
    study = create_study_table(PARAMS, 7, **by_seed("sft", SFT), **better)
    drawn = draw_curves(study, iterations, last={"sft": 0, "rest_pg": 1})
    points = {s: {c.metric: c.points for c in own} for s, own in drawn.items()}
    assert points["sft"]["test_reward"] == [(0, pytest.approx(0.425))]
    assert points["sft"]["test_rouge_l"] == [(0, 0.0)]
    assert points["rest_pg"]["test_reward"] == [
        (0, pytest.approx(0.425)),
        (1, pytest.approx(0.525)),
    ]
    assert points["rest_pg"]["test_rouge_l"] == [(1, 0.0)]
    assert points["rest_pg"]["test_reward_ci_low"][1][1] <= 0.525


def test_costs_per_answer() -> None:
    (row,) = count_costs(rest_pg__7=COSTS).to_dict("records")
    assert row == {
        "system": "rest_pg",
        "training_seed": 7,
        "answers": 4,
        "tokens_per_answer": 50,
        "seconds_per_answer": 2.5,
        "tokens_per_second": 20,
    }


def test_every_system_is_wired_to_its_own_start() -> None:
    pipeline = create_pipeline(2, [1, 2])
    produced = {name: node for node in pipeline.nodes for name in node.outputs}
    for seed in (1, 2):
        block = f"seed_{seed}"
        for system, start in (
            ("rest_em", "sft"),
            ("rest_pg", "sft_reasoning"),
            ("random_selection", "sft_reasoning"),
        ):
            policies = [f"{block}.{start}.policy_0"]
            policies += [f"{block}.{system}.policy_{t}" for t in (1, 2)]
            for before, after in pairwise(policies):
                assert before in produced[after].inputs
        # the control's first draw is REST-PG's own, and its counts are matched each time
        for t, own in ((1, "rest_pg"), (2, "random_selection")):
            selects = produced[f"{block}.random_selection.iteration_{t}.selected_samples"]
            assert f"{block}.{own}.iteration_{t}.scored_samples" in selects.inputs
            assert f"{block}.rest_pg.iteration_{t}.selected_samples" in selects.inputs
        assert f"{block}.random_selection.iteration_1.samples" not in produced
        seeds = {i for n in pipeline.nodes if n.namespace for i in n.inputs if "seeds" in i}
        assert seeds == {"params:study_seeds.1", "params:study_seeds.2"}
    # what reads reasoning paths is what learns to write them
    readers = {n.namespace for n in pipeline.nodes if "reasoning_paths" in n.inputs}
    assert readers == {"seed_1.sft_reasoning", "seed_2.sft_reasoning"}
    table = produced["study"]
    assert "seed_1.rest_pg.evaluation_2.metrics" in table.inputs
    assert len([i for i in table.inputs if i.startswith("seed_")]) == 14


def test_seeds_must_differ() -> None:
    with pytest.raises(ValueError, match=r"study.seeds=\[3, 3\]"):
        create_pipeline(1, [3, 3])


def test_a_profile_is_removed_but_its_example_stays() -> None:
    kept = RetrievedDocument(document_id="d", text="x", similarity=0.5)
    assert remove_profiles([Profile(example_id="e1", documents=(kept,))]) == [
        Profile(example_id="e1", documents=())
    ]


def test_data_statistics_worked_by_hand() -> None:
    nine = "one two three four five six seven eight nine"
    copy = example(3, split="test", reference=nine + " ten")
    profile = (*copy.profile, copy.profile[0].__class__(document_id="c", user_id="ann", text=nine))
    examples = [
        example(1),
        example(2),
        example(4, split="validation"),
        example(3, split="test", reference=nine + " ten", profile=profile, copies_left_out=2),
    ]
    table = describe_data(examples, RetrievalParams(k=3)).set_index("split")
    # both training examples have the same reference of 8 words, and the same two documents
    assert table.loc["train", ["users", "examples", "duplicates", "near_copies"]].tolist() == [
        1,
        2,
        1,
        0,
    ]
    assert table.loc["train", "reference_words_median"] == 8
    assert table.loc["train", "profile_words_median"] == 15
    # 2 of the 3 8-grams of the reference are in the profile
    assert table.loc["test", "near_copies"] == 1
    assert table["copies_left_out"].tolist() == [0, 0, 2]
    # two of three documents
    assert table["short_profiles"].tolist() == [2, 1, 0]


def test_the_report_states_shows_and_escapes() -> None:
    sample = Sample(
        example_id="e1",
        sample_index=0,
        text="<script>alert(1)</script>",
        reasoning_path="calm",
        response="<script>alert(1)</script>",
        malformed="",
        finished=True,
        n_tokens=2,
    )
    scored = [ScoredSample(sample=sample, score=Score(reward=0.4))]
    curves = {"rest_pg__0__7": measured(SFT), "rest_pg__1__7": measured(SFT)}
    html = create_study_report(
        create_study_table(PARAMS, 7, **metrics()),
        compare_systems(PARAMS, 7, **metrics()),
        count_costs(rest_pg__7=COSTS),
        describe_data(
            [example(i, split=s) for i, s in enumerate(("train", "validation", "test"))],
            RetrievalParams(k=2),
        ),
        {"paths": 3, "words_median": 20, "copied": 0.0},
        plot_contrasts(compare_systems(PARAMS, 7, **metrics())),
        plot_iterations(follow_iterations(PARAMS, 7, **curves)),
        [example(1, split="test")],
        [Profile(example_id="e1", documents=())],
        7,
        scored_rest_pg=scored,
    )
    assert "no certain difference from sft" in html
    assert html.count("<td>0.4554</td>") == 1  # of test users alone
    assert "\\u003cscript\\u003ealert(1)" in html
    assert "<script>alert(1)" not in html
    assert 'src="http' not in html
