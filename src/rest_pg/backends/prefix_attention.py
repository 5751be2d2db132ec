"""Attention of many rows over prompts that they share: keys and values, and the attention function.

A *group* is one prompt, processed once; a *row* is one sample being written behind it. The function
is registered with transformers' attention interface, so that any decoder that uses the interface
runs unchanged: it gets a :class:`PrefixMemory` as the keyword ``prefix_memory`` of its forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

ATTENTION = "rest_pg_shared_prefix"
SUPPORTED = ("llama", "qwen2", "qwen3", "smollm3", "mistral")
"""Model types whose attention is plain softmax attention, and which the tests cover."""


def unsupported_reason(config: PretrainedConfig) -> str | None:
    """Say why a model can't run on shared prefixes, or None if it can.

    Sliding windows, soft caps and sinks would be silently wrong here: they are refused by name.
    """
    if config.model_type not in SUPPORTED:
        return f"model_type={config.model_type} is not one of {', '.join(SUPPORTED)}"
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        return f"layer_types={sorted(layer_types)} holds more than full_attention"
    uses_window = getattr(config, "use_sliding_window", config.model_type == "mistral")
    if uses_window and getattr(config, "sliding_window", None):
        return f"sliding_window={config.sliding_window}"
    return None


class PrefixMemory:
    """Keys and values of the prompts (by group) and of what was written behind them (by row).

    Active groups and rows lie densely at the front: slot ``i`` is active if ``i < n_groups`` (or
    ``n_rows``). Buffers are allocated once; nothing is concatenated while decoding.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        groups: int,
        rows: int,
        prefix_tokens: int,
        suffix_tokens: int,
        like: Tensor,
    ) -> None:
        """Allocate room for ``groups`` prompts and ``rows`` samples in ``like``'s type and device."""
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = config.num_hidden_layers
        self.prefix = like.new_zeros(layers, 2, groups, heads, prefix_tokens, size)
        self.suffix = like.new_zeros(layers, 2, rows, heads, suffix_tokens, size)
        self.prefix_length = torch.zeros(groups, dtype=torch.long, device=like.device)
        self.suffix_length = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.row_group = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.n_groups = self.n_rows = 0
        self.prefilling: int | None = None

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether there is no room for another group, and for another row."""
        return self.n_groups == self.prefix.shape[2], self.n_rows == self.suffix.shape[2]

    def open_group(self, length: int) -> int:
        """Take a group slot for a prompt of ``length`` tokens, to be filled by the next forward."""
        group = self.prefilling = self.n_groups
        self.prefix_length[group] = length
        self.n_groups += 1
        return group

    def open_row(self, group: int) -> int:
        """Take a row slot behind a group."""
        row = self.n_rows
        self.row_group[row] = group
        self.suffix_length[row] = 0
        self.n_rows += 1
        return row

    def close_row(self, row: int) -> None:
        """Free a row slot; the last active row moves into it."""
        last = self.n_rows - 1
        if row != last:
            length = int(self.suffix_length[last])
            self.suffix[:, :, row, :, :length] = self.suffix[:, :, last, :, :length]
            self.suffix_length[row] = self.suffix_length[last]
            self.row_group[row] = self.row_group[last]
        self.n_rows = last

    def close_group(self, group: int) -> None:
        """Free a group slot without rows; the last active group moves into it."""
        last = self.n_groups - 1
        if group != last:
            length = int(self.prefix_length[last])
            self.prefix[:, :, group, :, :length] = self.prefix[:, :, last, :, :length]
            self.prefix_length[group] = self.prefix_length[last]
            self.row_group[: self.n_rows][self.row_group[: self.n_rows] == last] = group
        self.n_groups = last

    def plan_step(self) -> Tensor:
        """Prepare one decoding step of all active rows; return their positions, [rows, 1].

        Works out which rows stand behind which group, and the masks of the unused buffer ends.
        """
        self.prefilling = None
        n, groups = self.n_rows, self.n_groups
        rows = torch.arange(n, device=self.row_group.device)
        group_of = self.row_group[:n]
        order = group_of.argsort(stable=True)
        counts = torch.bincount(group_of, minlength=groups)
        starts = counts.cumsum(0) - counts
        within = torch.empty_like(rows)
        within[order] = rows - starts[group_of[order]]
        self._members = torch.zeros(groups, int(counts.max()), dtype=torch.long, device=rows.device)
        self._members[group_of, within] = rows
        self._place = group_of * self._members.shape[1] + within
        self._rows = rows
        self._at = self.suffix_length[:n].clone()
        self.suffix_length[:n] += 1
        self._suffix_mask = _tail_mask(self.suffix_length[:n])
        self._prefix_mask = _tail_mask(self.prefix_length[:groups])
        return (self.prefix_length[group_of] + self._at)[:, None]

    def prefill(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Keep a prompt's keys and values; return its causal attention, [1, heads, tokens, size]."""
        assert self.prefilling is not None
        length = key.shape[2]
        self.prefix[layer, 0, self.prefilling, :, :length] = key[0]
        self.prefix[layer, 1, self.prefilling, :, :length] = value[0]
        repeats = query.shape[1] // key.shape[1]
        return nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            is_causal=True,
            scale=scale,
        )

    def decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend from one new token per row, [rows, heads, 1, size], to its prompt and its suffix.

        All rows of a group meet its prompt in one product per key head. Both parts are merged by
        their log-sum-exp, which is exact.
        """
        n, heads, _, size = query.shape
        kv_heads = key.shape[1]
        keys, values = self.suffix[layer]
        keys[self._rows, :, self._at] = key[:, :, 0]
        values[self._rows, :, self._at] = value[:, :, 0]
        grouped = query.reshape(n, kv_heads, heads // kv_heads, size)
        end = self._suffix_mask.shape[-1]
        own, own_lse = _attend(
            grouped, keys[:n, :, :end], values[:n, :, :end], self._suffix_mask, scale
        )
        groups, members = self._members.shape
        shared = grouped[self._members].transpose(1, 2).reshape(groups, kv_heads, -1, size)
        end = self._prefix_mask.shape[-1]
        keys, values = self.prefix[layer]
        prompt, prompt_lse = _attend(
            shared, keys[:groups, :, :end], values[:groups, :, :end], self._prefix_mask, scale
        )
        merged = [
            part.view(groups, kv_heads, members, heads // kv_heads, -1)
            .transpose(1, 2)
            .reshape(groups * members, kv_heads, heads // kv_heads, -1)[self._place]
            for part in (prompt, prompt_lse)
        ]
        weight = torch.sigmoid(merged[1] - own_lse).to(own.dtype)
        return torch.lerp(own, merged[0], weight).reshape(n, heads, 1, size)


def _tail_mask(lengths: Tensor) -> Tensor:
    """0 where a buffer is used and -inf behind it, [n, 1, 1, longest]."""
    behind = torch.arange(int(lengths.max()), device=lengths.device) >= lengths[:, None]
    return torch.zeros(behind.shape, device=lengths.device).masked_fill_(behind, float("-inf"))[
        :, None, None
    ]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention, and its log-sum-exp in float32: two products beat fused kernels here.

    With few queries per key head the CPU's flash kernel is slower than two matrix products.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).float().mul_(scale).add_(mask)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return torch.matmul(scores.sub_(lse).exp_().to(value.dtype), value), lse


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix_memory: PrefixMemory,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface, [batch, heads, tokens, size] to
    [batch, tokens, heads, size]; masks and caches of the model are not used.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    attend = prefix_memory.decode if prefix_memory.prefilling is None else prefix_memory.prefill
    output = attend(module.layer_idx, query, key, value, scale)  # type: ignore[arg-type]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
