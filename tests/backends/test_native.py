"""Decoding in machine code, against PyTorch's own forward."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import MODEL_TYPES, build_policy
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rest_pg.backends.native import (
    NativeDecoder,
    NativeWeights,
    library,
    load_library,
    unsupported_reason,
)
from rest_pg.backends.native.weights import SUPPORTED, pack
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import Decoding

native = pytest.mark.skipif(
    torch.cuda.is_available()
    or not torch.cpu._is_avx512_bf16_supported()
    or not any(map(shutil.which, library.COMPILERS)),
    reason="a GPU is used, this CPU doesn't multiply bfloat16, or no C++ compiler is installed",
)
# around and beyond a panel of 64 tokens, an odd number, and the sliding window of the tests
PROMPTS = [[(7 * i + n) % 250 for i in range(n)] for n in (3, 64, 131)]
WRITTEN = [[(13 * i + n) % 250 for i in range(70)] for n in (5, 9)]
ROWS = [(0, 0), (2, 1), (1, 1), (0, 1), (2, 0)]


def start(path: Path, prompts: int, rows: int) -> NativeDecoder:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    code = load_library()
    assert code is not None
    sizes = {"groups": prompts, "rows": rows, "prefix_tokens": 131, "suffix_tokens": 70}
    return NativeDecoder(code, NativeWeights(model), **sizes)


def test_weights_in_panels_worked_by_hand() -> None:
    panels = pack(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    assert panels.shape == (1, 2, 64, 2)
    # of each pair of inputs, the first outputs' weights side by side; 62 outputs that are not there
    assert panels[0, 0, :3].tolist() == [[1, 2], [5, 6], [0, 0]]
    assert panels[0, 1, :3].tolist() == [[3, 4], [7, 8], [0, 0]]


@native
@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        *((model_type, {}) for model_type in SUPPORTED),
        # all products in tiles of 32, where the processor has them; and none of the weights'
        ("llama", {"head_dim": 32}),
        ("llama", {"hidden_size": 48, "intermediate_size": 80, "head_dim": 12}),
    ],
)
@torch.inference_mode()
def test_logits_are_as_near_to_float32_as_pytorchs(
    tmp_path: Path, model_type: str, sizes: dict[str, int]
) -> None:
    policy = build_policy(tmp_path, model_type, **sizes)
    decoder = start(policy.path, 3, 5)
    for ids in PROMPTS:
        decoder.open_group(torch.tensor([ids]))
    for group, _ in ROWS:
        decoder.open_row(group)
    rounded = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.bfloat16).eval()
    exact = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).eval()
    exact.load_state_dict(rounded.float().state_dict())
    rounded = rounded.to(torch.bfloat16)
    own, pytorchs = [], []
    for step in range(len(WRITTEN[0])):
        logits = decoder.step([WRITTEN[written][step] for _, written in ROWS])
        if step not in {0, 1, 62, 63, 64, 69}:
            continue
        for (group, written), row in zip(ROWS, logits, strict=True):
            ids = torch.tensor([PROMPTS[group] + WRITTEN[written][: step + 1]])
            expected = exact(ids).logits[0, -1]
            own.append((row - expected).norm() / expected.norm())
            pytorchs.append(
                (rounded(ids).logits[0, -1].float() - expected).norm() / expected.norm()
            )
    assert torch.stack(own).mean() < 1.1 * torch.stack(pytorchs).mean()
    assert torch.stack(own).max() < 0.15


@native
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX tiles")
@torch.inference_mode()
def test_without_tiles_the_numbers_are_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, found = build_policy(tmp_path), []
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_init_amx", lambda tiles=tiles: tiles)
        load_library.cache_clear()
        decoder = start(policy.path, 1, 20)
        read = decoder.open_group(torch.tensor([PROMPTS[2]]))
        for _ in range(20):  # of two blocks of tiles, the second one in part
            decoder.open_row(0)
        rows = [decoder.step([(7 * row + step) % 250 for row in range(20)]) for step in range(3)]
        found.append(torch.cat([read, *(logits.clone() for logits in rows)]))
    load_library.cache_clear()
    assert not torch.equal(*found)  # sums in another order: both ways were taken
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm()


@native
@torch.inference_mode()
def test_a_closed_place_is_taken_again_without_a_trace(tmp_path: Path) -> None:
    policy = build_policy(tmp_path)
    used, fresh = start(policy.path, 2, 2), start(policy.path, 2, 2)
    # longer than what follows in the same places
    used.open_group(torch.tensor([PROMPTS[2]]))
    used.open_row(0)
    for token in WRITTEN[0]:
        used.step([token])
    used.close_row(0)
    used.close_group(0)
    for decoder in (used, fresh):
        decoder.open_group(torch.tensor([PROMPTS[0]]))
        decoder.open_group(torch.tensor([PROMPTS[1]]))
        assert decoder.full == (True, False)
        decoder.open_row(1)
        decoder.open_row(0)
        assert [decoder.group_of(0), decoder.group_of(1)] == [1, 0]
    for token in WRITTEN[1][:5]:
        assert torch.equal(used.step([token, token + 1]), fresh.step([token, token + 1]))
    before = fresh.step([3, 4])[1].clone()
    used.step([3, 4])
    used.close_row(0)
    used.close_group(1)
    assert used.group_of(0) == 0
    assert torch.equal(used.step([7])[0], fresh.step([7, 7])[1])
    assert not torch.equal(before, fresh.step([7, 7])[1])


@native
@pytest.mark.parametrize("max_rows", [1, 2, 5, 64])
def test_samples_depend_on_their_seed_and_not_on_their_batch(policy, max_rows: int) -> None:
    requests = [
        GenerationRequest(example_id=f"e{i}", prompt=text, seeds=tuple(range(10 * i, 10 * i + n)))
        for i, (text, n) in enumerate([("ships in the bay", 7), ("a", 1), ("green hills, far", 3)])
    ]
    decoding = Decoding(temperature=0.9, top_p=0.9, max_new_tokens=40)
    alone = [
        g
        for r in requests
        for i, seed in enumerate(r.seeds)
        for g in SharedPrefixGenerator(dtype="bfloat16").generate(
            policy,
            [GenerationRequest(example_id=r.example_id, prompt=r.prompt, seeds=(seed,))],
            decoding,
        )
    ]
    together = SharedPrefixGenerator(max_rows=max_rows, dtype="bfloat16").generate(
        policy, requests, decoding
    )
    assert [g.text for g in together] == [g.text for g in alone]


@native
def test_one_thread_gives_the_same_numbers(tmp_path: Path) -> None:
    policy = build_policy(tmp_path)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with torch.inference_mode():
                decoder = start(policy.path, 1, 5)
                decoder.open_group(torch.tensor([PROMPTS[1]]))
                for _ in range(5):
                    decoder.open_row(0)
                found.append(torch.stack([decoder.step([9, 8, 7, 6, 5]).clone() for _ in range(3)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"hidden_size": 40}, "hidden_size=40, which 16 does not divide"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type=dynamic",
        ),
    ],
)
def test_what_is_not_covered_is_named(change: dict, reason: str | None) -> None:
    assert (
        unsupported_reason(LlamaConfig(**{"hidden_size": 64, "num_attention_heads": 4} | change))
        == reason
    )


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(SUPPORTED)))
def test_other_types_decode_in_pytorch(model_type: str) -> None:
    assert unsupported_reason(AutoConfig.for_model(model_type)) == f"model_type={model_type}"


@native
def test_without_a_compiler_samples_are_drawn_in_pytorch(
    policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    load_library.cache_clear()
    try:
        request = GenerationRequest(example_id="e", prompt="ships in the bay", seeds=(1, 2))
        drawn = SharedPrefixGenerator(dtype="bfloat16").generate(
            policy, [request], Decoding(temperature=0.9, top_p=0.9, max_new_tokens=5)
        )
        assert len(drawn) == 2
        assert "no C++ compiler is installed" in caplog.text
    finally:
        load_library.cache_clear()


@native
def test_code_that_does_not_compile_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(library, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_library.cache_clear()
    try:
        assert load_library() is None
        assert "can't compile broken.cpp" in caplog.text
        assert not list((tmp_path / "cache").rglob("*.so"))
    finally:
        load_library.cache_clear()


@native
@torch.inference_mode()
def test_what_there_is_no_room_for_is_refused(tmp_path: Path) -> None:
    decoder = start(build_policy(tmp_path).path, 1, 1)
    for length in (0, 132):
        with pytest.raises(
            ValueError, match=rf"a prompt of {length} tokens, and room for 1 to 131"
        ):
            decoder.open_group(torch.zeros(1, length, dtype=torch.long))
    decoder.open_group(torch.tensor([[5, 6]]))
    decoder.open_row(0)
    for _ in range(70):
        decoder.step([7])
    with pytest.raises(ValueError, match="a row has 70 tokens"):
        decoder.step([7])


@native
def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path: Path) -> None:
    decoder = start(build_policy(tmp_path, vocab_size=300).path, 1, 1)
    for ids in ([3, 300], [-1, 3], [10**6]):
        with pytest.raises(ValueError, match="and the model has 300"):
            decoder.open_group(torch.tensor([ids]))
    decoder.open_group(torch.tensor([[3, 299]]))
