"""Nodes from raw records to examples with a retrieved profile."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

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
from rest_pg.pipelines.data_ingestion.documents import check_record, cut_record
from rest_pg.pipelines.data_ingestion.examples import (
    SPLITS,
    Target,
    cut_opening,
    draw_targets,
    hold_out_latest,
    random_for,
    split_users,
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
    check_examples(examples, params.setting)
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
    return examples, counts.rejected


def _targets(documents: Sequence[Document], params: ExampleParams, seed: int) -> Iterator[Target]:
    by_user: defaultdict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_user[document.user_id].append(document)
    users = [u for u, own in sorted(by_user.items()) if len(own) > params.min_profile_size]
    users = sorted(users, key=lambda user: random_for(seed, "user", user).random())
    users = sorted(users[: params.max_users])
    if params.setting == "temporal":
        for user in users:
            yield from hold_out_latest(by_user[user], params, seed)
        return
    for user, split in sorted(split_users(users, params, seed).items()):
        yield from draw_targets(by_user[user], split, params, seed)


def check_examples(
    examples: Sequence[Example], setting: Literal["user", "temporal"] = "user"
) -> None:
    """Raise ``ValueError`` on a leak or an empty part.

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
                "user one split, or set examples.setting=temporal"
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
            raise ValueError(
                f"there is no {split} example: bring more documents, or lower "
                "examples.min_profile_size or raise examples.max_reference_words"
            )
