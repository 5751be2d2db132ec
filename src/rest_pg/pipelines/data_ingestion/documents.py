"""Raw records become documents: checked field by field, long texts cut into passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rest_pg.config import PassageParams
from rest_pg.dates import is_clear, normalize_date
from rest_pg.fields import (
    identity_of,
    plain_text,
    printable,
    text_of,
)
from rest_pg.pipelines.data_ingestion.counts import RecordCounts, file_of
from rest_pg.pipelines.data_ingestion.passages import REST, TOO_LONG, cut_passages
from rest_pg.records import Document, RejectedRecord
from rest_pg.text import count_words

REPEATED = "repeated text of its user"
DATE = "a date, best as YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss+00:00"


@dataclass(slots=True)
class Reading:
    """Documents of raw records, and what became of each record."""

    documents: list[Document] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    counts: RecordCounts = field(default_factory=RecordCounts)
    unclear_dates: int = 0
    """Dates that can be read in several ways, and are kept as typed."""


def gather_documents(
    records: Iterable[dict[str, Any]], passages: PassageParams, forgotten_users: Container[str]
) -> Reading:
    """Check the records, and cut long texts; a text that its user wrote before is kept once.

    Two texts of a user are the same if they differ in white space and case alone.
    """
    reading = Reading()
    known: set[tuple[str, str]] = set()
    for record in records:
        file = file_of(record)
        reading.counts.read(file)
        if "skipped" in record:
            reading.counts.drop(file, str(record["skipped"]))
        elif is_forgotten(record.get("user"), forgotten_users):
            reading.counts.drop(file, "user who is forgotten", "forgotten_users")
        elif isinstance(found := check_record(record), RejectedRecord):
            reading.rejected.append(found)
            reading.counts.drop(file, f"bad record (field {found.field})", "bad_records")
        else:
            _take(found, file, passages, reading, known)
    return reading


def _take(
    document: Document,
    file: str,
    params: PassageParams,
    reading: Reading,
    known: set[tuple[str, str]],
) -> None:
    """Keep the passages of a document that its user did not write before."""
    reading.unclear_dates += document.date is not None and not is_clear(document.date)
    passages, lost = cut_document(document, params)
    n_kept = len(reading.documents)
    for passage in passages:
        key = (passage.user_id, " ".join(passage.text.lower().split()))
        if key not in known:
            known.add(key)
            reading.documents.append(passage)
    n_kept = len(reading.documents) - n_kept
    counts = reading.counts
    counts.read(file, "passages", len(passages) + lost.total())
    counts.use(file, "passages", n_kept)
    if n_kept < len(passages):
        counts.drop(file, REPEATED, "", "passages", len(passages) - n_kept)
    if lost:
        limits = {
            TOO_LONG: f"passages.max_words={params.max_words}",
            REST: f"passages.min_words={params.min_words}",
        }
        for reason, n in lost.items():
            counts.drop(file, reason, limits[reason], "passages", n)
    if n_kept:
        counts.use(file)
    else:
        counts.drop(file, REPEATED)


def is_forgotten(user: Any, forgotten_users: Container[str]) -> bool:
    """Whether a raw user id is one of the forgotten users', as ids are compared."""
    try:
        return identity_of(user) in forgotten_users
    except ValueError:
        return False


def check_record(record: dict[str, Any]) -> Document | RejectedRecord:
    """Return a raw record as a document, its text whole; or what is wrong with it."""
    if "unreadable" in record:
        expected = str(record.get("expected", "one JSON object"))
        return _reject(record, "line", expected, record["unreadable"])
    name = "user"
    try:
        user = identity_of(record.get(name))
        name = "text"
        text = plain_text(record.get(name)).strip()
        name = "title"
        title = (text_of(record.get(name)) or "").strip()
        name = "id"
        identifier = text_of(record[name])
    except ValueError as error:
        return _reject(record, name, str(error), record.get(name))
    try:
        date = normalize_date(record.get("date"))
    except ValueError:
        return _reject(record, "date", DATE, record.get("date"))
    return Document(
        document_id=identifier or "",
        user_id=user,
        text=text,
        title=title or None,
        date=date,
    )


def _reject(record: dict[str, Any], name: str, expected: str, found: object) -> RejectedRecord:
    return RejectedRecord(
        source=printable(record["source"]), field=name, expected=expected, found=ascii(found)[:80]
    )


def cut_document(document: Document, params: PassageParams) -> tuple[list[Document], Counter[str]]:
    """Return a short document whole, and a long one cut into passages; and what was left out."""
    if count_words(document.text) <= params.max_words:
        return [document], Counter()
    passages, lost = cut_passages(document.text, params)
    return [
        replace(document, document_id=f"{document.document_id}#{number}", text=passage)
        for number, passage in enumerate(passages, start=1)
    ], lost
