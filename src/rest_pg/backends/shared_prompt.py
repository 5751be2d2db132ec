"""One row per prompt, for training and for judging: the prompt once, its completions behind it.

A row is ``[prompt without its last token | last token, completion 1 | last token, completion 2 | …]``.
Every block repeats the prompt's last token at its own position, sees the prompt and itself, and
predicts its completion from there: exactly what k separate rows would compute, for one prompt's work.

The attention function is registered with transformers' attention interface: it gets the row's
:class:`Blocks` as the keyword ``blocks`` of a model's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rest_pg.backends.prefix_attention import attend, sees

ATTENTION = "rest_pg_shared_prompt"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its completions as token ids; each completion has a weight in the loss."""

    prompt: list[int]
    completions: list[list[int]]
    weights: list[float]


def collate_row(row: Row, *, plain: bool = False) -> dict[str, Tensor]:
    """Lay out one row for the model.

    Args:
        row: at least one completion, none of them empty.
        plain: for a model with another attention than ours: leave ``lengths`` out. One completion
            behind its prompt is ordinary causal text; more need our attention.

    Raises:
        ValueError: several completions in a plain row, which would see each other.

    Returns:
        ``input_ids`` and ``position_ids`` [1, n]; ``lengths`` [1 + k], of the prompt without its last
        token and of each block; ``logits_to_keep`` [t], the positions whose next token is learnt;
        ``labels`` [1, t]; ``weights`` [1, t].
    """
    if plain and len(row.completions) != 1:
        raise ValueError(f"a plain row holds one completion, not {len(row.completions)}")
    prompt, last = row.prompt[:-1], row.prompt[-1]
    ids, positions = list(prompt), list(range(len(prompt)))
    lengths = [len(prompt)]
    keep: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    for completion, weight in zip(row.completions, row.weights, strict=True):
        keep += range(len(ids), len(ids) + len(completion))
        # the last token of a completion (its end) is learnt, and nothing is learnt from it
        ids += [last, *completion[:-1]]
        positions += range(len(prompt), len(prompt) + len(completion))
        lengths.append(len(completion))
        labels += completion
        weights += [weight] * len(completion)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        **({} if plain else {"lengths": torch.tensor(lengths)}),
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([labels]),
        "weights": torch.tensor([weights]),
    }


def collate(features: Sequence[dict[str, Any]], *, plain: bool = False) -> dict[str, Tensor]:
    """Collate for a trainer: one row at a time, so that nothing is padded."""
    (feature,) = features
    row = Row(feature["prompt"], feature["completions"], feature["weights"])
    return collate_row(row, plain=plain)


class Blocks:
    """Where a row's blocks lie, and who sees whom: worked out once, used by every layer."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Take the prompt's length first (it may be 0), then each completion's."""
        self.prompt, *completions = lengths
        ends = list(accumulate(lengths))
        self.completions = list(pairwise(ends))
        self._lengths, self._device = completions, device
        self._seen: dict[int | None, list[Tensor]] = {}

    def seen(self, window: int | None) -> list[Tensor]:
        """Which keys of prompt and block each token of a block sees, one [length, keys] per block.

        In this order of keys a token's place is its position, so a window is counted there.
        """
        if window not in self._seen:
            self._seen[window] = [
                sees(length, self.prompt + length, window, self._device) for length in self._lengths
            ]
        return self._seen[window]

    def prompt_seen(self, window: int | None) -> Tensor | None:
        """The same among the prompt's own tokens; None where it is plainly causal."""
        if window is None or self.prompt <= window:
            return None
        return sees(self.prompt, self.prompt, window, self._device)


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Blocks,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface, [1, heads, n, size] to [1, n, heads, size].

    Each block meets the prompt and itself only: nothing is computed that a mask would throw away.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    prompt = slice(0, blocks.prompt)
    parts = []
    if blocks.prompt:
        seen = blocks.prompt_seen(sliding_window)
        own_query, own_key, own_value = (x[:, :, prompt] for x in (query, key, value))
        parts.append(attend(own_query, own_key, own_value, seen, scale, softcap))
    for (start, end), seen in zip(blocks.completions, blocks.seen(sliding_window), strict=True):
        keys, values = (
            torch.cat([x[:, :, prompt], x[:, :, start:end]], dim=2) for x in (key, value)
        )
        parts.append(attend(query[:, :, start:end], keys, values, seen, scale, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prompt_attention)


def completion_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Run one row through a model: the logits that predict each completion token, [t, vocabulary].

    Args:
        model: a causal language model; with :data:`ATTENTION` unless the row is plain.
        inputs: what :func:`collate_row` returns.
    """
    shared = {}
    if "lengths" in inputs:
        shared["blocks"] = Blocks(inputs["lengths"].tolist(), inputs["input_ids"].device)
    logits: Tensor = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        logits_to_keep=inputs["logits_to_keep"],
        use_cache=False,
        **shared,
    ).logits[0]
    return logits


def weighted_loss(model: Any, inputs: dict[str, Tensor], n_labels: Tensor | int | None) -> Tensor:
    """Reward-weighted negative log-likelihood of the completions (§3.3), per token.

    Logits are computed at the completions' positions only.

    Args:
        model: as in :func:`completion_logits`.
        inputs: what :func:`collate_row` returns.
        n_labels: tokens to divide by (all rows of an optimiser step); None: this row's.
    """
    logits, labels = completion_logits(model, inputs), inputs["labels"][0]
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    total = (losses * inputs["weights"][0]).sum()
    return total / (labels.numel() if n_labels is None else n_labels)
