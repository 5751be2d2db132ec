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
SUPPORTED = (
    "llama",
    "qwen2",
    "qwen3",
    "smollm3",
    "mistral",
    "gemma2",
    "gemma3_text",
)
"""Model types that the tests cover: softmax attention, with or without windows and soft caps."""
LAYER_TYPES = {"full_attention", "sliding_attention"}


def unsupported_reason(config: PretrainedConfig) -> str | None:
    """Say why a model can't run on shared prefixes, or None if it can.

    Sinks, chunked or linear attention would be silently wrong here: they are refused by name.
    """
    if config.model_type not in SUPPORTED:
        return f"model_type={config.model_type} is not one of {', '.join(SUPPORTED)}"
    layer_types = set(getattr(config, "layer_types", None) or LAYER_TYPES)
    if not layer_types <= LAYER_TYPES:
        return f"layer_types={sorted(layer_types)} holds more than {sorted(LAYER_TYPES)}"
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Softmax attention over ordinary tensors, [batch, heads, tokens, size]; differentiable.

    Args:
        query: more heads than ``key`` and ``value`` may have.
        key: of all tokens that may be seen.
        value: as key.
        seen: which keys each query sees, [queries, keys]; None: causal, as many of both.
        scale: of the products.
        softcap: scores are squashed into (-softcap, softcap) before the softmax (Gemma 2).
    """
    if softcap is None and _products_are_faster(query, key):
        if seen is None:
            seen = sees(query.shape[2], key.shape[2], None, query.device)
        products: Tensor = _ProductAttention.apply(
            *(x.to(torch.bfloat16) for x in (query, key, value)), seen, scale
        )
        return products
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, scale=scale
        )
    if seen is None:
        seen = sees(query.shape[2], key.shape[2], None, query.device)
    scores = _squash(torch.matmul(query, key.transpose(-1, -2)).float() * scale, softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)


MOST_WEIGHTS = 512 * 1024
"""Queries by keys of one head: with more of them the flash kernel is as fast, and keeps fewer."""
MOST_WEIGHTS_AMX = 160 * 1024
"""The same where the flash kernel has AMX tiles, and on the way back alone: forward it is faster at any size."""


def _products_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether ordinary products beat PyTorch's flash kernel: in bfloat16 on a CPU, up to a size.

    Forward and backward of 160 queries on 416 keys took 2.3 ms in place of 4.8, and with AMX 1.9 in place of
    3.6 (docs/performance.md).
    """
    n_weights = query.shape[2] * key.shape[2]
    if query.device.type != "cpu" or n_weights > MOST_WEIGHTS:
        return False
    if torch.cpu._is_amx_tile_supported() and (
        n_weights > MOST_WEIGHTS_AMX or not (torch.is_grad_enabled() and query.requires_grad)
    ):
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return query.dtype == torch.bfloat16


class _ProductAttention(torch.autograd.Function):
    """Softmax attention by batched products; the weights are kept for the way back.

    Heads that share keys are stacked as queries of one product, so that nothing is repeated.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float
    ) -> Tensor:
        """Return the attention, as query; arguments as in :func:`attend`."""
        size, keys = query.shape[-1], key.shape[2]
        k, v = (x.reshape(-1, keys, size) for x in (key, value))
        q = query.reshape(len(k), -1, size)
        hidden = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
        scores.view(len(k), -1, *seen.shape).add_(hidden)
        weights = torch.softmax(scores, dim=-1)
        output = torch.bmm(weights, v)
        ctx.save_for_backward(q, k, v, weights, output)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        q, k, v, weights, output = ctx.saved_tensors
        of_output = gradients[0].reshape(output.shape)
        of_value = torch.bmm(weights.transpose(1, 2), of_output)
        along = (of_output.float() * output.float()).sum(-1, keepdim=True)
        of_scores = torch.bmm(of_output, v.transpose(1, 2)).sub_(along).mul_(weights)
        of_query = torch.bmm(of_scores, k).mul_(ctx.scale)
        of_key = torch.bmm(of_scores.transpose(1, 2), q).mul_(ctx.scale)
        query, key = ctx.shapes
        return of_query.view(query), of_key.view(key), of_value.view(key), None, None


def sees(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Who sees whom where the last ``queries`` of ``keys`` tokens ask: [queries, keys]."""
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    behind = at - torch.arange(keys, device=device)
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def _squash(scores: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(scores / softcap)


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
        # keys lie with their tokens last: the product with one query per row is three times as fast
        self.suffix_keys = like.new_zeros(layers, rows, heads, size, suffix_tokens)
        self.suffix_values = like.new_zeros(layers, rows, heads, suffix_tokens, size)
        self.prefix_length = torch.zeros(groups, dtype=torch.long, device=like.device)
        self.suffix_length = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.row_group = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.n_groups = self.n_rows = 0
        self.prefilling: int | None = None

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether there is no room for another group, and for another row."""
        return self.n_groups == self.prefix.shape[2], self.n_rows == self.suffix_keys.shape[1]

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
            keys, values = self.suffix_keys, self.suffix_values
            keys[:, row, :, :, :length] = keys[:, last, :, :, :length]
            values[:, row, :, :length] = values[:, last, :, :length]
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
        members = torch.zeros(groups, int(counts.max()), dtype=torch.long, device=rows.device)
        members[group_of, within] = rows
        heads = torch.arange(self.prefix.shape[3], device=rows.device)
        # row-wise [n, kv heads, …] to group-wise [groups, kv heads, members, …], and back
        self._to_groups = (members[:, None], heads[:, None])
        self._to_rows = (group_of[:, None], heads, within[:, None])
        self._rows = rows
        self._at = self.suffix_length[:n].clone()
        self.suffix_length[:n] += 1
        self._prompts = self.prefix_length[group_of]
        self._ends = int(self._prompts.max()), int(self.suffix_length[:n].max())
        self._masks: dict[int | None, Tensor] = {}
        return (self._prompts + self._at)[:, None]

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row sees a key of its prompt or its suffix and -inf elsewhere, [n, 1, 1, keys].

        Made once per step and kind of layer.
        """
        if window not in self._masks:
            prompt_keys, keys = (torch.arange(end, device=self._at.device) for end in self._ends)
            seen = [prompt_keys < self._prompts[:, None], keys <= self._at[:, None]]
            if window is not None:
                seen[0] &= (self._prompts + self._at)[:, None] - prompt_keys < window
                seen[1] &= self._at[:, None] - keys < window
            hidden = ~torch.cat(seen, dim=1)[:, None, None]
            mask = torch.zeros(hidden.shape, dtype=self.prefix.dtype, device=hidden.device)
            self._masks[window] = mask.masked_fill_(hidden, float("-inf"))
        return self._masks[window]

    def prefill(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Keep a prompt's keys and values; return its causal attention, [1, heads, tokens, size]."""
        assert self.prefilling is not None
        length = key.shape[2]
        self.prefix[layer, 0, self.prefilling, :, :length] = key[0]
        self.prefix[layer, 1, self.prefilling, :, :length] = value[0]
        cut = window is not None and length > window
        seen = sees(length, length, window, key.device) if cut else None
        return attend(query, key, value, seen, scale, softcap)

    def decode(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend from one new token per row, [rows, heads, 1, size], to its prompt and its suffix.

        All rows of a group meet its prompt in one product per key head; one softmax runs over both.
        """
        n, heads, _, size = query.shape
        kv_heads = key.shape[1]
        keys, values = self.suffix_keys[layer], self.suffix_values[layer]
        keys[self._rows, :, :, self._at] = key[:, :, 0]
        values[self._rows, :, self._at] = value[:, :, 0]
        prompt_end, end = self._ends
        # views of the buffers: slices of four dimensions would be copied by every product
        keys, values = (x[:n].view(n * kv_heads, *x.shape[2:]) for x in (keys, values))
        prompt_keys, prompt_values = (
            x[: self.n_groups].view(-1, *x.shape[2:])[:, :prompt_end] for x in self.prefix[layer]
        )
        query = (query * scale).reshape(n, kv_heads, heads // kv_heads, size)
        own = torch.bmm(query.view(n * kv_heads, -1, size), keys[:, :, :end])
        grouped = query[self._to_groups]
        shape = grouped.shape[:-1]
        shared = torch.bmm(grouped.view(len(prompt_keys), -1, size), prompt_keys.transpose(1, 2))
        scores = torch.cat(
            [shared.view(*shape, prompt_end)[self._to_rows], own.view(n, kv_heads, -1, end)], dim=-1
        )
        if softcap is not None:
            scores = _squash(scores, softcap)
        weights = torch.softmax(scores.add_(self._mask(window)), dim=-1)
        own = torch.bmm(weights[..., prompt_end:].reshape(n * kv_heads, -1, end), values[:, :end])
        grouped = weights[..., :prompt_end][self._to_groups]
        shared = torch.bmm(grouped.view(len(prompt_keys), -1, prompt_end), prompt_values)
        output = shared.view(*shape, size)[self._to_rows] + own.view(n, kv_heads, -1, size)
        return output.view(n, heads, 1, size)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix_memory: PrefixMemory,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface, [batch, heads, tokens, size] to
    [batch, tokens, heads, size]; masks and caches of the model are not used.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    memory = prefix_memory
    attention = memory.decode if memory.prefilling is None else memory.prefill
    layer: int = module.layer_idx  # type: ignore[assignment]
    output = attention(layer, query, key, value, scale, sliding_window, softcap)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
