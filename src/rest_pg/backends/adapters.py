"""Low-rank adapters: added to a model for training, merged into it, or kept as a small policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from rest_pg.checksums import policy_fingerprint
from rest_pg.config import LoraParams
from rest_pg.records import PolicyCheckpoint

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's own names: other programs load such a directory too."""
BASE = "base_policy.json"
"""Which policy the adapters belong to: where it was, and its fingerprint."""
_COPIED = ("config.json", "generation_config.json")


def add_adapters(model: Any, lora: LoraParams, *, autocast: bool = False) -> Any:
    """Freeze a model, and put adapters beside each of its linear layers.

    Args:
        model: a causal language model.
        lora: rank, scale and dropout.
        autocast: the model will run under autocast, which gives products their type. PEFT's own casts of each
            adapter's input are left out then: the same numbers, 6% of a training step on two cores.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = not autocast
    return adapted


def merge_adapters(model: Any, config: PeftConfig, weights: dict[str, Tensor]) -> Any:
    """Add trained adapters to the weights that they were trained beside.

    Raises:
        ValueError: the names of the weights aren't those of the adapters that ``config`` describes.
    """
    merged = get_peft_model(model, config)
    known = {name for name in get_peft_model_state_dict(merged) if "lora_" in name}
    if known != set(weights):
        differing = sorted(known ^ set(weights))
        raise ValueError(
            f"{WEIGHTS} doesn't hold the adapters that {CONFIGURATION} describes: {len(differing)} names differ, "
            f"such as {differing[0]}. Take a complete copy of the policy, or train it again."
        )
    set_peft_model_state_dict(merged, weights)
    return merged.merge_and_unload()


def save_adapters(
    base: PolicyCheckpoint, config: PeftConfig, weights: dict[str, Tensor], path: Path
) -> None:
    """Write a policy that is adapters alone: the tokenizer is the caller's to add."""
    config.base_model_name_or_path = str(base.path)
    config.save_pretrained(str(path))
    save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, path / WEIGHTS)
    for name in _COPIED:
        if (base.path / name).is_file():
            shutil.copy(base.path / name, path / name)
    known = {"path": str(base.path), "fingerprint": policy_fingerprint(base)}
    (path / BASE).write_text(json.dumps(known, indent=2), encoding="utf-8")


def is_adapters(policy: PolicyCheckpoint) -> bool:
    """Say whether a policy is adapters alone."""
    return (policy.path / BASE).is_file()


def base_of(policy: PolicyCheckpoint) -> PolicyCheckpoint:
    """Return the policy that adapters were trained from.

    Raises:
        ValueError: it is gone, or another one by now.
    """
    known = json.loads((policy.path / BASE).read_text(encoding="utf-8"))
    base = PolicyCheckpoint(Path(known["path"]))
    if not base.path.is_dir() or policy_fingerprint(base) != known["fingerprint"]:
        raise ValueError(
            f"{policy.path} is adapters of the policy {base.path}, which is gone or was changed: "
            "restore it, or train again with lora.merge=true"
        )
    return base


def read_adapters(policy: PolicyCheckpoint) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return what :func:`merge_adapters` adds to a model."""
    config = LoraConfig.from_pretrained(str(policy.path))
    config.base_model_name_or_path = None  # PEFT warns where it isn't the model's own directory
    return config, load_file(policy.path / WEIGHTS)
