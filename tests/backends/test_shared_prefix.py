from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODEL_TYPES, build_policy
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MistralConfig

from rest_pg.backends import sampling
from rest_pg.backends.prefix_attention import ATTENTION, PrefixMemory, unsupported_reason
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.repeated_cache import RepeatedCacheGenerator
from rest_pg.backends.shared_prefix import SharedPrefixGenerator, fit_cache
from rest_pg.config import Decoding

REQUESTS = [
    GenerationRequest(example_id=f"e{i}", prompt=text, seeds=tuple(range(10 * i, 10 * i + n)))
    for i, (text, n) in enumerate([("ships in the bay", 3), ("a", 1), ("green hills, far", 2)])
]
GREEDY = Decoding(temperature=0, top_p=1, max_new_tokens=12)
NUCLEUS = Decoding(temperature=0.9, top_p=0.9, max_new_tokens=12)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_greedy_text_is_that_of_plain_generate(tmp_path: Path, model_type: str) -> None:
    policy = build_policy(tmp_path, model_type)
    ours = SharedPrefixGenerator(max_rows=4, dtype="float32").generate(policy, REQUESTS, GREEDY)
    model = AutoModelForCausalLM.from_pretrained(policy.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    for generation in ours:
        prompt = next(r.prompt for r in REQUESTS if r.example_id == generation.example_id)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        written = plain[0, ids.shape[1] :]
        assert generation.text == tokenizer.decode(written, skip_special_tokens=True)
        assert generation.n_tokens == len(written)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 64])
def test_samples_depend_on_their_seed_and_not_on_their_batch(policy, max_rows: int) -> None:
    ours = SharedPrefixGenerator(max_rows=max_rows, dtype="float32").generate(
        policy, REQUESTS, NUCLEUS
    )
    alone = RepeatedCacheGenerator().generate(policy, REQUESTS, NUCLEUS)
    assert ours == alone
    assert [(g.example_id, g.sample_index) for g in ours] == [
        ("e0", 0),
        ("e0", 1),
        ("e0", 2),
        ("e1", 0),
        ("e2", 0),
        ("e2", 1),
    ]
    assert len({g.text for g in ours if g.example_id == "e0"}) > 1


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_stream_is_the_sample_in_pieces(policy, tmp_path: Path, model_type: str) -> None:
    if model_type == "gpt2":  # whose attention isn't covered: in one piece
        policy = build_policy(tmp_path, "gpt2")
    engine = SharedPrefixGenerator(dtype="float32")
    request = replace(REQUESTS[0], seeds=(5,))
    *pieces, last = engine.stream(policy, request, NUCLEUS)
    assert [last] == engine.generate(policy, [request], NUCLEUS)
    assert "".join(pieces) == last.text
    assert (len(pieces) > 3) == (model_type == "llama")
    with pytest.raises(ValueError, match="3 samples can't be streamed: ask for one"):
        next(engine.stream(policy, REQUESTS[0], NUCLEUS))


@pytest.mark.parametrize(
    ("samples", "max_rows", "max_tokens", "expected"),
    [
        pytest.param([4] * 10, 8, 10**6, (8, 4), id="rows bound: 8 rows, 2 prompts and 2 more"),
        pytest.param([4] * 10, 8, 8 * 10 + 3 * 100, (8, 3), id="one prompt less"),
        pytest.param([4] * 10, 8, 4 * 10 + 2 * 100, (4, 2), id="tokens bound: fewer rows"),
        pytest.param([32], 64, 10**6, (32, 1), id="one prompt"),
        pytest.param([1], 64, 110, (1, 1), id="just fits"),
    ],
)
def test_memory_is_bounded_by_tokens(samples, max_rows, max_tokens, expected) -> None:
    assert fit_cache(samples, 100, 10, max_rows, max_tokens) == expected


def test_a_prompt_above_the_token_budget_names_both() -> None:
    with pytest.raises(ValueError, match=r"100 tokens with a sample of 10 .*max_cache_tokens=109"):
        fit_cache([4], 100, 10, 8, 109)


def test_a_small_token_budget_changes_no_sample(policy) -> None:
    tight = SharedPrefixGenerator(max_rows=64, max_cache_tokens=60, dtype="float32")
    wide = SharedPrefixGenerator(max_rows=64, dtype="float32")
    assert tight.generate(policy, REQUESTS, NUCLEUS) == wide.generate(policy, REQUESTS, NUCLEUS)


def test_no_request_gives_no_generation(policy) -> None:
    assert SharedPrefixGenerator(dtype="float32").generate(policy, [], NUCLEUS) == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_those_of_a_plain_forward(tmp_path: Path, model_type: str) -> None:
    policy = build_policy(tmp_path, model_type)
    # prompts and what is written behind them are longer than the sliding windows
    prompts = [list(range(20, 32)), list(range(40, 47))]
    written = [[50, 60, 70, 80, 90, 99], [51, 61, 71, 81, 91, 98]]
    shared = AutoModelForCausalLM.from_pretrained(policy.path, attn_implementation=ATTENTION)
    memory = PrefixMemory(
        shared.config,
        groups=2,
        rows=3,
        prefix_tokens=12,
        suffix_tokens=6,
        like=next(shared.parameters()),
    )
    plain = AutoModelForCausalLM.from_pretrained(policy.path, attn_implementation="eager").eval()
    with torch.inference_mode():
        shared.eval()
        for ids in prompts:
            memory.open_group(len(ids))
            shared(
                input_ids=torch.tensor([ids]),
                position_ids=torch.arange(len(ids))[None],
                use_cache=False,
                prefix_memory=memory,
            )
        rows = [(0, written[0]), (1, written[1]), (0, written[1])]
        for group, _ in rows:
            memory.open_row(group)
        for step in range(6):
            logits = shared(
                input_ids=torch.tensor([[ids[step]] for _, ids in rows]),
                position_ids=memory.plan_step(),
                use_cache=False,
                prefix_memory=memory,
            ).logits[:, -1]
            for (group, ids), own in zip(rows, logits, strict=True):
                expected = plain(torch.tensor([prompts[group] + ids[: step + 1]])).logits[0, -1]
                torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)


def test_what_is_not_covered_is_refused_by_name() -> None:
    assert unsupported_reason(MistralConfig(sliding_window=16)) is None
    reason = unsupported_reason(GPT2Config())
    assert reason is not None
    assert reason.startswith("model_type=gpt2 is not one of llama")


def test_another_architecture_falls_back_and_writes_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = build_policy(tmp_path, "gpt2")
    ours = SharedPrefixGenerator(dtype="float32").generate(policy, REQUESTS, NUCLEUS)
    assert "model_type=gpt2" in caplog.text
    assert ours == RepeatedCacheGenerator(torch.float32).generate(policy, REQUESTS, NUCLEUS)
    assert len(ours) == 6


def test_bad_arguments_name_value_and_remedy() -> None:
    with pytest.raises(ValueError, match="max_rows=0 is below 1: raise it"):
        SharedPrefixGenerator(max_rows=0)
    with pytest.raises(ValueError, match="dtype='half'"):
        SharedPrefixGenerator(dtype="half")


@pytest.fixture(params=["native", "torch"])
def draw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "torch":
        monkeypatch.setattr(sampling, "load_library", lambda: None)
    elif sampling.load_library() is None:
        pytest.skip("no machine code here")
    return sampling.draw_tokens


def test_draws_follow_the_renormalised_nucleus(draw) -> None:
    # softmax of these is .5 .25 .125 .125: the nucleus of 0.7 is the first two, 2/3 to 1/3
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(6000, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(6000)]
    counts = torch.bincount(draw(logits, 1.0, 0.7, generators), minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert counts[0].item() / 6000 == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
def test_both_ways_of_drawing_draw_the_same(vocabulary: int, monkeypatch) -> None:
    if sampling.load_library() is None:
        pytest.skip("no machine code here")
    logits = torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, ::3] = float("-inf")
    drawn = []
    for library in (sampling.load_library(), None):
        monkeypatch.setattr(sampling, "load_library", lambda library=library: library)
        generators = [torch.Generator().manual_seed(i) for i in range(200)]
        drawn.append(sampling.draw_tokens(logits, 0.7, 0.9, generators))
    assert torch.equal(*drawn)
    assert (drawn[0] % 3 != 0).all()
    assert len(drawn[0].unique()) > 2


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sampling.draw_tokens(torch.tensor([[0.1, 3.0, 1.0]]), 0, 1.0, []).tolist() == [1]
