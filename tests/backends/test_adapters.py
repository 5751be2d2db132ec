"""A policy that is adapters alone: small, and the same model wherever it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_policy
from transformers import AutoModelForCausalLM

from rest_pg.backends.adapters import add_adapters
from rest_pg.backends.models import load_model, whole_policy
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.checksums import policy_fingerprint
from rest_pg.config import Decoding, LoraParams, TrainingParams
from rest_pg.datasets import PolicyDataset
from rest_pg.records import PolicyCheckpoint, TrainingExample

EXAMPLES = [
    TrainingExample(example_id=str(i), prompt=f"<s>about {word}", completion=f"We {word}s.")
    for i, word in enumerate(["sail", "row"])
]
PARAMS = TrainingParams.model_validate(
    {
        "epochs": 4,
        "batch_size": 1,
        "learning_rate": 1e-2,
        "max_tokens": 64,
        "lora": {"r": 2, "alpha": 4, "merge": False},
    }
)


def train(base: PolicyCheckpoint, path: Path, *, merge: bool = False) -> PolicyCheckpoint:
    lora = {"r": 2, "alpha": 4, "merge": merge}
    params = TrainingParams.model_validate(PARAMS.model_dump() | {"lora": lora})
    trained, _ = SharedPromptTrainer(dtype="float32").train(base, EXAMPLES, params, seed=3)
    dataset = PolicyDataset(filepath=str(path))
    dataset.save(trained)
    return dataset.load()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(w, weights[name]) for name, w in one.state_dict().items())


def test_adapters_are_small_and_load_as_the_merged_policy_would(tmp_path: Path) -> None:
    base = build_policy(tmp_path / "base")
    small, whole = (train(base, tmp_path / str(m), merge=m) for m in (False, True))
    expected = load_model(whole, torch.float32)
    assert same(expected, load_model(small, torch.float32))
    assert not same(expected, load_model(base, torch.float32))
    weights = [sum(f.stat().st_size for f in p.path.glob("*.safetensors")) for p in (small, whole)]
    assert weights[0] < weights[1] / 2  # of a model of 32 columns; of larger ones far less
    requests = [GenerationRequest(example_id="e", prompt="<s>about sail", seeds=(1, 2))]
    decoding = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=6)
    drawn = [
        SharedPrefixGenerator(dtype="float32").generate(p, requests, decoding)
        for p in (small, whole)
    ]
    assert drawn[0] == drawn[1]


def test_under_autocast_adapters_compute_the_same_without_casts_of_their_own(
    tmp_path: Path,
) -> None:
    base = build_policy(tmp_path)
    found = []
    for autocast in (False, True):
        torch.manual_seed(1)
        model = add_adapters(
            load_model(base, torch.bfloat16), LoraParams(r=2, alpha=4), autocast=autocast
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        tokens = torch.arange(4, 20, device=model.device)[None]
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        gradients = [w.grad for w in model.parameters() if w.grad is not None]
        found.append([loss.detach(), *gradients])
    assert len(found[0]) > 10
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_engines_that_need_a_whole_model_get_one_for_as_long_as_they_use_it(tmp_path: Path) -> None:
    base = build_policy(tmp_path / "base")
    small = train(base, tmp_path / "small")
    with whole_policy(small) as merged:
        found = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
        assert same(load_model(small, torch.float32).cpu(), found)
    assert not merged.path.exists()
    with whole_policy(base) as unchanged:
        assert unchanged is base


def test_adapters_are_trained_on_top_of_adapters(tmp_path: Path) -> None:
    base = build_policy(tmp_path / "base")
    first = train(base, tmp_path / "first")
    second = train(first, tmp_path / "second")
    merged = train(train(base, tmp_path / "m1", merge=True), tmp_path / "m2", merge=True)
    for found, expected in zip(
        load_model(second, torch.float32).parameters(),
        load_model(merged, torch.float32).parameters(),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_a_base_that_is_gone_or_changed_is_named(tmp_path: Path) -> None:
    base = build_policy(tmp_path / "base")
    small = train(base, tmp_path / "small")
    before = policy_fingerprint(base)
    config = json.loads((base.path / "config.json").read_text())
    (base.path / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}, indent=1))
    assert policy_fingerprint(base) != before
    with pytest.raises(
        ValueError, match=r"adapters of the policy .*base, which is gone or was changed"
    ):
        load_model(small, torch.float32)
    shutil.rmtree(base.path)
    with pytest.raises(ValueError, match=r"gone or was changed: restore it, or train again"):
        load_model(small, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_four_bits_need_a_gpu(policy: PolicyCheckpoint) -> None:
    lora = {"r": 2, "alpha": 4, "bits": 4}
    params = TrainingParams.model_validate(PARAMS.model_dump() | {"lora": lora})
    with pytest.raises(ValueError, match=r"lora.bits=4 needs a GPU"):
        SharedPromptTrainer().train(policy, EXAMPLES, params, seed=3)
