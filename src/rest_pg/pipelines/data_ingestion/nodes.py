"""Nodes from raw records to examples with a retrieved profile."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rest_pg.backends.models import import_model
from rest_pg.config import (
    BasePolicyParams,
    ExampleParams,
    LongLampParams,
    PassageParams,
)
from rest_pg.method.retrieval import build_query
from rest_pg.pipelines.data_ingestion.documents import REPEATED, gather_documents
from rest_pg.pipelines.data_ingestion.examples import (
    SPLITS,
    Target,
    cut_opening,
    draw_targets,
    hold_out_latest,
    split_users,
    users_drawn,
)
from rest_pg.pipelines.data_ingestion.key_items import KeyItems
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.records import Document, Example, PolicyCheckpoint, RejectedRecord

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
    forgotten_users: Container[str] = frozenset(),
) -> tuple[list[Document], list[RejectedRecord], pd.DataFrame]:
    """Check the raw records, and cut long texts into documents.

    Texts that a user wrote twice (but for white space and case) are kept once. Records of forgotten users
    are skipped.

    Returns:
        The documents; the bad records; and what became of each file's records
        (:class:`~rest_pg.pipelines.data_ingestion.counts.RecordCounts`).

    Raises:
        ValueError: a record is bad and ``bad_records`` is ``stop``; or none is good.
    """
    reading = gather_documents(raw_documents, passages, forgotten_users)
    counts, rejected = reading.counts, reading.rejected
    if rejected and bad_records == "stop":
        first = rejected[0]
        raise ValueError(
            f"{len(rejected)} of {counts.total('read')} records can't be used. The first: {first.source}, "
            f"field {first.field}: expected {first.expected}, found {first.found}. Mend them, or set "
            "bad_records=reject to leave them out and list them in data/02_intermediate."
        )
    counts.log()
    if not reading.documents:
        raise ValueError(
            f"none of {counts.total('read')} records gave a document ({len(rejected)} rejected): check the "
            "source, or lower passages.min_words"
        )
    if reading.unclear_dates:
        logger.warning(
            "%d dates can be read in several ways (03/04/2021) and are kept as typed: the temporal setting "
            "would refuse them",
            reading.unclear_dates,
        )
    logger.info(
        "%d records gave %d documents by %d users; %d records rejected, %d repeated texts left out",
        counts.total("read"),
        len(reading.documents),
        len({document.user_id for document in reading.documents}),
        len(rejected),
        counts.total("dropped", "passages", REPEATED),
    )
    return reading.documents, rejected, counts.table()


def create_examples(
    documents: Sequence[Document], request_template: str, params: ExampleParams, seed: int
) -> list[Example]:
    """Ask for some of each user's documents, with others as the profile (LongLaMP's two settings).

    Raises:
        ValueError: a split stays empty, dates are missing, or a check of the examples fails.
    """
    key_items = KeyItems(documents)
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    template = environment.from_string(request_template)
    examples = []
    for target in _targets(documents, params, seed):
        opening, reference = cut_opening(target.document.text, params.opening_words)
        items = key_items.choose(reference, params.n_key_items)
        if not (reference and (opening or items)):
            continue
        rendered = template.render(
            title=target.document.title, date=target.document.date, items=items, opening=opening
        )
        request = " ".join(rendered.split())
        examples.append(
            Example(
                example_id=target.document.document_id,
                user_id=target.document.user_id,
                split=target.split,
                input=request,
                query=build_query(request),
                reference=reference,
                profile=target.profile,
                copies_left_out=target.copies_left_out,
            )
        )
    check_examples(examples, params.setting)
    n_users = {s: len({e.user_id for e in examples if e.split == s}) for s in SPLITS}
    counts = Counter(e.split for e in examples)
    logger.info(
        "%s; users left out for too few documents: %d",
        ", ".join(f"{counts[s]} {s} examples by {n_users[s]} users" for s in SPLITS),
        len({d.user_id for d in documents} - {e.user_id for e in examples}),
    )
    return examples


def read_examples(
    raw_examples: Iterable[dict[str, Any]],
    params: LongLampParams,
    bad_records: Literal["stop", "reject"],
    seed: int,
    forgotten_users: Container[str] = frozenset(),
) -> tuple[list[Example], list[RejectedRecord], pd.DataFrame]:
    """Take LongLaMP's records as the examples that they are, in its native schemas.

    A profile document that holds the whole target is left out, and counted; one that holds most of
    it is too, or is kept by ``near_copies: keep``. Records of forgotten users are skipped.

    Returns:
        The examples; the bad records; and what became of each file's records.

    Raises:
        ValueError: a record is bad and ``bad_records`` is ``stop``; a split stays empty; or a check
            of the examples fails.
    """
    examples, counts = read_records(raw_examples, params, seed, forgotten_users)
    if counts.rejected and bad_records == "stop":
        first = counts.rejected[0]
        raise ValueError(
            f"{len(counts.rejected)} of {counts.records} records can't be used. The first: "
            f"{first.source}, field {first.field}: expected {first.expected}, found {first.found}. "
            "Mend them, set longlamp.task to the data's, or set bad_records=reject."
        )
    counts.by_file.log()
    check_examples(examples, params.setting, "longlamp")
    n_users = {s: len({e.user_id for e in examples if e.split == s}) for s in SPLITS}
    n_examples = Counter(e.split for e in examples)
    logger.info(
        "%d records gave %s; left out: %d rejected, %d with a longer output than %d words, %d without "
        "a usable profile; %d profile documents cut, %d left out that held the target, %d that held most of it",
        counts.records,
        ", ".join(f"{n_examples[s]} {s} examples by {n_users[s]} users" for s in SPLITS),
        len(counts.rejected),
        counts.too_long,
        params.max_reference_words,
        counts.empty_profiles,
        counts.documents_cut,
        counts.copies,
        counts.near_copies,
    )
    return examples, counts.rejected, counts.by_file.table()


def _targets(documents: Sequence[Document], params: ExampleParams, seed: int) -> Iterator[Target]:
    by_user: defaultdict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_user[document.user_id].append(document)
    users = users_drawn({user: len(own) for user, own in by_user.items()}, params, seed)
    if params.setting == "temporal":
        for user in users:
            yield from hold_out_latest(by_user[user], params, seed)
        return
    for user, split in sorted(split_users(users, params, seed).items()):
        yield from draw_targets(by_user[user], split, params, seed)


def check_examples(
    examples: Sequence[Example],
    setting: Literal["user", "temporal"] = "user",
    group: Literal["examples", "longlamp"] = "examples",
) -> None:
    """Raise ``ValueError`` on a leak or an empty part; the remedy is a parameter of ``group``.

    No user is in two splits (user setting), no reference is in its own profile, no id occurs twice,
    no profile and no split is empty.
    """
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for example in examples:
        first = split_of.setdefault(example.user_id, example.split)
        if setting == "user" and first != example.split:
            raise ValueError(
                f"user {example.user_id} is in two splits, {first} and {example.split}: give each "
                f"user one split, or set {group}.setting=temporal"
            )
        if example.example_id in seen:
            raise ValueError(f"example_id={example.example_id} occurs twice: make ids unique")
        seen.add(example.example_id)
        if not example.profile:
            raise ValueError(
                f"example {example.example_id} has an empty profile: leave its user out, or raise "
                "examples.min_profile_size above 0"
            )
        reference = " ".join(example.reference.split())
        if any(reference in " ".join(d.text.split()) for d in example.profile):
            raise ValueError(
                f"the reference of example {example.example_id} is in its own profile: remove it"
            )
    for split in SPLITS:
        if not any(example.split == split for example in examples):
            remedy = {
                "examples": "lower examples.min_profile_size or raise examples.max_reference_words",
                "longlamp": "raise longlamp.max_examples or longlamp.max_reference_words",
            }[group]
            raise ValueError(f"there is no {split} example: bring more documents, or {remedy}")
