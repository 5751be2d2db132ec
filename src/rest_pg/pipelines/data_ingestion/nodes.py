"""Nodes from raw records to examples with a retrieved profile."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rest_pg.backends.models import import_model
from rest_pg.config import (
    BasePolicyParams,
    ExampleParams,
    LongLampParams,
    PassageParams,
)
from rest_pg.method.retrieval import build_query
from rest_pg.pipelines.data_ingestion.copies import leave_out_shared
from rest_pg.pipelines.data_ingestion.counts import RecordCounts, log_counts
from rest_pg.pipelines.data_ingestion.documents import REPEATED, gather_documents
from rest_pg.pipelines.data_ingestion.examples import (
    SPLITS,
    Draw,
    cut_opening,
)
from rest_pg.pipelines.data_ingestion.key_items import KeyItems
from rest_pg.pipelines.data_ingestion.left_out import find_left_out, summarize
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.records import Document, Example, LeftOut, PolicyCheckpoint, RejectedRecord

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
        rendered = template.render(
            title=target.document.title, date=target.document.date, items=items, opening=opening
        )
        request = " ".join(rendered.split())
        yield Example(
            example_id=target.document.document_id,
            user_id=target.document.user_id,
            split=target.split,
            input=request,
            query=build_query(request),
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
    examples, table = _without_shared(examples, counts.by_file.table())
    log_counts(table)
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
    return examples, counts.rejected, table


def _without_shared(
    examples: list[Example], table: pd.DataFrame
) -> tuple[list[Example], pd.DataFrame]:
    """Leave out of training what held-out users wrote too, and count it."""
    kept, shared = leave_out_shared(examples)
    if not shared:
        return examples, table
    reason, counts = "held-out users have the same texts", RecordCounts()
    documents = sum(len(example.profile) for example in examples)
    for unit, n in (("examples", len(examples)), ("profile documents", documents)):
        dropped = shared["examples" if unit == "examples" else "documents"]
        counts.read("all", unit, n)
        counts.use("all", unit, n - dropped)
        counts.drop("all", reason, unit=unit, n=dropped)
    return kept, pd.concat([table, counts.table()], ignore_index=True)


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
