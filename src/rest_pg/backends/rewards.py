"""Rewards R(x, y, ŷ) in [0, 1]: they see the response and the reference, never the reasoning path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rest_pg.backends.embeddings import EMBEDDED, Embedder
from rest_pg.backends.likelihood import LikelihoodScorer
from rest_pg.backends.protocols import Target
from rest_pg.progress import tracked
from rest_pg.records import Sample, Score
from rest_pg.rouge import rouge_scorer

COMPONENTS = ("similarity", "rouge_1", "rouge_l", "likelihood")

Pair = tuple[str, str]
"""A response and its reference."""


class Measures:
    """What a composite reward is made of: each measures how near a response is to its reference.

    - ``similarity``: the cosine of sentence embeddings, 0 where negative;
    - ``rouge_1``, ``rouge_l``: F-measures over stemmed words;
    - ``likelihood``: the share by which reading the reference first lowers a language model's
      perplexity of the response, 0 where it raises it.

    All are in [0, 1], and 0 for an empty response.
    """

    def __init__(
        self, names: Iterable[str], embedder: str = EMBEDDED, model: str = EMBEDDED
    ) -> None:
        """Name the measures, and the models of ``similarity`` and of ``likelihood``.

        Raises:
            ValueError: a measure is unknown.
        """
        self._names = tuple(names)
        for name in self._names:
            if name not in COMPONENTS:
                raise ValueError(
                    f"{name!r} is not one of {', '.join(COMPONENTS)}: mend or remove it"
                )
        self._embedder, self._likelihood = Embedder(embedder), LikelihoodScorer(model)
        self._rouge = rouge_scorer(["rouge1", "rougeL"])

    def measure(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Measure each pair, in order."""
        values: list[dict[str, float]] = [dict.fromkeys(self._names, 0.0) for _ in pairs]
        filled = [i for i, (response, _) in enumerate(pairs) if response.strip()]
        chosen = [pairs[i] for i in filled]
        if not chosen:
            return values
        columns: dict[str, Sequence[float]] = {}
        if "similarity" in self._names:
            columns["similarity"] = self._similarities(chosen)
        if "likelihood" in self._names:
            columns["likelihood"] = self._likelihoods(chosen)
        if "rouge_1" in self._names or "rouge_l" in self._names:
            bar = tracked(chosen, "scoring", "sample")
            rouge = [self._rouge.score(reference, response) for response, reference in bar]
            columns["rouge_1"] = [score["rouge1"].fmeasure for score in rouge]
            columns["rouge_l"] = [score["rougeL"].fmeasure for score in rouge]
        for place, i in enumerate(filled):
            values[i] = {name: float(columns[name][place]) for name in self._names}
        return values

    def _similarities(self, pairs: Sequence[Pair]) -> Sequence[float]:
        responses, references = (self._embedder.embed(texts) for texts in zip(*pairs, strict=True))
        cosines = (responses * references).sum(axis=1)
        return [float(value) for value in np.clip(cosines, 0, 1)]

    def _likelihoods(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """Compare each response behind its reference with the same one behind nothing but a break."""
        by_reference: dict[str, list[int]] = {}
        for i, (_, reference) in enumerate(pairs):
            by_reference.setdefault(reference, []).append(i)
        groups = [
            (reference + BREAK, [pairs[i][0] for i in own])
            for reference, own in by_reference.items()
        ]
        *behind, alone = self._likelihood.score([*groups, (BREAK, [r for r, _ in pairs])])
        values = [0.0] * len(pairs)
        for own, scores in zip(by_reference.values(), behind, strict=True):
            for i, score in zip(own, scores, strict=True):
                gain = (score.log_probability - alone[i].log_probability) / max(score.n_tokens, 1)
                values[i] = 1 - math.exp(-max(0.0, gain))
        return values


BREAK = "\n\n"
"""Between reference and response, when a language model reads one after the other."""


class CompositeReward:
    """A weighted mean of measures that work at this model size.

    The paper's judge is a 7B language model; the scores that a 135M judge writes are near chance, so
    the embedded default measures instead; see :class:`Measures`. ``kedro run --pipelines
    calibration`` measures what each can tell apart.
    """

    def __init__(
        self, weights: dict[str, float], embedder: str = EMBEDDED, model: str = EMBEDDED
    ) -> None:
        """Weight the measures; weights are positive and add up to 1.

        Raises:
            ValueError: a measure is unknown, a weight isn't positive, or they don't add up to 1.
        """
        self._measures = Measures(weights, embedder, model)
        for name, weight in weights.items():
            if weight <= 0:
                raise ValueError(f"weights: {name}={weight} is not positive: raise or remove it")
        if not np.isclose(sum(weights.values()), 1):
            raise ValueError(f"weights add up to {sum(weights.values())}, and must to 1")
        self._weights = weights

    def score(self, samples: Sequence[Sample], targets: Mapping[str, Target]) -> list[Score]:
        """See :class:`~rest_pg.backends.protocols.Reward`; a malformed sample has reward 0."""
        pairs = [
            ("" if s.malformed else s.response, targets[s.example_id].reference) for s in samples
        ]
        return [
            Score(
                reward=min(1.0, sum(self._weights[k] * v for k, v in values.items())),
                components=values,
            )
            for values in self._measures.measure(pairs)
        ]
