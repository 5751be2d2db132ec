import pytest
from conftest import build_policy
from transformers import AutoConfig, AutoModelForCausalLM

from rest_pg.cost import (
    ModelSize,
    Rates,
    Step,
    Trial,
    decoding_steps,
    fit_rates,
    judging_operations,
    retrieval_operations,
    sampling_operations,
    sampling_seconds,
    training_operations,
)

# F = 20, H = 2 * 3 * 5 = 30, A(c) = 4 * 1 * 2 * c = 8c
SIZE = ModelSize(body=10, hidden=3, vocabulary=5, layers=1, query_size=2)


def test_sizes_are_those_of_the_weights(tmp_path) -> None:
    policy = build_policy(tmp_path)
    size = ModelSize.of(AutoConfig.from_pretrained(policy.path))
    model = AutoModelForCausalLM.from_pretrained(policy.path)
    body = sum(
        p.numel() for n, p in model.model.layers.named_parameters() if n.endswith("j.weight")
    )
    assert (size.body, size.hidden, size.vocabulary) == (body, 32, len(model.lm_head.weight))
    assert (size.layers, size.query_size) == (2, 32)


def test_sampling_worked_by_hand() -> None:
    # prefill: 4 * (20 + 8 * 2) + 30 = 174; written: 3 * 2 * (20 + 30 + 8 * 5) = 540
    assert sampling_operations(SIZE, n=2, m=3, prompt=4, output=2) == 2 * (174 + 540)
    alone = sampling_operations(SIZE, n=2, m=3, prompt=4, output=2, shared=False)
    assert alone == 2 * (3 * 174 + 540)


def test_judging_worked_by_hand() -> None:
    # text: 4 * (20 + 8 * 2) = 144; scored: 3 * 2 * 90 = 540
    assert judging_operations(SIZE, n=1, m=3, static=4, output=2) == 144 + 540
    assert judging_operations(SIZE, n=1, m=3, static=4, output=2, shared=False) == 3 * 144 + 540


def test_training_worked_by_hand() -> None:
    sizes = {"n": 2, "k": 3, "prompt": 4, "output": 2, "epochs": 2}
    assert training_operations(SIZE, **sizes) == 3 * 2 * 2 * (144 + 540)
    assert training_operations(SIZE, **sizes, lora=True) == 2 * 2 * 2 * (144 + 540)
    # pairs are read once more, whatever the number of epochs
    assert training_operations(SIZE, **sizes, lora=True, pairs=True) == 5 * 2 * (144 + 540)
    assert training_operations(SIZE, **sizes, shared=False) == 3 * 2 * 2 * (3 * 144 + 540)


def test_rows_are_filled_as_they_fall_free() -> None:
    # two rows: 4 steps and 1; the second takes the third sample, 2 more; the last one starts at 3
    assert decoding_steps([5, 2, 3, 4], 2) == 3 + 3
    assert decoding_steps([5, 2, 3, 4], 4) == 4
    assert decoding_steps([], 4) == 0


def test_seconds_worked_by_hand() -> None:
    # a token behind 4 others: 20 + 30 + 8 * 4 = 82; attention to one token: 8
    rates = Rates(start_seconds=0.25, prefill=174, step_seconds=0.5, decode=82, attention=4)
    # prefill of 2 prompts: 2 s; two shards of 1 and 2 steps; 2 + 2 tokens behind the first ones: 4 s;
    # the samples of 2 attend to 1 token, that of 3 to 1 + 2: (1 + 3) * 8 / 4 = 8 s for 1, 1 and 2 steps
    seconds = sampling_seconds(SIZE, rates, n=2, prompt=4, shards=[[2, 2], [3, 1]], max_rows=4)
    assert seconds == pytest.approx(0.25 + 2 + (1 + 2) * 0.5 + 4 + (1 + 1 + 3) * 8 / 4)


def test_rates_are_found_again_in_what_they_give() -> None:
    rates = Rates(start_seconds=1.5, prefill=174, step_seconds=0.5, decode=820, attention=64)

    def steps(rows: int, n: int) -> list[Step]:
        # 82 / 820 = 0.1 s a row; and 8 / 64 = 0.125 s for each token that a row attends to
        each = [0.5 + rows * (0.1 + 0.125 * written) for written in range(1, n + 1)]
        return [Step(rows, written, seconds) for written, seconds in enumerate(each, start=1)]

    trials = [Trial(9, 1, 4, steps(2, 3)), Trial(9, 1, 4, steps(8, 5))]
    found = fit_rates(SIZE, Trial(2.5, 1, 4), Trial(3.0, 3, 4), trials)
    assert found.start_seconds == rates.start_seconds
    assert found.prefill == rates.prefill
    for name in ("step_seconds", "decode", "attention"):
        assert getattr(found, name) == pytest.approx(getattr(rates, name))


def test_no_rate_is_negative_however_the_clock_was_disturbed() -> None:
    # more rows took less time
    trials = [Trial(9, 1, 4, [Step(1, 0, 0.6)] * 3), Trial(9, 1, 4, [Step(8, 0, 0.4)] * 3)]
    found = fit_rates(SIZE, Trial(0.5, 1, 4), Trial(3.0, 3, 4), trials)
    assert found.start_seconds == 0
    assert found.step_seconds == pytest.approx(0.5)
    assert (found.decode, found.attention) == (float("inf"), float("inf"))


def test_retrieval_reads_every_document_and_compares_it_once() -> None:
    # 2 users with 3 documents of 5 tokens: 30 tokens of 2 * 10 operations, and 6 products of 4 numbers
    found = retrieval_operations(n=2, documents=3, tokens=5, embedder_weights=10, embedding_size=4)
    assert found == 30 * 20 + 6 * 8
