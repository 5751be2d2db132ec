"""One training row per prompt: the prompt once, and all of its completions behind it.

A row is ``[prompt without its last token | last token, completion 1 | last token, completion 2 | …]``.
Every block repeats the prompt's last token at its own position, sees the prompt and itself, and
predicts its completion from there: exactly what k separate rows would compute, for one prompt's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its completions as token ids; each completion has a weight in the loss."""

    prompt: list[int]
    completions: list[list[int]]
    weights: list[float]


def collate_row(row: Row) -> dict[str, Tensor]:
    """Lay out one row for the model.

    Returns:
        ``input_ids`` and ``position_ids`` [1, n]; ``attention_mask`` [1, 1, n, n], true where a token
        is seen; ``logits_to_keep`` [t], the positions whose next token is learnt; ``labels`` [1, t];
        ``weights`` [1, t].
    """
    prompt, last = row.prompt[:-1], row.prompt[-1]
    ids, positions = list(prompt), list(range(len(prompt)))
    blocks = [0] * len(prompt)
    keep: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    for number, (completion, weight) in enumerate(
        zip(row.completions, row.weights, strict=True), start=1
    ):
        keep += range(len(ids), len(ids) + len(completion))
        # the last token of a completion (its end) is learnt, and nothing is learnt from it
        ids += [last, *completion[:-1]]
        positions += range(len(prompt), len(prompt) + len(completion))
        blocks += [number] * len(completion)
        labels += completion
        weights += [weight] * len(completion)
    block = torch.tensor(blocks)
    index = torch.arange(len(ids))
    seen = (index[:, None] >= index) & ((block == 0) | (block[:, None] == block))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": seen[None, None],
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([labels]),
        "weights": torch.tensor([weights]),
    }


def collate(features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate for a trainer: one row at a time, so that nothing is padded."""
    (feature,) = features
    return collate_row(Row(feature["prompt"], feature["completions"], feature["weights"]))


def weighted_loss(model: Any, inputs: dict[str, Tensor], n_labels: Tensor | int | None) -> Tensor:
    """Reward-weighted negative log-likelihood of the completions (§3.3), per token.

    Logits are computed at the completions' positions only.

    Args:
        model: a causal language model.
        inputs: what :func:`collate_row` returns.
        n_labels: tokens to divide by (all rows of an optimiser step); None: this row's.
    """
    logits = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        attention_mask=inputs["attention_mask"],
        logits_to_keep=inputs["logits_to_keep"],
        use_cache=False,
    ).logits
    labels = inputs["labels"]
    losses = torch.nn.functional.cross_entropy(logits[0].float(), labels[0], reduction="none")
    total = (losses * inputs["weights"][0]).sum()
    return total / (labels.numel() if n_labels is None else n_labels)
