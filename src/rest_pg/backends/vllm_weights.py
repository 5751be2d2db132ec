"""Which weights vLLM holds: read back from its workers, and compared with a checkpoint's, byte for byte.

A stale policy answers as fluently as a fresh one; only its weights tell them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rest_pg.backends.adapters import base_of, is_adapters
from rest_pg.backends.vllm_worker import Digests, digest
from rest_pg.checksums import policy_fingerprint
from rest_pg.records import PolicyCheckpoint

LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Sizes that vLLM keeps room for."""

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What vLLM holds as one matrix, and a checkpoint as several, top to bottom."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a policy is made of, as vLLM takes it: a model, and a LoRA adapter if that is the policy."""

    fingerprint: str
    model: Path
    config: str
    """What the model is built by: weights of another model of the same one fit in its place."""
    adapter: Path | None = None
    rank: int = 0

    @classmethod
    def of(cls, policy: PolicyCheckpoint) -> Weights:
        """Read what a policy says of itself; an adapter names the model that it goes with.

        Raises:
            ValueError: an adapter's model is gone or was changed, or is an adapter itself.
        """
        fingerprint, adapter = policy_fingerprint(policy), policy.path / "adapter_config.json"
        if not adapter.is_file():
            return cls(fingerprint, policy.path, _config(policy.path))
        values = json.loads(adapter.read_text(encoding="utf-8"))
        # what this project trained knows its model by fingerprint too; other adapters by its place alone
        own = is_adapters(policy)
        model = base_of(policy).path if own else Path(values["base_model_name_or_path"])
        if not model.is_dir() or (model / adapter.name).is_file():
            raise ValueError(
                f"{policy.path} holds adapters of {model}, which must be a whole model that is still "
                "there: restore it, or train with merged adapters"
            )
        rank = next((r for r in LORA_RANKS if r >= values["r"]), values["r"])
        return cls(fingerprint, model, str(model), policy.path, rank)

    def fit(self, running: Weights) -> bool:
        """Say whether an engine that was started on other weights has room for these."""
        alike = (self.adapter is None) == (running.adapter is None)
        return alike and self.config == running.config and self.rank <= running.rank

    def engine_arguments(self) -> dict[str, Any]:
        """Return what vLLM is started with for them."""
        named = {"model": str(self.model)}
        return (
            named
            if self.adapter is None
            else named | {"enable_lora": True, "max_lora_rank": self.rank}
        )

    def lora_request(self) -> Any:
        """Return what each request names the adapter by; none for a model."""
        if self.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = int(hashlib.sha256(self.fingerprint.encode()).hexdigest()[:7], 16) + 1
        return LoRARequest(self.fingerprint[:16], number, str(self.adapter))


def _config(path: Path) -> str:
    values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("transformers_version", "_name_or_path", "dtype"):
        values.pop(name, None)
    return json.dumps(values, sort_keys=True)


def differing_weights(path: Path, held: Digests) -> list[str]:
    """Return the weights that a worker holds otherwise than the checkpoint in ``path`` does.

    Those that vLLM has by another name, or in another order, are among them: they can't be told.

    Args:
        path: directory with safetensors.
        held: what a worker that holds a whole model has read back.
    """
    wanted = dict(_fused(path))
    alike = {
        name
        for name in held.keys() & wanted.keys()
        if _digest_of(wanted[name], held[name][0]) == held[name][1]
    }
    # a head that shares the embedding's weight is one with it
    return sorted((held.keys() | wanted.keys()) - alike - _shared_heads(held))


def _shared_heads(held: Digests) -> set[str]:
    return {"lm_head.weight"} - held.keys()


def _digest_of(parts: list[tuple[Path, str]], dtype: str) -> str:
    return digest(torch.cat([_read(*part) for part in parts]).to(getattr(torch, dtype)))


def _fused(path: Path) -> Iterator[tuple[str, list[tuple[Path, str]]]]:
    """Yield each weight by the name that vLLM has for it, and where its parts stand."""
    places: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    for name, file in places.items():
        layer, _, kind = name.rpartition(".")
        block, _, own = layer.rpartition(".")
        group = next((g for g, parts in FUSED.items() if own in parts), None)
        if group is None:
            yield name, [(file, name)]
        elif own == FUSED[group][0]:
            names = [f"{block}.{part}.{kind}" for part in FUSED[group]]
            yield f"{block}.{group}.{kind}", [(places[n], n) for n in names if n in places]


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        weight: Tensor = tensors.get_tensor(name)
    return weight
