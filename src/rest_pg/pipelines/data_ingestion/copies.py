"""Copies: documents that hold a target, and texts that several users have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from itertools import groupby

from rest_pg.records import Document, Example
from rest_pg.text import ngrams, text_key, words

NEAR_COPY = 0.5
"""Share of a target's 8-grams of words in one document, from which on the document is a near-copy of it."""
NGRAM = 8


Ngrams = list[tuple[str, ...]]


def is_near_copy(document: str, target: str) -> bool:
    """Whether a document holds much of a target; never, of a target shorter than 8 words."""
    return _holds(frozenset(_cut(document)), _cut(target))


def without_copies(documents: Sequence[Document], targets: Sequence[Document]) -> list[Document]:
    """Leave out documents that hold much of a target: it would be in its own profile."""
    cut_targets = [_cut(target.text) for target in targets]
    kept = []
    for document in documents:
        known = frozenset(_cut(document.text))
        if not any(_holds(known, target) for target in cut_targets):
            kept.append(document)
    return kept


def count_near_copies(examples: Sequence[Example]) -> int:
    """Count the examples whose profile holds most of their reference.

    A user's examples mostly have one profile, so each of its documents is cut into 8-grams once.
    """
    n = 0
    for _, group in groupby(examples, key=lambda example: example.user_id):
        known: dict[str, frozenset[tuple[str, ...]]] = {}
        for example in group:
            target = _cut(example.reference)
            for document in example.profile:
                if document.text not in known:
                    known[document.text] = frozenset(_cut(document.text))
            n += any(_holds(known[document.text], target) for document in example.profile)
    return n


def _cut(text: str) -> Ngrams:
    return list(ngrams(words(text), NGRAM))


def _holds(known: Set[tuple[str, ...]], target: Ngrams) -> bool:
    return bool(target) and sum(gram in known for gram in target) / len(target) >= NEAR_COPY


class SharedTexts:
    """Texts that several users have: those that are held out may not stand in training.

    Two texts are the same if they differ in white space, case or Unicode form alone.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """Find the texts that several users have.

        Args:
            texts: a user's id and a text, once for each document.
        """
        first: dict[bytes, str] = {}
        self._shared: set[bytes] = set()
        self._held_out: set[bytes] = set()
        for user_id, text in texts:
            key = text_key(text)
            if first.setdefault(key, user_id) != user_id:
                self._shared.add(key)

    def hold_out(self, texts: Iterable[str]) -> None:
        """Note the texts of a validation or test example: its target, and its profile."""
        if self._shared:
            self._held_out |= self._shared.intersection(map(text_key, texts))

    def stands_held_out(self, text: str) -> bool:
        """Whether the text is shared, and stands in a held-out example."""
        return bool(self._held_out) and text_key(text) in self._held_out


def leave_out_shared(examples: Sequence[Example]) -> tuple[list[Example], Counter[str]]:
    """Take held-out texts that several users have out of given training examples.

    A training example whose reference is such a text is left out, and so is one whose profile holds nothing else.

    Returns:
        The other examples, in order; and what was left out: ``examples``, and profile ``documents`` of those kept.
    """
    shared = SharedTexts((e.user_id, text) for e in examples for text in _texts(e))
    for example in examples:
        if example.split != "train":
            shared.hold_out(_texts(example))
    kept, counts = [], Counter[str]()
    for example in examples:
        profile = example.profile
        if example.split == "train":
            profile = tuple(d for d in profile if not shared.stands_held_out(d.text))
            if not profile or shared.stands_held_out(example.reference):
                counts["examples"] += 1
                continue
        n_left_out = len(example.profile) - len(profile)
        counts["documents"] += n_left_out
        kept.append(replace(example, profile=profile) if n_left_out else example)
    return kept, +counts


def _texts(example: Example) -> list[str]:
    return [example.reference, *(document.text for document in example.profile)]
