"""The shape of each back-end. The catalog says which class stands behind it, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rest_pg.config import Decoding, TrainingParams
from rest_pg.records import (
    Example,
    PolicyCheckpoint,
    Profile,
    ReasoningPath,
    Sample,
    Score,
    TrainingExample,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, and one seed per sample to draw from it."""

    example_id: str
    prompt: str
    """The complete text: tokenised as is, no special token is added."""
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The text of one draw, without its end token."""

    example_id: str
    sample_index: int
    """The position of its seed in the request."""
    text: str
    finished: bool
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a response is rewarded for: the request x, and what the user really wrote, y."""

    input: str
    reference: str


class Generator(Protocol):
    """Draws samples from a policy."""

    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Return ``sum(len(r.seeds) for r in requests)`` draws, by request and then by seed."""


class Reward(Protocol):
    """R(x, y, ŷ) of §3.2."""

    def score(self, samples: Sequence[Sample], targets: Mapping[str, Target]) -> list[Score]:
        """Return one score per sample, in order; the reward of each is in [0, 1].

        Only ``sample.response`` is judged. ``targets`` is keyed by example id.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a judge reads: candidates that all stand between the same two texts."""

    before: str
    """Rubric, request and reference."""
    candidates: tuple[str, ...]
    after: str
    """What stands between a candidate and its level."""


class LevelScorer(Protocol):
    """The language model behind a judge."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, whose chat template the judge's prompt is written with."""

    def score_levels(
        self, judged: Sequence[Judged], levels: Sequence[str]
    ) -> list[list[list[float]]]:
        """Return the natural logarithm of each level's probability as the answer.

        One list per item, in order; in it one per candidate, and in that one value per level.
        """


class Retriever(Protocol):
    """Finds the documents of a profile that matter for a request."""

    def retrieve(self, examples: Sequence[Example], k: int) -> list[Profile]:
        """Return one profile per example, in order, of at most k documents, nearest first."""


class Teacher(Protocol):
    """Writes the reasoning paths that the policy is first trained on (§3.1)."""

    def write(
        self,
        examples: Sequence[Example],
        profiles: Mapping[str, Profile],
        policy: PolicyCheckpoint,
    ) -> list[ReasoningPath]:
        """Return one reasoning path per example, in order. It never quotes the reference.

        Args:
            examples: training examples.
            profiles: what was retrieved for each, by example id.
            policy: the language model of a teacher that uses one (the base policy).
        """


class Trainer(Protocol):
    """Fine-tunes a policy: supervised fine-tuning, and the maximization step."""

    def train(
        self,
        policy: PolicyCheckpoint,
        examples: Sequence[TrainingExample],
        params: TrainingParams,
        seed: int,
    ) -> tuple[PolicyCheckpoint, dict[str, float]]:
        """Return the trained policy in a temporary directory, and figures on the training."""
