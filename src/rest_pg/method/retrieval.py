"""Retrieval (§4.1): what is looked for, and which documents of a profile reach the prompt.

Training, batch inference and serving all call these two functions. A query is made of the request alone, since a
served request holds nothing else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from rest_pg.backends.protocols import Retriever
from rest_pg.config import QueryKind, RetrievalParams
from rest_pg.records import Example, PolicyCheckpoint, Profile

logger = logging.getLogger(__name__)

_GIVEN = re.compile(
    r"(?P<items>\b(?:using|with) (?:the |these )?(?:following )?items:(?P<list>.*))"
    r"|(?:\bsubject \"(?P<subject>.*?)\", )?\b(?:which|that) begins:(?P<opening>.*)",
    re.DOTALL,
)
"""What requests name: a list of items (LongLaMP's abstracts), or an opening with or without its subject (mails)."""
_NUMBER = re.compile(r"(?:^|\s)(\d+)\. ")


def build_query(request: str, kind: QueryKind = "given") -> str:
    """Return what the retriever looks for, given a request.

    Args:
        request: the whole request, as a user or a template wrote it.
        kind: ``request``: all of it; ``given``: the items that it lists, or the subject and opening that it
            quotes. A request with neither is looked for as it is.
    """
    whole = " ".join(request.split())
    found = _GIVEN.search(whole) if kind == "given" else None
    if found is None:
        return whole
    given = (
        _join_items(found["list"])
        if found["items"]
        else f"{found['subject'] or ''} {found['opening'].strip()}"
    )
    return given.strip() or whole


def _join_items(listed: str) -> str:
    """Return a list's items without their numbers; one that isn't numbered from 1 stays as it is."""
    first, *rest = _NUMBER.split(listed)
    numbers, items = rest[::2], rest[1::2]
    if first.strip() or not items or numbers != [str(n) for n in range(1, len(items) + 1)]:
        return listed
    return " ".join(item.strip() for item in items).removesuffix(".")


def retrieve_profiles(
    examples: Sequence[Example],
    retriever: Retriever,
    params: RetrievalParams,
    policy: PolicyCheckpoint | None = None,
) -> list[Profile]:
    """Find the k documents of each profile that matter for the request (§4.1); of a smaller profile, all.

    Args:
        examples: requests with their users' documents.
        retriever: finds the documents.
        params: how many, and by which kind of query.
        policy: who will answer; its own kind of query is used, if it was saved with one.

    Returns:
        One profile per example, in order, nearest document first.
    """
    params = params_of(policy, params) if policy else params
    asked = [replace(e, query=build_query(e.input, params.query)) for e in examples]
    profiles = retriever.retrieve(asked, params.k)
    short = count_short_profiles(examples, params.k)
    logger.info(
        "retrieved %d documents for each of %d examples%s",
        params.k,
        len(profiles),
        f"; {short} have fewer, and got all of them" if short else "",
    )
    return profiles


def count_short_profiles(examples: Sequence[Example], k: int) -> int:
    """Count the examples whose profile holds fewer than k documents."""
    return sum(len(example.profile) < k for example in examples)


def params_of(policy: PolicyCheckpoint, params: RetrievalParams) -> RetrievalParams:
    """Return how documents are retrieved for a policy: as in its training, if it was saved with that.

    Policies that were saved before this was kept take the kind of query from the parameters.
    """
    if not policy.query or policy.query == params.query:
        return params
    logger.warning(
        "retrieval.query=%s isn't used: %s was trained with %s",
        params.query,
        policy.path,
        policy.query,
    )
    return params.model_copy(update={"query": policy.query})
