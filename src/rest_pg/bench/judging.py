"""Scoring m candidates behind one shared text: against a padded batch in transformers."""

from __future__ import annotations

import torch
from torch import nn

from rest_pg.backends.likelihood import LikelihoodScorer, load_scoring_model
from rest_pg.backends.models import load_model, load_tokenizer, supports_bfloat16
from rest_pg.bench.common import Comparison, base_policy, compare, texts

M, SHARED, OWN = 8, 600, 150


def run(repeats: int) -> list[Comparison]:
    """Compare the log-likelihood of eight candidates behind a text of 600 tokens."""
    path = str(base_policy().path)
    shared, candidates = texts(1, SHARED)[0], texts(M, OWN, offset=40)
    scorer = LikelihoodScorer(path)
    load_scoring_model(path)
    tokenizer = load_tokenizer(base_policy())
    model = load_model(
        base_policy(), torch.bfloat16 if supports_bfloat16() else torch.float32
    ).eval()

    def ours() -> int:
        return sum(score.n_tokens for score in scorer.score([(shared, candidates)])[0])

    @torch.inference_mode()
    def theirs() -> int:
        head = tokenizer(shared, add_special_tokens=False).input_ids
        tails = [tokenizer(c, add_special_tokens=False).input_ids for c in candidates]
        longest = max(map(len, tails))
        ids = torch.tensor([head + t + [0] * (longest - len(t)) for t in tails])
        mask = torch.tensor([[1] * (len(head) + len(t)) + [0] * (longest - len(t)) for t in tails])
        # logits of the candidates' positions only, as a careful user would ask for
        logits = model(ids, attention_mask=mask, logits_to_keep=longest + 1).logits[:, :-1].float()
        labels = ids[:, len(head) :].masked_fill(mask[:, len(head) :] == 0, -100)
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
        )
        losses.sum(1)
        return int((labels != -100).sum())

    ours(), theirs()
    case = f"m={M}, {SHARED} shared + {OWN}"
    return [compare("judging", case, "transformers", "s", ours, theirs, repeats)]
