from dataclasses import replace

import pandas as pd
import pytest
from conftest import document, example

from rest_pg.backends.models import load_tokenizer
from rest_pg.config import Decoding, EvaluationParams, ResponseFormat
from rest_pg.pipelines.evaluation.nodes import METRICS
from rest_pg.pipelines.experiments import (
    create_exploration,
    create_forced_paths,
    create_path_effect,
    create_shuffled_profiles,
    create_starts,
)
from rest_pg.pipelines.experiments.nodes import (
    COLUMNS,
    create_table,
    force_paths,
    plot_table,
    shuffle_profiles,
    take_first,
)
from rest_pg.pipelines.experiments.path_effect import (
    decompose_reward,
    open_paths,
    plot_decomposition,
)
from rest_pg.prompts import count_tokens
from rest_pg.records import PolicyCheckpoint, Prompt, ReasoningPath, Sample, Score, ScoredSample

PARAMS = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=1, max_new_tokens=8),
    n_bootstrap=200,
)

FORMAT = ResponseFormat(reasoning=True, lead_in="Style:", bridge="So:")


def scored(example_id: str, index: int) -> ScoredSample:
    sample = Sample(
        example_id=example_id,
        sample_index=index,
        text="",
        reasoning_path="",
        response="x",
        malformed="",
        finished=True,
        n_tokens=1,
    )
    return ScoredSample(sample=sample, score=Score(reward=0.5))


def test_a_smaller_budget_is_the_head_of_a_larger_one() -> None:
    drawn = [scored(e, i) for e in "ab" for i in range(4)]
    kept = take_first(drawn, samples_per_prompt=2)
    assert [(s.sample.example_id, s.sample.sample_index) for s in kept] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]


def held_out() -> list:
    return [
        example(
            100 * s + 10 * n + i,
            user_id=user,
            split=split,
            profile=(document(1, f"by {user}", user),),
        )
        for s, split in enumerate(("train", "validation", "test"))
        for n, user in enumerate((f"{split}-a", f"{split}-b", f"{split}-c"))
        for i in range(2)
    ]


@pytest.mark.parametrize(("share", "replaced"), [(0.0, 0), (0.5, 6), (1.0, 12)])
def test_profiles_of_others_take_the_place_of_own_ones(share: float, replaced: int) -> None:
    examples = held_out()
    shuffled = shuffle_profiles(examples, 7, share=share)
    assert {e.split for e in shuffled} == {"validation", "test"}
    foreign = [e for e in shuffled if e.profile[0].user_id != e.user_id]
    assert len(foreign) == replaced
    # from the same split: nobody reads what the policy was trained on
    assert all(e.profile[0].user_id.startswith(e.split) for e in foreign)
    everything = {e.example_id: e for e in shuffle_profiles(examples, 7, share=1.0)}
    assert all(everything[e.example_id] == e for e in foreign)


def test_one_user_has_nobody_to_exchange_with() -> None:
    alone = [example(1, split="validation"), example(2, split="test")]
    with pytest.raises(ValueError, match="hold out more users"):
        shuffle_profiles(alone, 7, share=1.0)


def test_each_case_is_trained_from_what_it_names() -> None:
    exploration = create_exploration([1, 4])
    produced = {name: node for node in exploration.nodes for name in node.outputs}
    # drawn once, for both
    assert sum(n.name.endswith("sample_largest_budget") for n in exploration.nodes) == 1
    for m in (1, 4):
        head = produced[f"exploration.m_{m}.scored_samples"]
        assert head.inputs == ["exploration.scored_samples"]
        assert head.func.keywords == {"samples_per_prompt": m}
        assert f"exploration.m_{m}.policy_1" in produced
    starts = create_starts(3)
    produced = {name: node for node in starts.nodes for name in node.outputs}
    for start in ("base", "sft", "previous"):
        trained = produced[f"starts.{start}.policy_3"]
        assert trained.func.keywords == {"start": start}
        assert {"base_policy", "policy_0", "policy_2"} <= set(trained.inputs)
    shuffled = create_shuffled_profiles(2, [1.0])
    tables = [n for n in shuffled.nodes if n.outputs == ["shuffled_profiles_table"]]
    metrics = {i for i in tables[0].inputs if i.endswith("metrics")}
    assert metrics == {
        f"shuffled_profiles.share_{share}.{system}.evaluation.metrics"
        for share in (0, 100)
        for system in ("sft", "rest_pg")
    }


def held_out_prompts() -> tuple[list[Prompt], list[ReasoningPath]]:
    users = {"a": "test", "b": "test", "c": "validation", "d": "validation", "e": "train"}
    prompts = [
        Prompt(
            example_id=f"x{user}",
            user_id=user,
            split=split,
            text="ask\n",
            input="ask",
            reference="r",
            n_tokens=1,
            n_documents=0,
            n_words_cut=0,
        )
        for user, split in users.items()
    ]
    paths = [
        ReasoningPath(example_id=p.example_id, text=f"by {p.user_id}", copied_ngrams=0.0)
        for p in prompts[:4]
    ]
    return prompts, paths


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("teacher", ["Style:\nby a\nSo:\n", "Style:\nby b\nSo:\n", "Style:\nby c\nSo:\n"]),
        ("others", ["Style:\nby b\nSo:\n", "Style:\nby a\nSo:\n", "Style:\nby d\nSo:\n"]),
        ("empty", ["Style:\nSo:\n"] * 3),
    ],
)
def test_paths_stand_behind_held_out_prompts(
    source: str, expected: list[str], policy: PolicyCheckpoint
) -> None:
    prompts, paths = held_out_prompts()
    forced = force_paths(prompts, paths, policy, FORMAT, 7, source=source)
    assert [p.example_id for p in forced] == ["xa", "xb", "xc", "xd"]
    assert [p.text.removeprefix("ask\n") for p in forced][:3] == expected
    tokenizer = load_tokenizer(policy)
    assert [p.n_tokens for p in forced] == [count_tokens(tokenizer, p.text) for p in forced]


def test_forced_responses_are_read_without_a_path() -> None:
    produced = {name: node for node in create_forced_paths(2).nodes for name in node.outputs}
    own = produced["forced_paths.own.evaluation.samples"]
    assert {"prompts", "params:response_format", "policy_2"} <= set(own.inputs)
    forced = produced["forced_paths.teacher.evaluation.samples"]
    assert {"forced_paths.teacher.prompts", "params:direct_response_format"} <= set(forced.inputs)


def with_path(example_id: str, index: int, path: str, malformed: str = "") -> Sample:
    drawn = scored(example_id, index).sample
    return replace(drawn, reasoning_path=path, malformed=malformed)  # type: ignore[arg-type]


def test_the_first_different_paths_of_a_prompt_are_gone_on_from(policy: PolicyCheckpoint) -> None:
    prompts, _ = held_out_prompts()
    samples = [
        with_path("xa", 0, "short"),
        with_path("xa", 1, "short"),
        with_path("xa", 2, "cut", "repeated_bridge"),
        with_path("xa", 3, "long"),
        with_path("xa", 4, "third"),
        with_path("xb", 0, "alone"),
        with_path("xc", 0, "one"),
        with_path("xc", 1, "two"),
    ]
    opened = open_paths(prompts, samples, policy, FORMAT, paths_per_prompt=2)
    assert [(p.example_id, p.text) for p in opened] == [
        ("xa/path_0", "ask\nStyle:\nshort\nSo:\n"),
        ("xa/path_1", "ask\nStyle:\nlong\nSo:\n"),
        ("xc/path_0", "ask\nStyle:\none\nSo:\n"),
        ("xc/path_1", "ask\nStyle:\ntwo\nSo:\n"),
    ]
    tokenizer = load_tokenizer(policy)
    assert [p.n_tokens for p in opened] == [count_tokens(tokenizer, p.text) for p in opened]
    with pytest.raises(ValueError, match="1 of 5 prompts have two different reasoning paths"):
        open_paths(prompts, samples[:-1], policy, FORMAT, paths_per_prompt=2)
    with pytest.raises(ValueError, match="reasoning=false"):
        open_paths(prompts, samples, policy, ResponseFormat(reasoning=False), paths_per_prompt=2)


def test_what_decides_a_reward_worked_by_hand() -> None:
    rewards = {
        "xa/path_0": (0.2, 0.4),
        "xa/path_1": (0.6, 0.8),
        "xb/path_0": (0.5, 0.5),
        "xb/path_1": (0.1, 0.3),
    }
    drawn = [
        replace(scored(name, i), score=Score(reward=reward))
        for name, own in rewards.items()
        for i, reward in enumerate(own)
    ]
    (a, b, *_), _ = held_out_prompts()
    prompts = [
        replace(prompt, example_id=f"{prompt.example_id}/path_{number}")
        for prompt in (a, b)
        for number in range(2)
    ]
    table = decompose_reward(drawn, prompts, PARAMS, 7).set_index("component")
    # within the paths 0.02 and 0.01; among their means 0.08 and 0.045, of which responses leave half of that;
    # the prompts' means, 0.5 and 0.35, vary by 0.01125, of which paths and responses leave 0.03125
    assert table["variance"].to_dict() == pytest.approx(
        {"prompt": -0.02, "path": 0.055, "response": 0.015}
    )
    assert table["share"].to_dict() == pytest.approx({"prompt": -0.4, "path": 1.1, "response": 0.3})
    assert (table["n_users"] == 2).all()
    assert (table["n_prompts"] == 2).all()
    assert (table["ci_low"] <= table["share"]).all()
    assert (table["share"] <= table["ci_high"]).all()
    (points,) = plot_decomposition(table.reset_index()).data
    assert list(points.y) == pytest.approx([-0.4, 1.1, 0.3])


def test_responses_are_drawn_behind_the_paths_of_the_last_iteration() -> None:
    produced = {name: node for node in create_path_effect(3, 2, 4).nodes for name in node.outputs}
    assert "iteration_3.samples" in produced["path_effect.prompts"].inputs
    drawn = produced["path_effect.samples"]
    assert {"policy_2", "path_effect.prompts", "params:direct_response_format"} <= set(drawn.inputs)
    assert drawn.func.keywords == {"iteration": 3, "samples_per_prompt": 4}
    with pytest.raises(ValueError, match="1 paths of 4 responses: take 2"):
        create_path_effect(3, 1, 4)


@pytest.mark.parametrize("budgets", [[], [4, 2], [0, 1], [2, 2]])
def test_budgets_must_rise(budgets: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        create_exploration(budgets)


def test_a_budget_of_one_has_no_pairs() -> None:
    with pytest.raises(ValueError, match=r"budgets=\[1, 4\] must rise, from 2 or more"):
        create_exploration([1, 4], least=2)


def test_shares_are_shares() -> None:
    with pytest.raises(ValueError, match=r"shares=\[50\]"):
        create_shuffled_profiles(1, [50])


def test_table_and_plot() -> None:
    rows = [
        {"example_id": f"{split}{i}", "user_id": f"u{i}", "split": split, "task": ""}
        | dict.fromkeys(METRICS, 0.0)
        | {"reward": reward}
        for split in ("validation", "test")
        for i, reward in enumerate((0.2, 0.4) * 3)
    ]
    table = create_table(PARAMS, 7, case_8=pd.DataFrame(rows))
    assert list(table.columns) == COLUMNS
    row = table.set_index(["case", "split", "metric"]).loc[("8", "test", "reward")]
    assert row["mean"] == pytest.approx(0.3)
    assert 0.2 <= row["ci_low"] < 0.3 < row["ci_high"] <= 0.4
    figure = plot_table(table, experiment="exploration")
    assert [trace.name for trace in figure.data] == ["test", "validation", "paper (its judge)"]
    assert figure.data[0].y == pytest.approx((0.3,))
