"""Raw records become documents: checked field by field, long texts cut into passages."""

from __future__ import annotations

import re
from typing import Any

from rest_pg.config import PassageParams
from rest_pg.records import Document, RejectedRecord

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ].*)?)?)?")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def check_record(record: dict[str, Any]) -> RejectedRecord | None:
    """Return what is wrong with a raw record, or None if it can be used."""

    def reject(field: str, expected: str, found: object) -> RejectedRecord:
        shown = ascii(found)[:80]
        return RejectedRecord(
            source=str(record["source"]), field=field, expected=expected, found=shown
        )

    if "unreadable" in record:
        return reject("line", "one JSON object", record["unreadable"])
    for field in ("user", "text"):
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            return reject(field, "a text that is not empty", value)
    for field in ("user", "text", "title", "date"):
        value = record.get(field)
        if value is not None and not isinstance(value, str):
            return reject(field, "a text", value)
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            return reject(field, "valid Unicode, no lone surrogate", value)
    if record.get("date") and not _DATE.fullmatch(record["date"]):
        return reject("date", "YYYY, YYYY-MM or YYYY-MM-DD", record["date"])
    return None


def cut_record(record: dict[str, Any], params: PassageParams) -> list[Document]:
    """Turn a good record into documents: whole if it is short, else cut at paragraph ends."""
    text = record["text"].strip()
    short = len(text.split()) <= params.max_words
    passages = [text] if short else cut_passages(text, params)
    return [
        Document(
            document_id=record["id"] if short else f"{record['id']}#{number}",
            user_id=record["user"].strip(),
            text=passage,
            title=record.get("title") or None,
            date=record.get("date") or None,
        )
        for number, passage in enumerate(passages, start=1)
    ]


def cut_passages(text: str, params: PassageParams) -> list[str]:
    """Cut a text at the first paragraph end after every ``min_words`` words.

    A passage above ``max_words`` (one very long paragraph) is left out, and so is a rest below
    ``min_words``: a passage never starts or ends within a paragraph.
    """
    passages: list[str] = []
    current: list[str] = []
    n_words = 0
    for paragraph in _PARAGRAPH_END.split(text):
        if not paragraph.strip():
            continue
        current.append(paragraph.strip())
        n_words += len(paragraph.split())
        if n_words >= params.min_words:
            if n_words <= params.max_words:
                passages.append("\n\n".join(current))
            current, n_words = [], 0
    return passages
