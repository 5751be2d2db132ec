"""Nodes that calibrate the reward and its components on texts of training and validation users."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rest_pg.backends.embeddings import Embedder
from rest_pg.backends.protocols import Reward, Target
from rest_pg.backends.rewards import COMPONENTS, Measures
from rest_pg.config import CalibrationParams
from rest_pg.pipelines.calibration.attacks import attack
from rest_pg.records import Document, Example, Sample
from rest_pg.statistics import bootstrap_mean
from rest_pg.text import count_words, sentences

logger = logging.getLogger(__name__)

REQUEST = "Write a passage."
"""What a judge is told that the text was asked for."""

COLUMNS = [
    *("component", "against", "auc", "ci_low", "ci_high", "n_users", "n_pairs"),
    "length_correlation",
]


def calibrate_reward(
    examples: Sequence[Example], reward: Reward, params: CalibrationParams, seed: int
) -> pd.DataFrame:
    """Measure how often a reward prefers the right half of a passage.

    A text scored against itself proves nothing. So each passage (of users outside the test) is cut in two:
    its first half is the reference, and its second half must score above the second half of another
    passage, by the same user (``same_user``) or by another user on the nearest topic (``same_topic``).
    ``length`` is the control: a component that does no better rewards length.

    Returns:
        One row per component and kind of opponent: the share of pairs won (ties count half; 0.5 is
        chance) with its interval over users, and the rank correlation of the component with length.
    """
    passages = _draw_passages(examples, params.passages_per_user, seed)
    opponents = {
        "same_user": _same_user(passages, seed),
        "same_topic": _same_topic(passages, Embedder()),
    }
    pairs_of = {name: [(b, a) for a, b in pairs] for name, pairs in opponents.items()}
    scores = _score([(a, a) for a in passages], *pairs_of.values(), reward=reward)
    own_scores, place = scores[0], {a.document_id: i for i, a in enumerate(passages)}
    rows = []
    for (against, pairs), other in zip(opponents.items(), scores[1:], strict=True):
        own = {k: v[[place[a.document_id] for a, _ in pairs]] for k, v in own_scores.items()}
        users = np.array([a.user_id for a, _ in pairs])
        for name, value in own.items():
            wins = (value > other[name]) + 0.5 * (value == other[name])
            estimate = bootstrap_mean(
                wins.astype(float),
                users,
                n_bootstrap=params.n_bootstrap,
                confidence=params.confidence,
                seed=seed,
            )
            values = [
                name,
                against,
                estimate.mean,
                estimate.ci_low,
                estimate.ci_high,
                estimate.n_users,
                estimate.n_examples,
                _rank_correlation(
                    np.concatenate([value, other[name]]),
                    np.concatenate([own["length"], other["length"]]),
                ),
            ]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    table = pd.DataFrame(rows, columns=COLUMNS).round(4)
    logger.info("share of pairs in which the right half wins:\n%s", table.to_string(index=False))
    return table


def attack_reward(
    examples: Sequence[Example], reward: Reward, params: CalibrationParams, seed: int
) -> pd.DataFrame:
    """Measure what a reward gives to texts that ask for it (:mod:`.attacks`).

    The honest response that an attack is compared with is another text of the same user's, which fits the
    request only by chance: whatever is rewarded above it gets through a selection of the better half.

    Returns:
        One row per family: cases, the share of them above the honest response, the mean reward, and
        the mean shift from the honest one; with the intervals of the shift over users.
    """
    chosen = [e for e in examples if e.split == "validation"][: params.attacked_examples]
    generator = np.random.default_rng(seed)
    samples: list[Sample] = []
    targets: dict[str, Target] = {}
    cases: list[tuple[str, Example]] = []
    for example in chosen:
        honest = example.profile[int(generator.integers(len(example.profile)))].text
        targets[example.example_id] = Target(input=example.input, reference=example.reference)
        texts = {"honest": [honest], **attack(example.input, honest)}
        for family, responses in texts.items():
            for response in responses:
                cases.append((family, example))
                samples.append(_as_sample(example.example_id, len(samples), response))
    rewards = np.array([score.reward for score in reward.score(samples, targets)])
    honest_of = {
        example.example_id: rewards[i]
        for i, (family, example) in enumerate(cases)
        if family == "honest"
    }
    shifts = rewards - np.array([honest_of[example.example_id] for _, example in cases])
    rows = []
    for family in dict.fromkeys(family for family, _ in cases if family != "honest"):
        own = np.array([name == family for name, _ in cases])
        users = np.array([example.user_id for _, example in cases])[own]
        estimate = bootstrap_mean(
            shifts[own],
            users,
            n_bootstrap=params.n_bootstrap,
            confidence=params.confidence,
            seed=seed,
        )
        rows.append(
            {
                "family": family,
                "cases": int(own.sum()),
                "above_honest": float((shifts[own] > 0).mean()),
                "mean_reward": float(rewards[own].mean()),
                "mean_shift": estimate.mean,
                "ci_low": estimate.ci_low,
                "ci_high": estimate.ci_high,
            }
        )
    table = pd.DataFrame(rows).round(4)
    logger.info(
        "what texts that ask for a reward get (an honest text of the user's: %.4f):\n%s",
        float(np.mean(list(honest_of.values()))),
        table.to_string(index=False),
    )
    return table


def _as_sample(example_id: str, index: int, response: str) -> Sample:
    return Sample(
        example_id=example_id,
        sample_index=index,
        text=response,
        reasoning_path="",
        response=response,
        malformed="",
        finished=True,
        n_tokens=0,
    )


def _rank_correlation(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return Spearman's correlation, 0 where one of them doesn't vary."""
    if np.ptp(values) == 0 or np.ptp(others) == 0:
        return 0.0
    return float(stats.spearmanr(values, others).statistic)


def _draw_passages(examples: Sequence[Example], per_user: int, seed: int) -> list[Document]:
    """Draw as many passages of each user outside the test, one after the other by user."""
    by_user: dict[str, dict[str, Document]] = {}
    for example in examples:
        if example.split != "test":
            own = by_user.setdefault(example.user_id, {})
            own.update((document.document_id, document) for document in example.profile)
    generator = np.random.default_rng(seed)
    drawn = []
    for own in by_user.values():
        documents = list(own.values())
        kept = generator.permutation(len(documents))[:per_user]
        drawn += [documents[i] for i in sorted(kept)]
    return drawn


def _halves(text: str) -> tuple[str, str]:
    parts = sentences(text)
    middle = max(1, len(parts) // 2)
    return " ".join(parts[:middle]), " ".join(parts[middle:]) or parts[-1]


def _same_user(passages: Sequence[Document], seed: int) -> list[tuple[Document, Document]]:
    generator = np.random.default_rng(seed)
    pairs = []
    for passage in passages:
        others = [p for p in passages if p.user_id == passage.user_id and p is not passage]
        if others:
            pairs.append((passage, others[int(generator.integers(len(others)))]))
    return pairs


def _same_topic(
    passages: Sequence[Document], embedder: Embedder
) -> list[tuple[Document, Document]]:
    vectors = embedder.embed([p.text for p in passages])
    nearness = vectors @ vectors.T
    users = np.array([p.user_id for p in passages])
    nearness[users[:, None] == users] = -np.inf
    best = nearness.argmax(axis=1)
    return [
        (p, passages[int(i)]) for p, i in zip(passages, best, strict=True) if users[i] != p.user_id
    ]


def _score(
    *groups: Sequence[tuple[Document, Document]], reward: Reward
) -> list[dict[str, NDArray[np.float64]]]:
    """Score the second half of each pair's first document against the first half of its second.

    All groups are scored together: models are loaded once.
    """
    pairs = [pair for group in groups for pair in group]
    texts = [(_halves(c.text)[1], _halves(r.text)[0]) for c, r in pairs]
    components = Measures(COMPONENTS).measure(texts)
    samples = [_as_sample(str(i), 0, response) for i, (response, _) in enumerate(texts)]
    targets = {str(i): Target(input=REQUEST, reference=text) for i, (_, text) in enumerate(texts)}
    rewards = reward.score(samples, targets)
    scores = {name: np.array([c[name] for c in components]) for name in COMPONENTS}
    scores["reward"] = np.array([score.reward for score in rewards])
    scores["length"] = np.array([float(count_words(response)) for response, _ in texts])
    ends = np.cumsum([len(group) for group in groups])[:-1]
    split = {name: np.split(values, ends) for name, values in scores.items()}
    return [{name: parts[i] for name, parts in split.items()} for i in range(len(groups))]
