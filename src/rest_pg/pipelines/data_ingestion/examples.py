"""Who is asked for what, and from which profile: LongLaMP's user and temporal settings."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rest_pg.config import ExampleParams
from rest_pg.pipelines.data_ingestion.copies import SharedTexts, without_copies
from rest_pg.pipelines.data_ingestion.time_order import order_in_time
from rest_pg.records import Document, Example, Split
from rest_pg.text import count_words, word_ends

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
    """Assign each of three users or more to one split, by seed.

    Raises:
        ValueError: the shares leave nobody to train on.
    """
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


def draw_targets(
    documents: Sequence[Document],
    split: Split,
    params: ExampleParams,
    seed: int,
    shared: SharedTexts | None = None,
) -> Iterator[Target]:
    """User setting: draw a user's targets, and one profile for all of them from the rest.

    Documents that ``shared`` names are left out.
    """
    generator = random_for(seed, "targets", documents[0].user_id)
    shuffled = [d for d in generator.sample(list(documents), len(documents)) if _free(d, shared)]
    n_targets = min(params.examples_per_user.get(split, 0), len(shuffled) - params.min_profile_size)
    targets = [d for d in shuffled if is_askable(d, params)][: max(n_targets, 0)]
    chosen = {d.document_id for d in targets}
    rest = [d for d in shuffled if d.document_id not in chosen]
    others = without_copies(rest, targets)
    profile, n_copies = tuple(others[: params.max_profile_size]), len(rest) - len(others)
    if len(profile) >= params.min_profile_size:
        yield from (Target(split, target, profile, n_copies) for target in targets)


def hold_out_latest(
    documents: Sequence[Document],
    split: Split,
    params: ExampleParams,
    seed: int,
    shared: SharedTexts | None = None,
) -> Iterator[Target]:
    """Temporal setting: the latest documents are test targets, those before them validation's.

    A profile holds only documents older than its target; the newest of them, if there are many. Documents that
    ``shared`` names are left out, and move no other document into another split.

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
    generator = random_for(seed, "targets", split, documents[0].user_id)
    n_left = params.examples_per_user.get(split, 0)
    for target in generator.sample(pools[split], len(pools[split])):
        if n_left <= 0:
            return
        if not (is_askable(target, params) and _free(target, shared)):
            continue
        place = places[target.document_id]
        older = [d for earlier, d in ordered if earlier < place and _free(d, shared)]
        others = without_copies(older, [target])
        profile = others[-params.max_profile_size :]
        if len(profile) >= params.min_profile_size:
            n_left -= 1
            yield Target(split, target, tuple(profile), len(older) - len(others))


class Draw:
    """Everything that is drawn of a collection's users: who is in which split, who is asked for what."""

    def __init__(self, documents: Sequence[Document], params: ExampleParams, seed: int) -> None:
        """Choose the users, and their splits.

        Raises:
            ValueError: fewer than three users can be asked (user setting).
        """
        self.by_user: defaultdict[str, list[Document]] = defaultdict(list)
        for document in documents:
            self.by_user[document.user_id].append(document)
        self._params, self._seed = params, seed
        self._texts = SharedTexts((d.user_id, d.text) for d in documents)
        self.barren: dict[str, tuple[Split, ...]] = {}
        """Users that had a split, and gave no example."""
        self._split(self._choose())

    def _choose(self) -> list[str]:
        params, seed = self._params, self._seed
        users = [
            user
            for user, own in sorted(self.by_user.items())
            if _can_be_asked(own, params) and user not in self.barren
        ]
        users = sorted(users, key=lambda user: random_for(seed, "user", user).random())
        return sorted(users[: params.max_users])

    def _split(self, users: Sequence[str]) -> None:
        if self._params.setting == "user" and len(users) < len(SPLITS):
            others = [f"{u!r} ({len(own)})" for u, own in self.by_user.items() if u not in users]
            raise ValueError(
                f"{len(users)} users have enough documents of at most {self._params.max_reference_words} words, and "
                "the user setting needs 3, one per split: bring more users, lower examples.min_profile_size="
                f"{self._params.min_profile_size}, raise examples.max_reference_words, or set examples.setting="
                f"temporal. Left out, with their documents: {', '.join(others[:9])}{', …' * (len(others) > 9)}"
            )
        self.shared = self._texts.copy()
        self.splits: dict[str, tuple[Split, ...]] = dict.fromkeys(users, SPLITS)
        if self._params.setting == "user":
            splits = split_users(users, self._params, self._seed)
            self.splits = {user: (splits[user],) for user in users}

    def redraw_without_barren(self, examples: Sequence[Example]) -> bool:
        """Give the splits to other users if one of them stayed empty and it may help; say whether that was done."""
        asked = {example.user_id for example in examples}
        barren = {user: splits for user, splits in self.splits.items() if user not in asked}
        complete = {example.split for example in examples} == set(SPLITS)
        if complete or not barren or self._params.setting != "user":
            return False
        known, self.barren = self.barren, self.barren | barren
        users = self._choose()
        if len(users) < len(SPLITS):
            self.barren = known
            return False
        self._split(users)
        return True

    def targets(self) -> Iterator[Target]:
        """Yield all targets, user by user.

        Held-out ones are drawn first: what stands in them, by several users, is no part of a training example.

        Raises:
            ValueError: a document has no date (temporal setting).
        """
        held_out: dict[str, list[Target]] = {}
        for user, splits in self.splits.items():
            held_out[user] = [t for s in splits if s != "train" for t in self._draw(user, s)]
            for target in held_out[user]:
                self.shared.hold_out(d.text for d in (target.document, *target.profile))
        for user, splits in self.splits.items():
            if "train" in splits:
                yield from self._draw(user, "train", self.shared)
            yield from held_out[user]

    def could_be_asked(self, user: str, *, shared: bool) -> bool:
        """Whether any target can be drawn of a chosen user, with or without texts that held-out users share."""
        texts = None if shared else self.shared
        return any(
            True
            for split in self.splits.get(user) or self.barren[user]
            for _ in self._draw(user, split, texts if split == "train" else None)
        )

    def _draw(self, user: str, split: Split, shared: SharedTexts | None = None) -> Iterator[Target]:
        draw = draw_targets if self._params.setting == "user" else hold_out_latest
        return draw(self.by_user[user], split, self._params, self._seed, shared)


def cut_opening(text: str, n_words: int) -> tuple[str, str]:
    """Return a text's first words, and what follows them; white space within is kept."""
    ends = list(word_ends(text))
    end = ends[min(n_words, len(ends)) - 1] if n_words and ends else 0
    return text[:end], text[end:].strip()


def _can_be_asked(documents: Sequence[Document], params: ExampleParams) -> bool:
    return len(documents) > params.min_profile_size and any(
        is_askable(d, params) for d in documents
    )


def is_askable(document: Document, params: ExampleParams) -> bool:
    """Whether a document is short enough to be asked for."""
    return count_words(document.text) <= params.max_reference_words


def _free(document: Document, shared: SharedTexts | None) -> bool:
    return shared is None or not shared.stands_held_out(document.text)
