"""Nodes that answer requests of users whom no training has seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rest_pg.backends.protocols import Generator
from rest_pg.config import EvaluationParams, ResponseFormat
from rest_pg.dates import normalize_date
from rest_pg.fields import identity_of, plain_text
from rest_pg.method.retrieval import build_query
from rest_pg.pipelines.self_training.nodes import draw_samples
from rest_pg.records import Answer, Document, Example, PolicyCheckpoint, Profile, Prompt, Sample

logger = logging.getLogger(__name__)


def read_requests(requests: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Check raw requests: ``user``, ``request``, and ``documents`` that the user wrote.

    A document is a text, or an object with ``text`` and optionally ``title`` and ``date``. Nothing is
    rejected quietly here: who asks waits for an answer.

    Raises:
        ValueError: a request lacks a field or holds another kind of value; its place is named.
    """
    if not requests:
        raise ValueError("there are no requests: put one JSON object a line into the file")
    return [_example(number, request) for number, request in enumerate(requests, start=1)]


def _example(number: int, request: Mapping[str, Any]) -> Example:
    source = request.get("source", f"request {number}")
    if "unreadable" in request:
        raise ValueError(f"{source}: {request['unreadable']}, found where a JSON object should be")
    user, text = _user(request, source), _text(request, "request", source)
    documents = request.get("documents")
    if not isinstance(documents, list) or not documents:
        raise ValueError(
            f"{source}, documents: expected a list of at least one text, found {documents!r:.80}"
        )
    return Example(
        example_id=f"request-{number}",
        user_id=user,
        split="test",
        input=text,
        query=build_query(text),
        reference="",
        profile=tuple(
            _document(f"request-{number}#{i}", user, found, f"{source}, document {i}")
            for i, found in enumerate(documents, start=1)
        ),
    )


def _document(document_id: str, user: str, found: Any, source: str) -> Document:
    fields = {"text": found} if isinstance(found, str) else found
    if not isinstance(fields, Mapping):
        raise ValueError(f"{source}: expected a text or an object with text, found {found!r:.80}")
    return Document(
        document_id=document_id,
        user_id=user,
        text=_text(fields, "text", source),
        title=_text(fields, "title", source) if fields.get("title") else None,
        date=_date(fields, source),
    )


def _user(fields: Mapping[str, Any], source: str) -> str:
    try:
        return identity_of(fields.get("user"))
    except ValueError as error:
        raise ValueError(
            f"{source}, user: expected {error}, found {fields.get('user')!a:.80}"
        ) from error


def _text(fields: Mapping[str, Any], name: str, source: str) -> str:
    try:
        return plain_text(fields.get(name)).strip()
    except ValueError as error:
        raise ValueError(
            f"{source}, {name}: expected {error}, found {fields.get(name)!a:.80}"
        ) from error


def _date(fields: Mapping[str, Any], source: str) -> str | None:
    try:
        return normalize_date(fields.get("date"))
    except ValueError as error:
        found = f"found {fields.get('date')!a:.80}"
        raise ValueError(f"{source}, date: expected a date, best as YYYY-MM-DD, {found}") from error


def answer_requests(
    policy: PolicyCheckpoint,
    prompts: Sequence[Prompt],
    profiles: Sequence[Profile],
    generator: Generator,
    response_format: ResponseFormat,
    params: EvaluationParams,
    seed: int,
) -> list[Answer]:
    """Write one response for each request, decoded as in evaluation.

    A text that can't be parsed is given whole as the response, and says why in ``malformed``.
    """
    samples, _ = draw_samples(
        policy, prompts, generator, response_format, 1, params.decoding, seed, stage="inference"
    )
    prompt_of = {prompt.example_id: prompt for prompt in prompts}
    found = {profile.example_id: profile for profile in profiles}
    answers = [to_answer(s, prompt_of[s.example_id], found[s.example_id]) for s in samples]
    logger.info("answered %d requests", len(answers))
    return answers


def to_answer(sample: Sample, prompt: Prompt, profile: Profile) -> Answer:
    """Say what a sample answers, and from which documents."""
    return Answer(
        example_id=sample.example_id,
        user_id=prompt.user_id,
        request=prompt.input,
        response=sample.text.strip() if sample.malformed else sample.response,
        reasoning_path=sample.reasoning_path,
        documents=tuple(d.document_id for d in profile.documents),
        malformed=sample.malformed,
        finished=sample.finished,
    )
