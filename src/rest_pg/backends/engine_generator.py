"""A generator and a judge's scorer over any engine that goes on from token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from rest_pg.backends.engines import Ask, Engine, Written
from rest_pg.backends.models import load_stop_tokens, load_tokenizer
from rest_pg.backends.protocols import Generation, GenerationRequest, Judged
from rest_pg.config import Decoding
from rest_pg.records import PolicyCheckpoint


class EngineGenerator:
    """Draws with an engine what :class:`~rest_pg.backends.shared_prefix.SharedPrefixGenerator` would.

    Prompts are tokenised and samples are read here, so that every engine sees the same tokens and ends a
    sample where the others do.
    """

    def __init__(self, engine: Engine) -> None:
        """Take the engine; it may start at the first call."""
        self._engine = engine

    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Draw every sample of every request; see :class:`~rest_pg.backends.protocols.Generator`."""
        requests = [request for request in requests if request.seeds]
        if not requests:
            return []
        tokenizer, stop = load_tokenizer(policy), load_stop_tokens(policy)
        sampling = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
            "stop_token_ids": sorted(stop),
        }
        asks = [
            Ask(tokens=_ids(tokenizer, r.prompt), seeds=r.seeds, sampling=sampling)
            for r in requests
        ]
        written = self._engine.write(policy, asks, "sampling")
        return [
            _generation(request.example_id, i, sample, tokenizer, stop)
            for request, samples in zip(requests, written, strict=True)
            for i, sample in enumerate(samples)
        ]


class EngineLevelScorer:
    """Scores a rubric's levels by an engine's log-probabilities.

    A level of several tokens is scored token by token. Behind each sample the engine is asked once for the
    tokens that levels begin with, and once behind each beginning that is longer: with prefix caching that
    costs one token, and the sample itself is processed once.
    """

    def __init__(self, engine: Engine, find: Callable[[], PolicyCheckpoint]) -> None:
        """Take the engine, and what finds the judge's model when it is needed."""
        self._engine, self._find = engine, find

    @cached_property
    def _judge(self) -> PolicyCheckpoint:
        return self._find()

    @property
    def tokenizer(self) -> Any:
        """The judge's tokenizer."""
        return load_tokenizer(self._judge)

    def score_levels(
        self, judged: Sequence[Judged], levels: Sequence[str]
    ) -> list[list[list[float]]]:
        """See :class:`~rest_pg.backends.protocols.LevelScorer`."""
        tokenizer = self.tokenizer
        answers = [_ids(tokenizer, level) for level in levels]
        if not all(answers):
            raise ValueError(f"a level of {list(levels)!r} has no tokens: fill it")
        nexts: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            for i, token in enumerate(answer):
                nexts.setdefault(tuple(answer[:i]), set()).add(token)
        bodies = [
            _ids(tokenizer, own.before) + _ids(tokenizer, candidate + own.after)
            for own in judged
            for candidate in own.candidates
        ]
        asks = [
            Ask(tokens=[*body, *begun], seeds=(0,), sampling=_one_token(tokens))
            for body in bodies
            for begun, tokens in nexts.items()
        ]
        written = iter(self._engine.write(self._judge, asks, "judging") if asks else [])
        scored = []
        for _ in bodies:
            known = {begun: next(written)[0].log_probabilities for begun in nexts}
            scored.append([_log_probability(known, answer) for answer in answers])
        rows = iter(scored)
        return [[next(rows) for _ in own.candidates] for own in judged]


def _one_token(tokens: set[int]) -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": sorted(tokens)}


def _log_probability(known: dict[tuple[int, ...], dict[int, float]], answer: list[int]) -> float:
    return sum(known[tuple(answer[:i])][token] for i, token in enumerate(answer))


def _generation(
    example_id: str, sample_index: int, sample: Written, tokenizer: Any, stop: set[int]
) -> Generation:
    tokens = sample.tokens
    finished = sample.ended
    if sample.text is None:
        kept = tokens[:-1] if tokens and tokens[-1] in stop else tokens
        text, n_tokens = tokenizer.decode(kept, skip_special_tokens=True), len(tokens)
    else:
        text, n_tokens = sample.text, len(_ids(tokenizer, sample.text)) + finished
    return Generation(
        example_id=example_id,
        sample_index=sample_index,
        text=text,
        finished=finished,
        n_tokens=n_tokens,
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
