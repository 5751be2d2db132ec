"""A language model as the judge: the paper's reward (§3.2), read from probabilities, not from text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kedro.utils import load_obj

from rest_pg.backends.likelihood import LikelihoodScorer
from rest_pg.backends.models import EMBEDDED
from rest_pg.backends.protocols import Judged, LevelScorer, Target
from rest_pg.prompts import apply_chat_template, compile_template, markup_escape
from rest_pg.records import Sample, Score

LEVELS = (1, 3, 5, 7, 10)
"""The rubric's levels: unrelated, minor relevance, moderate, aligned with omissions, perfect."""


class RubricJudge:
    """Scores a response by the probability that a judge gives each level of a rubric.

    No text is generated: rubric, request and reference are processed once for all samples of an
    example, and each sample once for all levels. A level is a whole answer with its terminator, so
    that 10 doesn't lose to 1 where digits are tokens of their own.

    Texts reach the judge between fences that hold a number which no policy can know beforehand, so
    that a response can't close its fence and go on as the judge's instructions; and the judge's own markup is
    escaped in them, so that a response can't end the message it stands in.
    """

    def __init__(
        self,
        template: str,
        model: str = EMBEDDED,
        aggregation: Literal["argmax", "expected"] = "argmax",
        levels: Sequence[int] = LEVELS,
        terminator: str = "\n",
        system: str = "",
        max_tokens: int = 8192,
        scorer: dict[str, Any] | None = None,
    ) -> None:
        """Name the judge and how its answer is read.

        Args:
            template: file with the judge's prompt; its fields are input, reference, response, fence
                and levels.
            model: ``embedded``, a hub id or a directory (the paper: Gemma 7B-it).
            aggregation: argmax, the level of highest probability by the highest level (the paper,
                with τ = 1.0); or expected, the mean of the levels under their probabilities, which
                never reaches 1: τ must then be lower.
            levels: rising numbers; the last is full marks.
            terminator: what ends the judge's answer.
            system: system message.
            max_tokens: of one forward.
            scorer: ``backend`` (dotted path) and ``arguments`` of another
                :class:`~rest_pg.backends.protocols.LevelScorer`, such as vLLM, which gets ``model`` too;
                none: the model is run in process.

        Raises:
            ValueError: an aggregation is unknown, or the levels don't rise from above 0.
        """
        if aggregation not in ("argmax", "expected"):
            raise ValueError(
                f"aggregation={aggregation!r} is neither argmax nor expected: name one"
            )
        if list(levels) != sorted(set(levels)) or not levels or levels[0] <= 0:
            raise ValueError(f"levels={list(levels)} must rise from above 0: sort them")
        self._render = compile_template(Path(template).read_text(encoding="utf-8"))
        self._system, self._aggregation = system, aggregation
        self._levels, self._terminator = tuple(levels), terminator
        self._scorer: LevelScorer = (
            LikelihoodScorer(model, max_tokens)
            if scorer is None
            else load_obj(scorer["backend"])(model=model, **scorer.get("arguments", {}))
        )

    def reachable(self, threshold: float) -> bool:
        """Say whether any response could have this reward.

        The mean of the levels stays below full marks, however sure the judge is.
        """
        return threshold < 1 or (threshold == 1 and self._aggregation == "argmax")

    def score(self, samples: Sequence[Sample], targets: Mapping[str, Target]) -> list[Score]:
        """See :class:`~rest_pg.backends.protocols.Reward`; a malformed sample has reward 0.

        The components are the probabilities of the levels, ``level_1`` and so on.
        """
        groups: dict[str, list[int]] = {}
        for i, sample in enumerate(samples):
            if sample.response and not sample.malformed:
                groups.setdefault(sample.example_id, []).append(i)
        scores = [Score(reward=0.0) for _ in samples]
        answers = [f"{level}{self._terminator}" for level in self._levels]
        judged = [
            self._judged(example_id, targets[example_id], [samples[i].response for i in own])
            for example_id, own in groups.items()
        ]
        logs = self._scorer.score_levels(judged, answers) if judged else []
        for own, rows in zip(groups.values(), logs, strict=True):
            for i, levels in zip(own, rows, strict=True):
                scores[i] = self._read(levels)
        return scores

    def _judged(self, example_id: str, target: Target, responses: Sequence[str]) -> Judged:
        """Return the judge's prompt, around each response."""
        tokenizer = self._scorer.tokenizer
        escape = markup_escape(tokenizer)
        # the policy sees neither the reference nor this digest of it
        key = hashlib.sha256(f"{example_id}\0{target.reference}".encode()).hexdigest()
        fence, place = key[:12], key[12:44]
        text = self._render(
            input=escape(target.input),
            reference=escape(target.reference),
            response=place,
            fence=fence,
            levels=self._levels,
        )
        written = apply_chat_template(tokenizer, self._system, text)
        before, found, after = written.partition(place)
        if not found:
            raise ValueError("the judge's template has no {{ response }}: add it")
        return Judged(before=before, candidates=tuple(map(escape, responses)), after=after)

    def _read(self, logs: Sequence[float]) -> Score:
        """Turn the levels' log-probabilities into a reward; equal levels count as the lower one.

        Raises:
            ValueError: they are none, as from weights that overflow in half precision.
        """
        highest = max(logs)
        if not math.isfinite(highest) or any(map(math.isnan, logs)):
            raise ValueError(
                f"the judge gives the levels {list(self._levels)} the log-probabilities {list(logs)}, and "
                "none can be read from them: run it in bfloat16 or float32, or name another model"
            )
        weights = [math.exp(value - highest) for value in logs]
        shares = [weight / sum(weights) for weight in weights]
        if self._aggregation == "argmax":
            level = float(self._levels[shares.index(max(shares))])
        else:
            level = sum(p * v for p, v in zip(shares, self._levels, strict=True))
        return Score(
            reward=level / self._levels[-1],
            components={f"level_{v}": p for v, p in zip(self._levels, shares, strict=True)},
        )
