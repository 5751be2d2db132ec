"""Drawing the next token: exact nucleus sampling with one seeded generator per sample."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rest_pg.backends.native.library import Draw, load_library

BLOCK = 256
"""Tokens whose probabilities are summed first."""


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
    drawn = torch.empty(len(logits), dtype=torch.long)
    open_rows = torch.arange(len(logits))
    propose = _propose_natively if load_library() and not logits.is_cuda else _propose
    while len(open_rows):
        uniform = torch.stack(
            [torch.rand((), generator=generators[row]) for row in open_rows.tolist()]
        )
        token, accepted = propose(logits, open_rows, uniform, temperature, top_p)
        drawn[open_rows[accepted]] = token[accepted]
        open_rows = open_rows[~accepted]
    return drawn


def _propose(
    logits: Tensor, rows: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draw a token of each of ``rows`` from the whole softmax; say which are in the nucleus."""
    rows, uniform = rows.to(logits.device), uniform.to(logits.device)
    probabilities = torch.softmax(logits[rows].float().div_(temperature), -1)
    token = _invert_cumulative(probabilities, uniform[:, None])
    own = probabilities.gather(1, token)
    # 1 above the drawn token's probability and 0 elsewhere: comparisons aren't vectorised here
    above = (probabilities - own).mul_(1e38).clamp_(0, 1)
    accepted = above.mul_(probabilities).sum(-1) < top_p
    return token[:, 0].cpu(), accepted.cpu()


def _propose_natively(
    logits: Tensor, rows: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """As :func:`_propose`, in machine code: nothing of the vocabulary's size is written."""
    library = load_library()
    assert library is not None
    logits = logits.float().contiguous()
    token, accepted = torch.empty_like(rows), torch.empty(len(rows), dtype=torch.bool)
    told = Draw(
        rows=len(rows),
        vocabulary=logits.shape[-1],
        temperature=temperature,
        top_p=top_p,
        logits=logits.data_ptr(),
        row=rows.data_ptr(),
        uniform=uniform.data_ptr(),
        token=token.data_ptr(),
        accepted=accepted.data_ptr(),
    )
    library.rest_pg_draw(ctypes.byref(told))
    return token, accepted


def _invert_cumulative(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the token where the cumulative probability passes ``uniform``, [rows, 1].

    First the block of tokens, by the sums of blocks, and then the token in it.
    """
    size = probabilities.shape[-1]
    whole = size - size % BLOCK
    sums = probabilities[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], dim=-1)
    cumulative = sums.cumsum(-1)
    # the total is a little off 1 in floating point: scale by it, never past the last block
    target = uniform * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=sums.shape[-1] - 1)
    rest = target - (cumulative.gather(1, block) - sums.gather(1, block))
    index = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = probabilities.gather(1, index.clamp(max=size - 1)).masked_fill_(index >= size, 0)
    within = torch.searchsorted(inside.cumsum(-1), rest, right=True)
    # rounding may point behind the block: then its last token with any probability is meant
    last = (inside > 0).int().mul_(torch.arange(BLOCK, device=block.device)).amax(-1, keepdim=True)
    return block * BLOCK + torch.minimum(within, last)
