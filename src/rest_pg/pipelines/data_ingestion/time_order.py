"""The order of a user's documents in time, for the temporal setting; an unclear one is refused."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from rest_pg.dates import Interval, interval_of
from rest_pg.records import Document

REMEDY = "Write these dates as YYYY-MM-DD or, with a time, as YYYY-MM-DDThh:mm:ss+00:00; or set examples.setting=user"

Dated = tuple[Interval, Document]


def order_in_time(documents: Sequence[Document]) -> list[tuple[int, Document]]:
    """Return one user's documents, oldest first, each with its place in time.

    Documents with the same date have the same place: neither is older. A date without a zone may be in
    any, so it is clear of a date with one only beyond 14 hours before it and 12 hours after it.

    Raises:
        ValueError: a document has no date; or the order of two isn't clear: their dates overlap, but
            are not the same (a year and a day in it).
    """
    dated = [(_interval(document), document) for document in documents]
    for zoned in (True, False):
        _refuse_overlap(sorted((d for d in dated if d[0].zoned == zoned), key=_key))
    _refuse_unclear_zones(dated)
    return [(interval.first, document) for interval, document in sorted(dated, key=_key)]


def _key(dated: Dated) -> tuple[int, int, str]:
    return dated[0].first, dated[0].last, dated[1].document_id


def _interval(document: Document) -> Interval:
    if document.date is None:
        raise ValueError(
            f"document {document.document_id} of user {document.user_id} has no date, and the "
            "temporal setting needs one: add it, or set examples.setting=user"
        )
    interval = interval_of(document.date)
    if interval is None:
        raise ValueError(
            f"document {document.document_id} of user {document.user_id} has the date "
            f"{document.date!r:.80}, which can be read in several ways, and the temporal setting needs an "
            f"order. {REMEDY}"
        )
    return interval


def _refuse_overlap(in_order: Sequence[Dated]) -> None:
    """Refuse two different dates that overlap, of dates that can be compared as they are."""
    for one, other in pairwise(in_order):
        if one[0] != other[0] and one[0].last >= other[0].first:
            raise _unclear(one[1], other[1])


def _refuse_unclear_zones(dated: Sequence[Dated]) -> None:
    """Refuse a date without a zone that may lie before or after a date with one."""
    zoned = sorted((d for d in dated if d[0].zoned), key=_key)
    instants = [interval.first for interval, _ in zoned]
    for interval, document in dated:
        if not interval.zoned:
            wide = interval.widened()
            place = bisect_right(instants, wide.last)
            if place and instants[place - 1] >= wide.first:
                raise _unclear(document, zoned[place - 1][1])


def _unclear(one: Document, other: Document) -> ValueError:
    return ValueError(
        f"documents {one.document_id} ({one.date}) and {other.document_id} ({other.date}) of user "
        f"{one.user_id}: it isn't clear which one is older, and the temporal setting needs to know. {REMEDY}"
    )
