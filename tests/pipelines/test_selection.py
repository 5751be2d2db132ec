from dataclasses import replace

import pytest

from rest_pg.config import ResponseFormat, SelectionParams
from rest_pg.pipelines.self_training.nodes import (
    create_training_examples,
    sample_seed,
    select_matched,
    select_samples,
)
from rest_pg.pipelines.self_training.selection import keep_best
from rest_pg.records import Prompt, Sample, Score, ScoredSample


def scored(index: int, reward: float, response: str | None = None, **fields) -> ScoredSample:
    values = {
        "example_id": "a",
        "sample_index": index,
        "text": f"text {index}",
        "reasoning_path": "calm",
        "response": f"response {index}" if response is None else response,
        "malformed": "",
        "finished": True,
        "n_tokens": 3,
    } | fields
    return ScoredSample(sample=Sample(**values), score=Score(reward=reward))


def params(**fields) -> SelectionParams:
    values = {
        "threshold": 0.5,
        "relative_to": "zero",
        "max_per_prompt": 2,
        "weighting": "uniform",
    }
    return SelectionParams(**(values | fields))


@pytest.mark.parametrize(
    ("rewards", "fields", "kept"),
    [
        pytest.param([0.2, 0.9, 0.7], {}, [1, 2], id="best first"),
        pytest.param([0.5, 0.4], {}, [0], id="threshold is inclusive"),
        pytest.param([0.9, 0.8, 0.7], {"max_per_prompt": 1}, [0], id="cap"),
        # the mean is 0.3: 0.5 and 0.3 are at least 0 above it
        pytest.param(
            [0.1, 0.3, 0.5], {"relative_to": "prompt_mean", "threshold": 0.0}, [2, 1], id="relative"
        ),
    ],
)
def test_keep_best(rewards: list[float], fields: dict, kept: list[int]) -> None:
    samples = [scored(i, reward) for i, reward in enumerate(rewards)]
    selected = keep_best(samples, params(**fields), seed=1)
    assert [s.sample.sample_index for s in selected] == kept


def test_ties_are_broken_by_the_seed_and_not_by_order() -> None:
    samples = [scored(i, 0.8) for i in range(6)]
    draws = {
        seed: [s.sample.sample_index for s in keep_best(samples, params(), seed)]
        for seed in range(8)
    }
    assert draws[3] == [s.sample.sample_index for s in keep_best(samples[::-1], params(), 3)]
    assert len({tuple(d) for d in draws.values()}) > 1


def test_equal_malformed_and_unfinished_samples_are_left_out() -> None:
    samples = [
        scored(0, 0.9, "same"),
        scored(1, 0.9, " same "),
        scored(2, 0.9, malformed="no_bridge"),
        scored(3, 0.9, finished=False),
    ]
    assert len(keep_best(samples, params(max_per_prompt=9), seed=1)) == 1


def test_weight_is_the_reward_if_so_configured() -> None:
    (kept,) = keep_best([scored(0, 0.8)], params(weighting="reward"), seed=1)
    assert (kept.weight, kept.reward) == (0.8, 0.8)


def test_nothing_above_the_threshold_names_value_limit_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"threshold=0.95 .*scored 0.900.*Lower the threshold"):
        select_samples([scored(0, 0.9)], params(threshold=0.95), 1)


def test_the_control_keeps_as_many_per_prompt_whatever_their_reward() -> None:
    samples = [scored(i, i / 10, example_id=e) for e in "ab" for i in range(6)]
    best = select_samples(samples, params(threshold=0.0), 1)
    draws = {seed: select_matched(samples, best, params(), seed) for seed in range(12)}
    for kept in draws.values():
        assert sorted(s.sample.example_id for s in kept) == ["a", "a", "b", "b"]
    rewards = [s.reward for kept in draws.values() for s in kept]
    # 48 draws from 0, 0.1 … 0.5, and not only the best
    assert len(set(rewards)) == 6
    again = select_matched(samples[::-1], best[::-1], params(), 3)
    assert {s.sample for s in again} == {s.sample for s in draws[3]}


def test_the_control_leaves_out_what_could_not_be_learnt() -> None:
    best = select_samples([scored(i, 0.9) for i in range(2)], params(), 1)
    own = [scored(0, 0.1), scored(1, 0.9, finished=False), scored(2, 0.9, malformed="no_bridge")]
    assert [s.sample.sample_index for s in select_matched(own, best, params(), 1)] == [0]


def test_seeds_depend_on_what_is_drawn() -> None:
    seeds = {
        sample_seed(seed, stage, example, index)
        for seed in (1, 2)
        for stage in ("iteration_1", "iteration_2")
        for example in ("a", "b")
        for index in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_worst_go_along_as_rejected_and_never_what_equals_the_best() -> None:
    samples = [scored(i, reward) for i, reward in enumerate([0.2, 0.9, 0.7, 0.1])]
    pair = keep_best(samples, params(rejected_per_prompt=2, max_per_prompt=1), seed=1)
    assert [(s.sample.sample_index, s.weight) for s in pair] == [(1, 1.0), (0, -1.0), (3, -1.0)]
    equal = [scored(i, 0.9) for i in range(3)]
    assert len(keep_best(equal, params(rejected_per_prompt=2, max_per_prompt=1), seed=1)) == 1
    # no prompt has a rejected sample alone
    assert keep_best([scored(0, 0.4), scored(1, 0.3)], params(rejected_per_prompt=1), seed=1) == []


def test_what_was_cut_off_or_malformed_is_rejected_before_the_worst_whatever_its_reward() -> None:
    samples = [
        scored(0, 0.9),
        scored(1, 0.8, finished=False),
        scored(2, 0.1),
        scored(3, 0.0, malformed="no_bridge"),
    ]
    pairs = keep_best(samples, params(rejected_per_prompt=2, max_per_prompt=1), seed=1)
    assert [(s.sample.sample_index, s.weight) for s in pairs] == [(0, 1.0), (1, -1.0), (3, -1.0)]
    # what was cut off before its first word holds nothing to learn from
    empty = replace(samples[1], sample=replace(samples[1].sample, text=" "))
    pairs = keep_best([samples[0], empty], params(rejected_per_prompt=1), seed=1)
    assert [s.sample.sample_index for s in pairs] == [0]


def test_a_loop_is_rejected_before_the_worst_unless_users_write_so() -> None:
    loop = "we sail at dawn " * 4  # four words, four times
    samples = [scored(0, 0.9, loop), scored(1, 0.6), scored(2, 0.1), scored(3, 0.8, loop[:-16])]
    chosen = {"threshold": 0.0, "max_per_prompt": 1, "rejected_per_prompt": 1}
    pair = keep_best(samples, params(**chosen), seed=1)
    assert [(s.sample.sample_index, s.weight) for s in pair] == [(3, 1.0), (0, -1.0)]
    pair = keep_best(samples, params(**chosen, reject_loops=False), seed=1)
    assert [(s.sample.sample_index, s.weight) for s in pair] == [(0, 1.0), (2, -1.0)]
    control = [select_matched(samples, pair, params(), seed) for seed in range(8)]
    assert all(s.sample.sample_index for kept in control for s in kept if s.weight > 0)


def test_the_control_of_pairs_has_pairs_whatever_their_reward() -> None:
    samples = [scored(i, i / 10) for i in range(6)]
    pairs = select_samples(samples, params(threshold=0.0, rejected_per_prompt=1), 1)
    draws = [select_matched(samples, pairs, params(), seed) for seed in range(12)]
    assert all([s.weight for s in kept] == [1.0, 1.0, -1.0] for kept in draws)
    assert all(len({s.sample.sample_index for s in kept}) == 3 for kept in draws)
    assert any(kept[0].reward < kept[2].reward for kept in draws)


def test_what_is_rejected_is_learnt_as_it_was_written() -> None:
    response_format = ResponseFormat(reasoning=True, lead_in="Style:", bridge="Answer:")
    samples = [
        scored(0, 0.9),
        scored(1, 0.8, finished=False, text=" Style: one Answer: two and "),
        scored(2, 0.0, malformed="no_bridge", text="Nothing of it"),
    ]
    kept = keep_best(samples, params(rejected_per_prompt=2, max_per_prompt=1), seed=1)
    texts = {"text": "Write.", "input": "i", "reference": "r"}
    counts = dict.fromkeys(("n_tokens", "n_documents", "n_words_cut"), 0)
    prompt = Prompt(example_id="a", user_id="u", split="train", **texts, **counts)
    examples = create_training_examples(kept, [prompt], response_format)
    assert [(e.completion, e.finished) for e in examples] == [
        ("Style:\ncalm\nAnswer:\nresponse 0", True),
        ("Style: one Answer: two and", False),
        ("Nothing of it", True),
    ]
