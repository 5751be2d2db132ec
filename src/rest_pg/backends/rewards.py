"""Rewards R(x, y, ŷ) in [0, 1]: they see the response and the reference, never the reasoning path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from rest_pg.backends.embeddings import EMBEDDED, Embedder
from rest_pg.records import Sample, Score

COMPONENTS = ("similarity", "rouge_1", "rouge_l")


class CompositeReward:
    """A weighted mean of measures that work at this model size.

    The paper's judge is a 7B language model; the scores that a 135M judge writes are near chance, so
    the embedded default measures instead: ``similarity`` is the cosine of sentence embeddings (0 where
    negative), ``rouge_1`` and ``rouge_l`` are F-measures over stemmed words. ``kedro run --pipelines
    calibration`` measures what each can tell apart.
    """

    def __init__(self, weights: dict[str, float], embedder: str = EMBEDDED) -> None:
        """Weight the components; weights are positive and add up to 1.

        Raises:
            ValueError: a component is unknown, a weight isn't positive, or they don't add up to 1.
        """
        for name, weight in weights.items():
            if name not in COMPONENTS or weight <= 0:
                raise ValueError(
                    f"weights: {name}={weight} is not a positive weight of one of "
                    f"{', '.join(COMPONENTS)}: mend or remove it"
                )
        if not np.isclose(sum(weights.values()), 1):
            raise ValueError(f"weights add up to {sum(weights.values())}, and must to 1")
        self._weights = weights
        self._embedder = Embedder(embedder)
        self._scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)

    def score(self, samples: Sequence[Sample], references: Mapping[str, str]) -> list[Score]:
        """See :class:`~rest_pg.backends.protocols.Reward`; a malformed sample has reward 0."""
        pairs = [("" if s.malformed else s.response, references[s.example_id]) for s in samples]
        components = measure_components(pairs, self._weights, self._embedder, self._scorer)
        return [
            Score(
                reward=min(1.0, sum(self._weights[k] * v for k, v in values.items())),
                components=values,
            )
            for values in components
        ]


def measure_components(
    pairs: Sequence[tuple[str, str]],
    names: Mapping[str, float] | Sequence[str],
    embedder: Embedder,
    scorer: RougeScorer,
) -> list[dict[str, float]]:
    """Measure each (response, reference) pair; an empty response has 0 everywhere."""
    values: list[dict[str, float]] = [dict.fromkeys(names, 0.0) for _ in pairs]
    filled = [i for i, (response, _) in enumerate(pairs) if response]
    if not filled:
        return values
    if "similarity" in names:
        responses = embedder.embed([pairs[i][0] for i in filled])
        references = embedder.embed([pairs[i][1] for i in filled])
        cosines = (responses * references).sum(axis=1)
        for i, cosine in zip(filled, cosines, strict=True):
            values[i]["similarity"] = float(np.clip(cosine, 0, 1))
    for i in filled:
        rouge = scorer.score(pairs[i][1], pairs[i][0])
        for name, key in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
            if name in names:
                values[i][name] = float(rouge[key].fmeasure)
    return values
