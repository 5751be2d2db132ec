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

    def copy(self) -> SharedTexts:
        """Return the same texts, of which none is held out."""
        other = SharedTexts(())
        other._shared = self._shared
        return other

    def among(self, texts: Iterable[str]) -> set[bytes]:
        """Return the keys of those texts that several users have."""
        return self._shared.intersection(map(text_key, texts)) if self._shared else set()

    def hold_out(self, texts: Iterable[str]) -> None:
        """Note the texts of a validation or test example: its target, and its profile."""
        self._held_out |= self.among(texts)

    def stands_held_out(self, text: str) -> bool:
        """Whether the text is shared, and stands in a held-out example."""
        return bool(self._held_out) and text_key(text) in self._held_out


def leave_out_shared(examples: Sequence[Example]) -> tuple[list[Example], Counter[str]]:
    """Take what held-out examples share with other users' out of given training examples.

    A training example is left out if its reference stands in a held-out example of another user. Documents that are
    a held-out reference are left out of training profiles. A document may stand in profiles on both sides: there it is
    read, and never learnt or asked for.

    Returns:
        The other examples, in order; and what was left out: ``examples``, and profile ``documents`` of those kept.
    """
    shared = SharedTexts((e.user_id, text) for e in examples for text in _texts(e))
    held_out = [example for example in examples if example.split != "train"]
    asked = shared.among(example.reference for example in held_out)
    standing = shared.among(text for example in held_out for text in _texts(example))
    kept, counts = [], Counter[str]()
    for example in examples:
        profile = example.profile
        if example.split == "train" and standing:
            profile = tuple(d for d in profile if text_key(d.text) not in asked)
            if not profile or text_key(example.reference) in standing:
                counts["examples"] += 1
                continue
        n_left_out = len(example.profile) - len(profile)
        counts["documents"] += n_left_out
        kept.append(replace(example, profile=profile) if n_left_out else example)
    return kept, +counts


def _texts(example: Example) -> list[str]:
    return [example.reference, *(document.text for document in example.profile)]
