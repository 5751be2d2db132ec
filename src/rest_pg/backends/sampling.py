"""Drawing the next token: exact nucleus sampling with one seeded generator per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_tokens(
    logits: Tensor, temperature: float, top_p: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Draw one token per row, by rejection: exact, and without sorting the vocabulary.

    A token drawn from the whole softmax is accepted if the mass of the tokens likelier than it is
    below ``top_p``; accepted draws follow the renormalised nucleus. A row reads its own generator
    only, so its draw doesn't depend on its neighbours.

    Args:
        logits: [rows, vocabulary].
        temperature: 0 takes the likeliest token.
        top_p: nucleus mass in (0, 1].
        generators: one CPU generator per row.

    Returns:
        Token ids, [rows].
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    cumulative = probabilities.cumsum(-1)
    drawn = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    open_rows = torch.arange(len(logits), device=logits.device)
    while len(open_rows):
        uniform = torch.stack(
            [torch.rand((), generator=generators[row]) for row in open_rows.tolist()]
        ).to(logits.device)
        # the total is a little off 1 in floating point: scale by it, never past the last token
        target = uniform[:, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
        own = probabilities.gather(1, token)
        mass_above = (probabilities * (probabilities > own)).sum(-1)
        accepted = mass_above < top_p
        drawn[open_rows[accepted]] = token[accepted, 0]
        refused = ~accepted
        open_rows = open_rows[refused]
        probabilities, cumulative = probabilities[refused], cumulative[refused]
    return drawn
