import pytest
from conftest import build_policy
from transformers import AutoConfig, AutoModelForCausalLM

from rest_pg.cost import (
    ModelSize,
    Rates,
    judging_operations,
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
    assert training_operations(SIZE, **sizes, shared=False) == 3 * 2 * 2 * (3 * 144 + 540)


def test_seconds_worked_by_hand() -> None:
    rates = Rates(start_seconds=0.25, prefill=174, step_seconds=0.5, decode=540)
    # 6 rows in batches of 4: two batches of 2 steps
    seconds = sampling_seconds(SIZE, rates, n=2, m=3, prompt=4, output=2, max_rows=4)
    assert seconds == pytest.approx(0.25 + 2 + 2 * 2 * 0.5 + 2)
