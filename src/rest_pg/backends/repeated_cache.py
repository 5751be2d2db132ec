"""A generator for every architecture: each prompt processed once, its cache repeated per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from rest_pg.backends.models import load_model, load_tokenizer, stop_tokens
from rest_pg.backends.protocols import Generation, GenerationRequest
from rest_pg.backends.sampling import draw_tokens
from rest_pg.config import Decoding
from rest_pg.progress import track
from rest_pg.records import PolicyCheckpoint


class RepeatedCacheGenerator:
    """Draws the samples of one prompt at a time, with the model's own attention and cache.

    Sliding windows, soft caps and sinks are the model's business, so they are right here; memory
    holds the prompt's keys and values once per sample, and short samples wait for the longest.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """Load weights in ``dtype``."""
        self._dtype = dtype

    @torch.inference_mode()
    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Draw every sample of every request; see :class:`~rest_pg.backends.protocols.Generator`."""
        model = load_model(policy, self._dtype).eval()
        tokenizer = load_tokenizer(policy)
        bar = track("sampling", sum(len(r.seeds) for r in requests), "sample")
        drawn: list[Generation] = []
        for request in requests:
            if request.seeds:
                drawn += _draw(model, tokenizer, request, decoding)
                bar.update(len(request.seeds))
        bar.close()
        return drawn


def _draw(
    model: Any, tokenizer: Any, request: GenerationRequest, decoding: Decoding
) -> list[Generation]:
    """Draw all samples of one request."""
    prompt = tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
    cache = DynamicCache(config=model.config)
    ids = prompt.input_ids.to(model.device)
    logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    n = len(request.seeds)
    cache.batch_repeat_interleave(n)
    logits = logits.expand(n, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
    stop, ended = stop_tokens(model, tokenizer), [False] * n
    tokens: list[list[int]] = [[] for _ in range(n)]
    for _ in range(decoding.max_new_tokens):
        drawn = draw_tokens(logits, decoding.temperature, decoding.top_p, generators)
        for row, token in enumerate(drawn.tolist()):
            ended[row] = ended[row] or token in stop
            if not ended[row]:
                tokens[row].append(token)
        if all(ended):
            break
        logits = model(input_ids=drawn[:, None].to(model.device), past_key_values=cache).logits[
            :, -1
        ]
    return [
        Generation(
            example_id=request.example_id,
            sample_index=row,
            text=tokenizer.decode(tokens[row], skip_special_tokens=True),
            finished=ended[row],
            n_tokens=len(tokens[row]) + ended[row],
        )
        for row in range(n)
    ]
