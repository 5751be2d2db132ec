"""What runs inside vLLM's workers: weights are read back from the memory that answers.

Imported by each worker, so it needs nothing but torch.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

Digests = dict[str, tuple[str, str]]
"""By a weight's name: its type, such as bfloat16, and the SHA-256 of its bytes."""


class WeightReader:
    """What vLLM adds to each of its workers (``worker_extension_cls``): a way to read weights back."""

    model_runner: Any

    def digest_weights(self) -> Digests:
        """Return the digest of every weight that this worker holds."""
        model = self.model_runner.get_model()
        modules = dict(model.named_modules())
        return {
            name.replace(".base_layer.", "."): (_name(value.dtype), digest(value))
            for name, parameter in model.named_parameters()
            for value in [_unpadded(modules[name.rpartition(".")[0]], parameter.detach())]
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unpadded(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight as it was loaded: without the rows that fill a vocabulary up, and unpacked."""
    if weight.numel() == 0 and hasattr(layer, "quant_method"):
        # On the CPU a layer's weight is packed away, so the layer is asked: the product with ones on the
        # diagonal is the weight itself, without rounding.
        ones = torch.eye(layer.input_size_per_partition, dtype=weight.dtype)
        answer: Tensor = layer.quant_method.apply(layer, ones)
        return answer.T
    return weight[: getattr(layer, "org_vocab_size", None)]


def digest(weight: Tensor) -> str:
    """Digest a weight's bytes; 0 has one sign."""
    plain = (weight + 0.0).cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().data).hexdigest()
