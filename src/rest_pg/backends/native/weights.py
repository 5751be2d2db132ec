"""A model's weights as decode.cpp takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from rest_pg.backends.native.library import Layer, Model

PANEL = 64
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types of one shape: RMSNorm, rotary embedding, grouped queries, SwiGLU (Gemma's differs)."""
ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone."""


def unsupported_reason(config: PretrainedConfig) -> str | None:
    """Say why decode.cpp can't run a model, or None if it can."""
    if config.model_type not in SUPPORTED:
        return f"model_type={config.model_type}"
    if config.hidden_act not in {"silu", "swish"}:
        return f"hidden_act={config.hidden_act}"
    for name in ("mlp_bias", "attention_bias"):
        if getattr(config, name, False):
            return f"{name}=true"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in ROTARY:
        return f"rope_type={rotary}"
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % 16:
            return f"{name}={getattr(config, name)}, which 16 does not divide"
    return None


def pack(weight: Tensor) -> Tensor:
    """Lay a matrix [outputs, inputs] out in panels: [outputs / 64, inputs / 2, 64, 2], bfloat16."""
    outputs, inputs = weight.shape
    padded = nn.functional.pad(weight.to(torch.bfloat16), (0, 0, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, inputs // 2, 2).transpose(1, 2).contiguous()


class NativeWeights:
    """Weights in panels, and the tensors that they are, which must live as long."""

    def __init__(self, model: Any) -> None:
        """Lay the weights of a model out that :func:`unsupported_reason` has no objection to."""
        self.config = config = model.config
        heads = config.num_attention_heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.rotary = model.model.rotary_emb
        self._tensors: list[Tensor] = []
        body = model.model
        layers = [self._layer(layer) for layer in body.layers]
        self._layers = (Layer * len(layers))(*layers)
        self._sizes = {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "heads": heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": self.head_size,
            "intermediate": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "epsilon": config.rms_norm_eps,
            "scale": body.layers[0].self_attn.scaling,
            "embedding": self._keep(body.embed_tokens.weight.detach().to(torch.bfloat16)),
            "head": self._keep(pack(model.lm_head.weight.detach())),
            "norm": self._numbers(body.norm),
        }

    def describe(self) -> Model:
        """Return the sizes and the weights, for the caller to add its memory."""
        return Model(layer=self._layers, **self._sizes)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        qkv = torch.cat([p.weight.detach() for p in projections])
        # one after the other, as they are multiplied: 64 gates, 64 of what they let through
        gate_up = torch.stack([pack(p.weight.detach()) for p in (mlp.gate_proj, mlp.up_proj)], 1)
        bias = None
        if attention.q_proj.bias is not None:
            whole = torch.cat([p.bias.detach() for p in projections]).float()
            bias = self._keep(nn.functional.pad(whole, (0, -len(whole) % PANEL)))
        return Layer(
            qkv=self._keep(pack(qkv)),
            output=self._keep(pack(attention.o_proj.weight.detach())),
            gate_up=self._keep(gate_up),
            down=self._keep(pack(mlp.down_proj.weight.detach())),
            qkv_bias=bias,
            norm=self._numbers(layer.input_layernorm),
            mlp_norm=self._numbers(layer.post_attention_layernorm),
            query_norm=self._numbers(getattr(attention, "q_norm", None)),
            key_norm=self._numbers(getattr(attention, "k_norm", None)),
            rotary=bool(getattr(attention, "use_rope", True)),
            # Mistral has one window for all layers, the others say it of each
            window=getattr(attention, "sliding_window", getattr(self.config, "sliding_window", 0))
            or 0,
        )

    def _numbers(self, norm: Any) -> int | None:
        return None if norm is None else self._keep(norm.weight.detach().float())

    def _keep(self, tensor: Tensor) -> int:
        """Return the address of a tensor, and keep it alive."""
        self._tensors.append(tensor.contiguous())
        return self._tensors[-1].data_ptr()
