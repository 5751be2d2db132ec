"""Nodes from raw records to examples with a retrieved profile."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rest_pg.backends.models import import_model
from rest_pg.backends.protocols import Retriever
from rest_pg.config import (
    BasePolicyParams,
    ExampleParams,
    LongLampParams,
    PassageParams,
    RetrievalParams,
)
from rest_pg.pipelines.data_ingestion.copies import leave_out_shared
from rest_pg.pipelines.data_ingestion.documents import check_record, cut_record
from rest_pg.pipelines.data_ingestion.examples import (
    SPLITS,
    Draw,
    cut_opening,
)
from rest_pg.pipelines.data_ingestion.key_items import KeyItems
from rest_pg.pipelines.data_ingestion.left_out import find_left_out, summarize
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.records import Document, Example, LeftOut, PolicyCheckpoint, Profile, RejectedRecord

logger = logging.getLogger(__name__)


def import_policy(params: BasePolicyParams) -> PolicyCheckpoint:
    """Bring the base language model into the catalog, as safetensors."""
    policy = import_model(params.source)
    logger.info("the base policy is %s", params.source)
    return policy


def read_documents(
    raw_documents: Sequence[dict[str, Any]],
    passages: PassageParams,
    bad_records: Literal["stop", "reject"],
) -> tuple[list[Document], list[RejectedRecord]]:
    """Check the raw records, and cut long texts into documents.

    Texts that a user wrote twice (but for white space and case) are kept once.

    Raises:
        ValueError: a record is bad and ``bad_records`` is ``stop``; or none is good.
    """
    verdicts = [(record, check_record(record)) for record in raw_documents]
    rejected = [verdict for _, verdict in verdicts if verdict]
    if rejected and bad_records == "stop":
        first = rejected[0]
        raise ValueError(
            f"{len(rejected)} of {len(verdicts)} records can't be used. The first: {first.source}, "
            f"field {first.field}: expected {first.expected}, found {first.found}. Mend them, or set "
            "bad_records=reject to leave them out and list them in data/02_intermediate."
        )
    documents: dict[tuple[str, str], Document] = {}
    n_cut = 0
    for record, verdict in verdicts:
        for document in [] if verdict else cut_record(record, passages):
            n_cut += 1
            key = (document.user_id, " ".join(document.text.lower().split()))
            documents.setdefault(key, document)
    if not documents:
        raise ValueError(
            f"none of {len(verdicts)} records gave a document ({len(rejected)} rejected): check the "
            "source, or lower passages.min_words"
        )
    logger.info(
        "%d records gave %d documents by %d users; %d records rejected, %d repeated texts left out",
        len(verdicts),
        len(documents),
        len({user for user, _ in documents}),
        len(rejected),
        n_cut - len(documents),
    )
    return list(documents.values()), rejected


def create_examples(
    documents: Sequence[Document], request_template: str, params: ExampleParams, seed: int
) -> list[Example]:
    """Ask for some of each user's documents, with others as the profile (LongLaMP's two settings).

    Raises:
        ValueError: a split stays empty, dates are missing, or a check of the examples fails.
    """
    return draw_examples(documents, request_template, params, seed)[0]


def draw_examples(
    documents: Sequence[Document], request_template: str, params: ExampleParams, seed: int
) -> tuple[list[Example], list[LeftOut]]:
    """Create the examples, and list the users and documents that were left out of them.

    Returns:
        What :func:`create_examples` does; and what was left out, by user.
    """
    key_items = KeyItems(documents)
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    template = environment.from_string(request_template)
    draw = Draw(documents, params, seed)
    examples = list(_ask(draw, key_items, template, params))
    # a user who can't be asked may have a split alone: it goes to another user
    while draw.redraw_without_barren(examples):
        examples = list(_ask(draw, key_items, template, params))
    left_out = list(find_left_out(draw, examples, params))
    reasons = summarize(left_out)
    logger.info("%s; left out: %s", _by_split(examples), "; ".join(reasons) or "nobody")
    check_examples(examples, params.setting, left_out=reasons)
    return examples, left_out


def _ask(
    draw: Draw, key_items: KeyItems, template: Template, params: ExampleParams
) -> Iterator[Example]:
    """Write the request of each target; there is none where nothing of it can be named."""
    for target in draw.targets():
        opening, reference = cut_opening(target.document.text, params.opening_words)
        items = key_items.choose(reference, params.n_key_items)
        if not (reference and (opening or items)):
            continue
        request = template.render(
            title=target.document.title, date=target.document.date, items=items, opening=opening
        )
        yield Example(
            example_id=target.document.document_id,
            user_id=target.document.user_id,
            split=target.split,
            input=" ".join(request.split()),
            # only what the request says: the rest of the text isn't known to who asks
            query=f"{target.document.title or ''} {opening}" if opening else " ".join(items),
            reference=reference,
            profile=target.profile,
            copies_left_out=target.copies_left_out,
        )


def _by_split(examples: Sequence[Example]) -> str:
    users = {split: set[str]() for split in SPLITS}
    for example in examples:
        users[example.split].add(example.user_id)
    counts = Counter(example.split for example in examples)
    return ", ".join(f"{counts[s]} {s} examples by {len(users[s])} users" for s in SPLITS)


def read_examples(
    raw_examples: Iterable[dict[str, Any]],
    params: LongLampParams,
    bad_records: Literal["stop", "reject"],
    seed: int,
) -> tuple[list[Example], list[RejectedRecord]]:
    """Take LongLaMP's records as the examples that they are, in its native schemas.

    A profile document that holds the whole target is left out, and counted; one that holds most of
    it is too, or is kept by ``near_copies: keep``.

    Raises:
        ValueError: a record is bad and ``bad_records`` is ``stop``; a split stays empty; or a check
            of the examples fails.
    """
    examples, counts = read_records(raw_examples, params, seed)
    if counts.rejected and bad_records == "stop":
        first = counts.rejected[0]
        raise ValueError(
            f"{len(counts.rejected)} of {counts.records} records can't be used. The first: "
            f"{first.source}, field {first.field}: expected {first.expected}, found {first.found}. "
            "Mend them, set longlamp.task to the data's, or set bad_records=reject."
        )
    examples, shared = leave_out_shared(examples)
    if shared:
        logger.info(
            "held-out users have the same texts: %d training examples left out, and %d documents of the others' profiles",
            shared["examples"],
            shared["documents"],
        )
    check_examples(examples, params.setting, "longlamp")
    logger.info(
        "%d records gave %s; left out: %d rejected, %d with a longer output than %d words, %d without "
        "a usable profile; %d profile documents cut, %d left out that held the target, %d that held most of it",
        counts.records,
        _by_split(examples),
        len(counts.rejected),
        counts.too_long,
        params.max_reference_words,
        counts.empty_profiles,
        counts.documents_cut,
        counts.copies,
        counts.near_copies,
    )
    return examples, counts.rejected


def check_examples(
    examples: Sequence[Example],
    setting: Literal["user", "temporal"] = "user",
    section: Literal["examples", "longlamp"] = "examples",
    left_out: Sequence[str] = (),
) -> None:
    """Check examples against leaks and empty parts.

    Args:
        examples: all of them.
        setting: whether a user may be in two splits.
        section: of the parameters that made the examples, for the remedies.
        left_out: what was left out and why, for the same.

    Raises:
        ValueError: a user is in two splits (user setting), a reference is in its own profile, an id occurs twice, or
            a profile or a split is empty.
    """
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for example in examples:
        first = split_of.setdefault(example.user_id, example.split)
        if setting == "user" and first != example.split:
            raise ValueError(
                f"user {example.user_id} is in two splits, {first} and {example.split}: give each "
                f"user one split, or set {section}.setting=temporal"
            )
        if example.example_id in seen:
            raise ValueError(f"example_id={example.example_id} occurs twice: make ids unique")
        seen.add(example.example_id)
        if not example.profile:
            raise ValueError(
                f"example {example.example_id} has an empty profile: leave its user out"
            )
        reference = " ".join(example.reference.split())
        if any(reference in " ".join(d.text.split()) for d in example.profile):
            raise ValueError(
                f"the reference of example {example.example_id} is in its own profile: remove it"
            )
    missing = [split for split in SPLITS if split not in {e.split for e in examples}]
    if missing:
        remedy = (
            "bring more documents, lower examples.min_profile_size or raise examples.max_reference_words"
            if section == "examples"
            else "bring its records, raise longlamp.max_reference_words or longlamp.max_examples"
        )
        reasons = f". Left out: {'; '.join(left_out)}" if left_out else ""
        raise ValueError(f"there is no {missing[0]} example: {remedy}{reasons}")


def retrieve_profiles(
    examples: Sequence[Example], retriever: Retriever, params: RetrievalParams
) -> list[Profile]:
    """Find the k documents of each profile that matter for the request (§4.1).

    Raises:
        ValueError: a profile holds fewer than k documents.
    """
    for example in examples:
        if len(example.profile) < params.k:
            raise ValueError(
                f"retrieval.k={params.k} is above the {len(example.profile)} documents in the profile "
                f"of example {example.example_id}: lower k, or raise examples.min_profile_size to it"
            )
    profiles = retriever.retrieve(examples, params.k)
    logger.info("retrieved %d documents for each of %d examples", params.k, len(profiles))
    return profiles
