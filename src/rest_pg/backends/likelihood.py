"""How likely a language model holds continuations of a text: the text is processed once for all.

Nothing is generated: one forward over ``[text | continuation 1 | continuation 2 | …]``, with logits at
the continuations' positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rest_pg.backends.models import EMBEDDED, device, load_source, supports_bfloat16
from rest_pg.backends.prefix_attention import unsupported_reason
from rest_pg.backends.protocols import Judged
from rest_pg.backends.shared_prompt import (
    ATTENTION,
    Block,
    Row,
    collate_row,
    completion_logits,
    lay_out,
)
from rest_pg.memory import explain_lack_of_memory
from rest_pg.progress import tracked

REMEDY = "lower max_tokens of the reward's model in catalog.yml"


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model gives to one continuation."""

    log_probability: float
    """Natural logarithm, summed over its tokens; 0 for an empty one."""
    n_tokens: int


class LikelihoodScorer:
    """Scores continuations under a causal language model.

    Architectures whose attention isn't plain get one continuation per forward.
    """

    def __init__(self, model: str = EMBEDDED, max_tokens: int = 4096) -> None:
        """Name the model (``embedded``, a hub id or a directory); it is loaded at first use.

        Args:
            model: a causal language model.
            max_tokens: of one forward; a group with more is scored in several.
        """
        self._source, self._max_tokens = model, max_tokens

    def score(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[Likelihood]]:
        """Score each continuation of each text.

        Args:
            groups: a text, which must hold at least one token, and what may follow it. Both are
                tokenised apart, so that a continuation has the same tokens behind any text.

        Returns:
            One list per group, in order.

        Raises:
            ValueError: a text has no tokens, or one with a continuation is above ``max_tokens``.
        """
        model, tokenizer = load_scoring_model(self._source)
        plain = model.config._attn_implementation != ATTENTION
        scored: dict[int, list[Likelihood]] = {}
        with explain_lack_of_memory("scoring", REMEDY):
            # the longest first: lack of memory shows at once
            order = sorted(range(len(groups)), key=lambda i: -_n_characters(*groups[i]))
            for i in tracked(order, "likelihood", "text"):
                text, continuations = groups[i]
                prefix = _ids(tokenizer, text)
                if not prefix:
                    raise ValueError(f"the text {text!r} has no tokens, and must have one at least")
                ids = [_ids(tokenizer, continuation) for continuation in continuations]
                scored[i] = []
                for chunk in self._chunks(len(prefix), ids, plain=plain):
                    kept = [own for own in chunk if own]
                    row = Row(prefix, kept, [1.0] * len(kept))
                    scored[i] += _score_row(model, row, chunk, plain)
        return [scored[i] for i in range(len(groups))]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_scoring_model(self._source)[1]

    def score_levels(
        self, judged: Sequence[Judged], levels: Sequence[str]
    ) -> list[list[list[float]]]:
        """Score each level of a rubric behind each candidate: a judge's answer.

        Everything that is shared is processed once: the text for all candidates, a candidate for all
        of its levels. A level is scored whole, so that no level gains by being the start of another:
        end each with the same terminator. See :class:`~rest_pg.backends.protocols.LevelScorer`.

        Raises:
            ValueError: a text before or after, or a level, has no tokens; or one candidate is above
                ``max_tokens``; or the model's architecture isn't covered.
        """
        model, tokenizer = load_scoring_model(self._source)
        if model.config._attn_implementation != ATTENTION:
            raise ValueError(f"{unsupported_reason(model.config)}: name another model as the judge")
        answers = [_ids(tokenizer, level) for level in levels]
        if not all(answers):
            raise ValueError(f"a level of {list(levels)!r} has no tokens: fill it")
        scored: dict[int, list[list[float]]] = {}
        # the longest first: lack of memory shows at once
        order = sorted(range(len(judged)), key=lambda i: -_n_judged(judged[i]))
        for i in tracked(order, "judging", "prompt"):
            scored[i] = self._score_judged(judged[i], answers)
        return [scored[i] for i in range(len(judged))]

    def _score_judged(self, judged: Judged, answers: Sequence[list[int]]) -> list[list[float]]:
        model, tokenizer = load_scoring_model(self._source)
        head = _ids(tokenizer, judged.before)
        for name, ids in (("text", head), ("ending", _ids(tokenizer, judged.after))):
            if not ids:
                raise ValueError(f"the {name} has no tokens, and must have one at least")
        bodies = [_ids(tokenizer, candidate + judged.after) for candidate in judged.candidates]
        extra = sum(map(len, answers))
        scores = []
        for chunk in self._chunks(len(head), bodies, plain=False, extra=extra):
            blocks = [Block(-1, head, [])]
            for *body, last in chunk:
                blocks.append(Block(0, body, []))
                parent = len(blocks) - 1
                blocks += [Block(parent, [last, *own[:-1]], own) for own in answers]
            with explain_lack_of_memory("judging", REMEDY):
                whole = _losses(model, lay_out(blocks))
            losses = whole.split([len(a) for a in answers] * len(chunk))
            sums = [-own.sum().item() for own in losses]
            scores += [sums[i : i + len(answers)] for i in range(0, len(sums), len(answers))]
        return scores

    def _chunks(
        self, n_prefix: int, ids: Sequence[list[int]], *, plain: bool, extra: int = 0
    ) -> Iterator[list[list[int]]]:
        """Cut continuations, which cost ``extra`` tokens each beside their own, by the budget."""
        chunk: list[list[int]] = []
        n_tokens = n_prefix
        for own in ids:
            needed = len(own) + extra
            if n_prefix + needed > self._max_tokens:
                raise ValueError(
                    f"a text of {n_prefix} tokens with a continuation of {needed} is above "
                    f"max_tokens={self._max_tokens}: raise it"
                )
            if chunk and (plain or n_tokens + needed > self._max_tokens):
                yield chunk
                chunk, n_tokens = [], n_prefix
            chunk.append(own)
            n_tokens += needed
        if chunk:
            yield chunk


@lru_cache(maxsize=1)
def load_scoring_model(source: str) -> tuple[Any, Any]:
    """Load a model for scoring onto the device, once per process: bfloat16 where it multiplies that."""
    model, tokenizer = load_source(source)
    model = model.to(device(), torch.bfloat16 if supports_bfloat16() else torch.float32).eval()
    if unsupported_reason(model.config) is None:
        model.set_attn_implementation(ATTENTION)
    return model, tokenizer


def _n_characters(text: str, continuations: Sequence[str]) -> int:
    return len(text) + sum(map(len, continuations))


def _n_judged(judged: Judged) -> int:
    return _n_characters(judged.before, judged.candidates)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _score_row(model: Any, row: Row, chunk: Sequence[list[int]], plain: bool) -> list[Likelihood]:
    """Score the continuations of one row; ``chunk`` holds the empty ones too."""
    if not row.completions:
        return [Likelihood(0.0, 0) for _ in chunk]
    losses = _losses(model, collate_row(row, plain=plain))
    sums = iter(part.sum().item() for part in losses.split([len(c) for c in row.completions]))
    return [Likelihood(-next(sums) if own else 0.0, len(own)) for own in chunk]


@torch.inference_mode()
def _losses(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the negative log-probability of each label, [t]."""
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    logits, labels = completion_logits(model, inputs), inputs["labels"][0, 1:]
    # in parts: a float32 copy of all logits would be larger than the model
    parts = [
        nn.functional.cross_entropy(part.float(), own, reduction="none")
        for part, own in zip(logits.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(parts)
