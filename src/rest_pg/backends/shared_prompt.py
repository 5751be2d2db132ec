"""One row per prompt, for training and for judging: the prompt once, its completions behind it.

A row is ``[prompt without its last token | last token, completion 1 | last token, completion 2 | …]``.
Every block repeats the prompt's last token at its own position, sees the prompt and itself, and
predicts its completion from there: exactly what k separate rows would compute, for one prompt's work.
Blocks may stand behind blocks: a judge's rubric, candidates behind it, score levels behind each.

The attention function is registered with transformers' attention interface: it gets the row's
:class:`Blocks` as the keyword ``blocks`` of a model's forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rest_pg.backends.prefix_attention import attend, sees
from rest_pg.config import PreferenceParams

ATTENTION = "rest_pg_shared_prompt"
IGNORED = -100
"""The label of a token that isn't learnt, everywhere in transformers."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its completions as token ids; each completion has a weight in the loss."""

    prompt: list[int]
    completions: list[list[int]]
    weights: list[float]
    fixed: list[list[bool]] | None = None
    """Of each completion's tokens, whether the format sets them; none: of none."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some tokens of a row: they see themselves up to the one that asks, and their ancestors whole."""

    parent: int
    """The place of the block that they stand behind; -1 for the first."""
    ids: list[int]
    labels: list[int]
    """The token that each should predict; empty where nothing is predicted."""


def lay_out(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Put a tree of blocks into one row; a parent comes before its children.

    Returns:
        ``input_ids`` and ``position_ids`` [1, n]; ``lengths`` and ``parents`` [blocks];
        ``logits_to_keep`` [t], the positions whose next token is predicted; ``labels`` [1, 1 + t],
        those tokens behind one -100: trainers shift labels, and so count none that stands first.
    """
    ids: list[int] = []
    positions: list[int] = []
    keep: list[int] = []
    labels: list[int] = []
    ends: list[int] = []  # of each block, as a position
    for block in blocks:
        start = ends[block.parent] if block.parent >= 0 else 0
        ends.append(start + len(block.ids))
        positions += range(start, ends[-1])
        if block.labels:
            keep += range(len(ids), len(ids) + len(block.ids))
        ids += block.ids
        labels += block.labels
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "lengths": torch.tensor([len(block.ids) for block in blocks]),
        "parents": torch.tensor([block.parent for block in blocks]),
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([[IGNORED, *labels]]),
    }


def collate_row(row: Row, *, plain: bool = False) -> dict[str, Tensor]:
    """Lay out one row for the model.

    Args:
        row: at least one completion, none of them empty.
        plain: for a model with another attention than ours: leave the tree out. One completion
            behind its prompt is ordinary causal text; more need our attention.

    Raises:
        ValueError: several completions in a plain row, which would see each other.

    Returns:
        What :func:`lay_out` returns, ``weights`` [1, t] of the labels, and ``fixed`` [1, t] if the row says so.
    """
    if plain and len(row.completions) != 1:
        raise ValueError(f"a plain row holds one completion, not {len(row.completions)}")
    prompt, last = row.prompt[:-1], row.prompt[-1]
    # the last token of a completion (its end) is learnt, and nothing is learnt from it
    children = [Block(0, [last, *own[:-1]], own) for own in row.completions]
    inputs = lay_out([Block(-1, prompt, []), *children])
    if plain:
        del inputs["lengths"], inputs["parents"]
    weights = [
        weight
        for completion, weight in zip(row.completions, row.weights, strict=True)
        for _ in completion
    ]
    if row.fixed:
        inputs["fixed"] = torch.tensor([[own for completion in row.fixed for own in completion]])
    return {**inputs, "weights": torch.tensor([weights])}


def row_of(feature: Mapping[str, Any]) -> Row:
    """Return what :func:`~rest_pg.backends.training_rows.tokenize_rows` says of a row."""
    return Row(
        prompt=feature["prompt"],
        completions=feature["completions"],
        weights=feature["weights"],
        fixed=feature.get("fixed"),
    )


def collate(features: Sequence[dict[str, Any]], *, plain: bool = False) -> dict[str, Tensor]:
    """Collate for a trainer: one row at a time, so that nothing is padded.

    Of a row with ``learnt`` false no token counts.
    """
    (feature,) = features
    inputs = collate_row(row_of(feature), plain=plain)
    if not feature["learnt"]:
        inputs["labels"].fill_(IGNORED)
    if "start_losses" in feature:
        inputs["start_losses"] = torch.tensor(feature["start_losses"])
    return inputs


class Blocks:
    """Where a row's blocks lie, and who sees whom: worked out once, used by every layer."""

    def __init__(
        self, lengths: Sequence[int], parents: Sequence[int], device: torch.device
    ) -> None:
        """Take each block's length, which may be 0, and its parent's place."""
        self.spans = [
            (end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)
        ]
        self.paths: list[list[tuple[int, int]]] = []
        for span, parent in zip(self.spans, parents, strict=True):
            self.paths.append([*(self.paths[parent] if parent >= 0 else []), span])
        self._device = device
        self._seen: dict[int | None, list[Tensor | None]] = {}

    def seen(self, window: int | None) -> list[Tensor | None]:
        """Which keys each token of a block sees, [length, keys]; None where that is plainly causal.

        The keys are those of the block's ancestors and its own, in this order: there a token's
        place is its position, so a window is counted in it.
        """
        if window not in self._seen:
            self._seen[window] = []
            for (start, end), path in zip(self.spans, self.paths, strict=True):
                keys = sum(e - s for s, e in path)
                causal = keys == end - start and (window is None or keys <= window)
                seen = None if causal else sees(end - start, keys, window, self._device)
                self._seen[window].append(seen)
        return self._seen[window]


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

    Each block meets its ancestors and itself only: nothing is computed that a mask would throw away.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    parts = []
    for span, path, seen in zip(
        blocks.spans, blocks.paths, blocks.seen(sliding_window), strict=True
    ):
        if span[0] == span[1]:
            continue
        keys, values = (
            torch.cat([x[:, :, slice(*own)] for own in path], dim=2) for x in (key, value)
        )
        parts.append(attend(query[:, :, slice(*span)], keys, values, seen, scale, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, shared_prompt_attention)


def completion_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Run one row through a model: the logits that predict each label, [t, vocabulary].

    Args:
        model: a causal language model; with :data:`ATTENTION` unless the row is plain.
        inputs: what :func:`collate_row` or :func:`lay_out` returns.
    """
    shared = {}
    if "lengths" in inputs:
        lengths, parents = inputs["lengths"].tolist(), inputs["parents"].tolist()
        shared["blocks"] = Blocks(lengths, parents, inputs["input_ids"].device)
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
    losses = token_losses(model, inputs)
    total = (losses * inputs["weights"][0]).sum()
    return total / (losses.numel() if n_labels is None else n_labels)


def token_losses(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the negative log-likelihood of each of a row's labels, [t]."""
    logits, labels = completion_logits(model, inputs), inputs["labels"][0, 1:]
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def preference_loss(model: Any, inputs: dict[str, Tensor], params: PreferenceParams) -> Tensor:
    """DPO's loss over a prompt's pairs, and the chosen completions' likelihood beside it.

    A completion's score is ``beta`` times what its log-likelihood gained since the start, in all or per
    token; a pair costs the negative log-sigmoid of the chosen one's score less the rejected one's. The
    loss is the mean over all pairs, plus ``likelihood`` times the chosen ones' negative log-likelihood
    per token. Tokens that the format sets, the end token among them, count in the likelihood alone: both of a pair
    have them, and what pushes the rejected one's down unlearns the format, or lets texts grow and grow.

    Args:
        model: as in :func:`completion_logits`.
        inputs: what :func:`collate_row` returns, and ``start_losses`` [k]: what
            :func:`completion_losses` were under the policy that training starts from.
        params: ``beta``, ``per_token`` and ``likelihood``.
    """
    losses, weights = token_losses(model, inputs), inputs["weights"][0]
    lengths = _completion_lengths(inputs)
    chosen = torch.stack([own[0] > 0 for own in weights.split(lengths)])
    scores = params.beta * (inputs["start_losses"] - completion_losses(losses, inputs))
    if params.per_token:
        scores = scores / completion_losses(torch.ones_like(losses), inputs).clamp(min=1)
    margins = scores[chosen][:, None] - scores[~chosen][None, :]
    pairs = -nn.functional.logsigmoid(margins).mean() if margins.numel() else losses.sum() * 0
    return pairs + params.likelihood * losses[weights > 0].mean()


def completion_losses(losses: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Sum the tokens' losses [t] of each completion, [k], without those that the format sets."""
    if "fixed" in inputs:
        losses = losses.masked_fill(inputs["fixed"][0], 0.0)
    return torch.stack([own.sum() for own in losses.split(_completion_lengths(inputs))])


def _completion_lengths(inputs: dict[str, Tensor]) -> list[int]:
    # behind the prompt, a block has one token for each label; a plain row has one completion
    found: list[int] = inputs["lengths"][1:].tolist() if "lengths" in inputs else []
    return found or [inputs["labels"].shape[1] - 1]
