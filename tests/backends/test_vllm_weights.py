"""Weights read back from an engine, against a checkpoint: what needs no vLLM."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_policy
from peft import LoraConfig
from safetensors.torch import load_file

from rest_pg.backends.adapters import save_adapters
from rest_pg.backends.vllm_weights import Weights, differing_weights
from rest_pg.backends.vllm_worker import digest
from rest_pg.records import PolicyCheckpoint

LAYER = "model.layers.0.self_attn"


def held(policy: PolicyCheckpoint, dtype: torch.dtype = torch.bfloat16) -> dict:
    """What an engine holds that has loaded the policy: some weights in one piece."""
    weights = load_file(policy.path / "model.safetensors")
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", own)) for own in ("q_proj", "k_proj", "v_proj")]
        weights[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
    for name in [name for name in weights if ".gate_proj." in name]:
        parts = [weights.pop(name.replace("gate_proj", own)) for own in ("gate_proj", "up_proj")]
        weights[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
    kind = str(dtype).removeprefix("torch.")
    return {name: (kind, digest(value.to(dtype))) for name, value in weights.items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_weights_are_known(tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    policy = build_policy(tmp_path, model_type)
    assert differing_weights(policy.path, held(policy, dtype)) == []


def test_one_changed_number_is_named(tmp_path: Path, policy) -> None:
    other = build_policy(tmp_path / "other", seed=1)
    assert f"{LAYER}.qkv_proj.weight" in differing_weights(policy.path, held(other))
    found = held(policy)
    weight = load_file(policy.path / "model.safetensors")["model.norm.weight"].bfloat16()
    weight[3] += 0.5
    found["model.norm.weight"] = ("bfloat16", digest(weight))
    assert differing_weights(policy.path, found) == ["model.norm.weight"]


def test_what_has_no_counterpart_is_named(policy) -> None:
    found = held(policy)
    found["own.scale"] = found.pop("model.norm.weight")
    assert differing_weights(policy.path, found) == ["model.norm.weight", "own.scale"]


def test_a_head_that_shares_the_embedding_may_be_missing(policy) -> None:
    found = held(policy)
    del found["lm_head.weight"]
    assert differing_weights(policy.path, found) == []


def test_zero_has_one_sign() -> None:
    assert digest(torch.tensor([0.0])) == digest(torch.tensor([-0.0]))


def test_what_fits_into_a_running_engine(tmp_path: Path, policy) -> None:
    own = Weights.of(policy)
    other = Weights.of(build_policy(tmp_path / "other", seed=1))
    assert own.fit(other)
    assert own != other
    assert not own.fit(Weights.of(build_policy(tmp_path / "smaller", num_hidden_layers=1)))
    small, large = (adapters(policy, tmp_path / str(rank), rank) for rank in (4, 64))
    assert small.engine_arguments() == {
        "model": str(policy.path),
        "enable_lora": True,
        "max_lora_rank": 8,
    }
    assert small.fit(large)
    assert not large.fit(small)
    assert not own.fit(small)


def adapters(base: PolicyCheckpoint, path: Path, rank: int) -> Weights:
    path.mkdir()
    values = {"base_model_name_or_path": str(base.path), "r": rank}
    (path / "adapter_config.json").write_text(json.dumps(values))
    return Weights.of(PolicyCheckpoint(path))


def test_adapters_need_a_whole_model_that_is_there(policy, tmp_path: Path) -> None:
    first = adapters(policy, tmp_path / "first", 4)
    assert first.adapter is not None
    with pytest.raises(ValueError, match="must be a whole model that is still there"):
        adapters(PolicyCheckpoint(first.adapter), tmp_path / "second", 4)


def test_our_own_adapters_know_a_model_that_was_changed_since(policy, tmp_path: Path) -> None:
    base = PolicyCheckpoint(shutil.copytree(policy.path, tmp_path / "base"))
    place = tmp_path / "adapters"
    place.mkdir()
    save_adapters(base, LoraConfig(r=4), {"a": torch.zeros(1)}, place)
    assert Weights.of(PolicyCheckpoint(place)).model == base.path
    shutil.rmtree(base.path)
    build_policy(base.path, seed=1)
    with pytest.raises(ValueError, match="gone or was changed"):
        Weights.of(PolicyCheckpoint(place))
