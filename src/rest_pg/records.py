"""What flows through the project, in reading order: every arrow of the data is one of these.

``Document → Example → Profile → Prompt → ReasoningPath → TrainingExample → Sample → ScoredSample
→ SelectedSample``. Records are joined by ``example_id`` (and ``sample_index``), never by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text that a user wrote."""

    document_id: str
    user_id: str
    text: str
    title: str | None = None
    date: str | None = None
    """ISO 8601 (``YYYY``, ``YYYY-MM``, ``YYYY-MM-DD``, or a time, in UTC if its zone is known); as typed if it
    can be read in several ways. :mod:`rest_pg.dates` compares dates."""
    index: str | None = None
    """What a retriever reads, where that is more than the text."""

    @property
    def searched(self) -> str:
        """What a retriever reads."""
        return self.index if self.index is not None else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRecord:
    """A raw record that could not be used, and why."""

    source: str
    """The file, and the line in it, that held the record."""
    field: str
    """The field that was missing or malformed."""
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One (x, y, P_u) of the data set D (§2): a request, what its user wrote, and their profile."""

    example_id: str
    user_id: str
    split: Split
    input: str
    """x: the request, a complete instruction."""
    query: str
    """What the request names: its items, or its subject and opening. See ``method.retrieval``."""
    reference: str
    """y: the text that the user really wrote. It never reaches a generation prompt."""
    profile: tuple[Document, ...]
    """P_u: other documents by the same user; the reference is not among them."""
    task: str = ""
    """Where several tasks are mixed, the one that this example is of."""
    copies_left_out: int = 0
    """Documents that held the target, or most of it, and so are not in the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A user without an example, or some documents of a user that training leaves out."""

    user_id: str
    left_out: Literal["user", "documents"]
    documents: int
    reason: str
    parameter: str
    """The one that decides, with its value; empty if none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievedDocument:
    """A profile document, with its similarity to the example's query (higher is nearer)."""

    document_id: str
    text: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The k documents retrieved from an example's profile, nearest first (§4.1)."""

    example_id: str
    documents: tuple[RetrievedDocument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the policy reads for one example: chat markup included, ready to be tokenised as is."""

    example_id: str
    user_id: str
    split: Split
    text: str
    input: str
    """x alone, for the reward."""
    reference: str
    n_tokens: int
    n_documents: int
    """Documents that reached the prompt, whole or in part."""
    n_words_cut: int
    """Words of the retrieved documents that the token budget kept out."""
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPath:
    """A teacher's summary of the user's style and interests, seen in the light of y (§3.1)."""

    example_id: str
    text: str
    copied_ngrams: float
    """Share of the path's 8-grams of words that also occur in the reference, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """A completion to be learnt after a prompt; the loss is on the completion and its end token."""

    example_id: str
    prompt: str
    completion: str
    weight: float = 1.0
    """In the loss; below 0: what the policy should move away from, in training on preferences."""
    finished: bool = True
    """Whether the end token belongs to it: not to a rejected sample that the token budget cut off."""
    fixed: tuple[str, ...] = ()
    """Its parts that the format sets, in order: no choice of the policy, so pairs say nothing of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One draw from the policy: a reasoning path, then the response."""

    example_id: str
    sample_index: int
    text: str
    """What the policy wrote, unparsed."""
    reasoning_path: str
    response: str
    malformed: Literal[
        "", "no_lead_in", "no_bridge", "repeated_bridge", "empty_reasoning_path", "empty_response"
    ]
    """Why the text could not be parsed; empty when it could. A malformed sample has reward 0."""
    finished: bool
    """Whether the policy ended the text itself, within the token budget."""
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward in [0, 1], and the named components that it was made of."""

    reward: float
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """A sample and its reward R(x, y, ŷ), which saw the response and never the reasoning path."""

    sample: Sample
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedSample:
    """A sample kept for the maximization step, with its weight in the loss."""

    sample: Sample
    reward: float
    weight: float
    """Below 0 if it was rejected: kept as the worse one of a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a policy wrote for a user's request, and from what."""

    example_id: str
    user_id: str
    request: str
    response: str
    reasoning_path: str
    documents: tuple[str, ...]
    """Ids of the documents retrieved for the prompt, nearest first."""
    malformed: str
    """As in :class:`Sample`; the response is then all that was written."""
    finished: bool


@dataclass(frozen=True, slots=True)
class PolicyCheckpoint:
    """A handle on a language model on disk: a directory with safetensors, config and tokenizer.

    Datasets and nodes pass the handle, so that the weights are read only where they are used.
    """

    path: Path
    address: str = ""
    """In an object store, for machines that don't have ``path``; empty: it is in none."""
    fingerprint: str = ""
    """Of what is at ``address``: another machine's copy may be of a policy before it."""
    query: Literal["", "given", "request"] = ""
    """The kind of query that its training retrieved with; empty: it doesn't say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemCurve:
    """One quantity of one system over its EM iterations."""

    metric: str
    points: list[tuple[int, float]]
    """Iteration (0 is what self-training starts from) and value."""
