"""Linear layers whose weights are laid out once for the CPU's matrix kernels (inference only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer with its weight reordered by oneDNN once, instead of at every call.

    Same products, same rounding; the weight can't be trained or saved any more.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        """Pack ``linear`` for inputs of about ``rows`` rows."""
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self._bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs @ weight.T + bias``: [..., in_features] to [..., out_features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, "none", [], ""
        )
        return output


def pack_linear_layers(model: nn.Module, rows: int) -> None:
    """Replace every linear layer of ``model`` in place; call under ``torch.inference_mode``."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, rows))
