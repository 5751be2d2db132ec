"""Who is asked for what, and from which profile: LongLaMP's user and temporal settings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rest_pg.config import ExampleParams
from rest_pg.pipelines.data_ingestion.time_order import order_in_time
from rest_pg.records import Document, Split
from rest_pg.text import copied_share, word_ends

NEAR_COPY = 0.5
"""Share of a target's 8-grams of words in one document, from which on the document is a near-copy of it."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Target:
    """A document that an example asks for, and the documents it may be written from."""

    split: Split
    document: Document
    profile: tuple[Document, ...]
    copies_left_out: int = 0
    """Near-copies of a target that this profile would hold otherwise."""


def random_for(*key: object) -> random.Random:
    """Return a generator that depends on the key alone: adding a user changes no other's draws."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def split_users(users: Sequence[str], params: ExampleParams, seed: int) -> dict[str, Split]:
    """Assign each user to one split, by seed.

    Raises:
        ValueError: there are fewer than three users.
    """
    if len(users) < len(SPLITS):
        raise ValueError(
            f"{len(users)} users have enough documents, and the user setting needs 3, one per split:"
            " bring more users, lower examples.min_profile_size, or set examples.setting=temporal"
        )
    order = sorted(users, key=lambda user: (random_for(seed, "split", user).random(), user))
    n_test = max(1, round(params.test_share * len(order)))
    n_validation = max(1, round(params.validation_share * len(order)))
    if n_test + n_validation >= len(order):
        raise ValueError(
            f"test_share={params.test_share} and validation_share={params.validation_share} leave no "
            f"user of {len(order)} to train on: lower them"
        )
    held_out: dict[str, Split] = dict.fromkeys(order[:n_test], "test")
    held_out |= dict.fromkeys(order[n_test : n_test + n_validation], "validation")
    return {user: held_out.get(user, "train") for user in order}


def users_drawn(n_documents: Mapping[str, int], params: ExampleParams, seed: int) -> list[str]:
    """Return the users who have enough documents, ``max_users`` of them at most, drawn by seed."""
    users = sorted(user for user, n in n_documents.items() if n > params.min_profile_size)
    users = sorted(users, key=lambda user: random_for(seed, "user", user).random())
    return sorted(users[: params.max_users])


def draw_targets(
    documents: Sequence[Document], split: Split, params: ExampleParams, seed: int
) -> Iterator[Target]:
    """User setting: draw a user's targets, and one profile for all of them from the rest."""
    generator = random_for(seed, "targets", documents[0].user_id)
    shuffled = generator.sample(list(documents), len(documents))
    n_targets = min(
        params.examples_per_user.get(split, 0), len(documents) - params.min_profile_size
    )
    targets = [d for d in shuffled if _askable(d, params)][: max(n_targets, 0)]
    chosen = {d.document_id for d in targets}
    rest = [d for d in shuffled if d.document_id not in chosen]
    others = _without_copies(rest, targets)
    profile, n_copies = tuple(others[: params.max_profile_size]), len(rest) - len(others)
    if len(profile) >= params.min_profile_size:
        yield from (Target(split, target, profile, n_copies) for target in targets)


def hold_out_latest(
    documents: Sequence[Document], params: ExampleParams, seed: int
) -> Iterator[Target]:
    """Temporal setting: the latest documents are test targets, those before them validation's.

    A profile holds only documents older than its target; the newest of them, if there are many.

    Raises:
        ValueError: a document has no date, or the order of two isn't clear.
    """
    ordered = order_in_time(documents)
    in_time = [document for _, document in ordered]
    places = {document.document_id: place for place, document in ordered}
    n_test = max(1, round(params.test_share * len(in_time)))
    n_validation = max(1, round(params.validation_share * len(in_time)))
    ends = {"train": len(in_time) - n_test - n_validation, "validation": len(in_time) - n_test}
    pools: dict[Split, list[Document]] = {
        "train": in_time[: max(ends["train"], 0)],
        "validation": in_time[max(ends["train"], 0) : ends["validation"]],
        "test": in_time[ends["validation"] :],
    }
    for split, pool in pools.items():
        generator = random_for(seed, "targets", split, documents[0].user_id)
        n_left = params.examples_per_user.get(split, 0)
        for target in generator.sample(pool, len(pool)):
            older = [d for place, d in ordered if place < places[target.document_id]]
            others = _without_copies(older, [target])
            profile = others[-params.max_profile_size :]
            enough = len(profile) >= params.min_profile_size
            if n_left > 0 and enough and _askable(target, params):
                n_left -= 1
                yield Target(split, target, tuple(profile), len(older) - len(others))


def cut_opening(text: str, n_words: int) -> tuple[str, str]:
    """Return a text's first words, and what follows them; white space within is kept."""
    ends = list(word_ends(text))
    end = ends[min(n_words, len(ends)) - 1] if n_words and ends else 0
    return text[:end], text[end:].strip()


def is_near_copy(document: str, target: str) -> bool:
    """Whether a document holds much of a target; never, of a target shorter than 8 words."""
    return copied_share(target, document) >= NEAR_COPY


def _askable(document: Document, params: ExampleParams) -> bool:
    return len(document.text.split()) <= params.max_reference_words


def _without_copies(documents: Sequence[Document], targets: Sequence[Document]) -> list[Document]:
    """Leave out documents that hold much of a target: it would be in its own profile."""
    return [
        document
        for document in documents
        if not any(is_near_copy(document.text, target.text) for target in targets)
    ]
