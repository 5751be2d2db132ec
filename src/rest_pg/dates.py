"""Dates of documents: parsed once, kept as ISO 8601 in UTC, and compared as intervals.

A date is a year, a month, a day or an instant, so it covers an interval. A date without a time zone
may be in any zone. Two dates are in a clear order if neither of these leaves a doubt.
"""

from __future__ import annotations

import math
import re
import unicodedata
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from dateutil import parser

HOUR = 3_600_000_000
"""Microseconds."""
WIDEST_ZONES = (14 * HOUR, 12 * HOUR)
"""Zones reach from UTC+14 to UTC-12: a local time lies so much before or after its reading as UTC."""

_NUMERIC = re.compile(
    r"(?P<year>\d{4})(?P<sep>[-/.])(?P<month>\d{1,2})(?:(?P=sep)(?P<day>\d{1,2}))?(?P<rest>[T\s].*)?"
)
_YEAR_LAST = re.compile(
    r"(?P<a>\d{1,2})(?P<sep>[-/.])(?P<b>\d{1,2})(?P=sep)(?P<year>\d{4})(?P<rest>,?\s.*)?"
)
_SHORT_YEAR = re.compile(r"\d{1,2}([-/.])\d{1,2}\1\d{2}(\s.*)?")
_STORED = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(T.+)?)?)?")
_BASIC = re.compile(r"\d{8}T\d{4,6}\S*|\d{4}-W\d\d-\d")
_REPEATED_ZONE = re.compile(r"\s*\(.*\)$|(?<=[+-]\d{4}) [A-Z]{3,5}$|\b(?:GMT|UTC)(?=[+-]\d)")
"""A zone's name beside its offset: it says nothing more, and dateutil reads GMT+1 as one hour west."""
_CHARACTERS = {ord("年"): "-", ord("月"): "-", ord("日"): ""}
_LONGEST = 64
_ZONES = {
    **dict.fromkeys(("UTC", "GMT", "UT", "Z"), 0),
    **{"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7},
}
"""The zones that RFC 5322 names, in hours from UTC. Other abbreviations mean several zones."""


class _UnclearError(ValueError):
    """A date that can be read in several ways."""


@dataclass(frozen=True, slots=True)
class Interval:
    """From the first to the last microsecond that a date can mean, counted from the year 1."""

    first: int
    last: int
    zoned: bool
    """Whether the count is in UTC; if not, it is in a zone that nobody told."""

    def widened(self) -> Interval:
        """Return the interval in UTC that covers every zone."""
        if self.zoned:
            return self
        before, after = WIDEST_ZONES
        return Interval(self.first - before, self.last + after, zoned=True)


def normalize_date(value: object) -> str | None:
    """Return a date as ISO 8601: ``YYYY``, ``YYYY-MM``, ``YYYY-MM-DD`` or a time, zoned ones in UTC.

    Texts, years, dates, datetimes, and seconds or milliseconds since 1970 are read. A text that can be
    read as several dates (``03/04/2021``, ``1 May 21``) is returned as typed. An empty one gives none.

    Raises:
        ValueError: it is no date.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, datetime):
            return _of_datetime(value)
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, str):
            return _of_text(value)
        if not isinstance(value, bool) and value == int(value):  # type: ignore[call-overload]
            return _of_digits(str(int(value)))  # type: ignore[call-overload]
    except _UnclearError:
        return str(value).strip()
    except (TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    raise ValueError(f"{value!r:.80} is no date")


def interval_of(stored: str) -> Interval | None:
    """Return the interval of a date that :func:`normalize_date` gave; none if it is unclear."""
    match = _STORED.fullmatch(stored)
    if match is None:
        return None
    year, month, day, time = match.groups()
    try:
        if time:
            instant = datetime.fromisoformat(stored)
            offset = instant.utcoffset()
            place = _microseconds(instant.replace(tzinfo=None) - (offset or timedelta()))
            return Interval(place, place, zoned=offset is not None)
        first = date(int(year), int(month or 1), int(day or 1)).toordinal()
        if day:
            after = first + 1
        elif month:
            after = first + monthrange(int(year), int(month))[1]
        else:
            after = date(int(year), 12, 31).toordinal() + 1
    except (ValueError, OverflowError):
        return None
    return Interval((first - 1) * 24 * HOUR, (after - 1) * 24 * HOUR - 1, zoned=False)


def is_clear(stored: str) -> bool:
    """Whether a date that :func:`normalize_date` gave can be read in one way only."""
    return _STORED.fullmatch(stored) is not None


def age_key(stored: str | None) -> int:
    """Return a number that is larger for newer dates; without a clear date the least."""
    interval = interval_of(stored) if stored else None
    return -1 if interval is None else max(interval.first, 0)


def _of_datetime(value: datetime) -> str:
    """Read a datetime; midnight without a zone is the day that a table's column had to write so."""
    fields = (value.hour, value.minute, value.second, value.microsecond)
    if not any(fields) and value.tzinfo is None:
        return value.date().isoformat()
    # a subclass may count nanoseconds, which no text of Python's can hold
    return _instant(datetime(value.year, value.month, value.day, *fields, value.tzinfo))


@lru_cache(maxsize=4096)
def _of_text(typed: str) -> str | None:
    text = unicodedata.normalize("NFKC", typed[: 2 * _LONGEST]).translate(_CHARACTERS)
    text = _REPEATED_ZONE.sub("", " ".join(text.split())).rstrip("-")
    if not text:
        return None
    if len(text) > _LONGEST or not text.isascii():
        raise ValueError(f"{text!r:.80} is no date")
    if re.fullmatch(r"\d+(\.0)?", text):
        return _of_digits(text.removesuffix(".0"))
    if match := _NUMERIC.fullmatch(text):
        return _of_parts(match["year"], match["month"], match["day"], match["rest"])
    if match := _YEAR_LAST.fullmatch(text):
        day, month = _day_and_month(match["a"], match["b"], match["sep"])
        return _of_parts(match["year"], month, day, match["rest"])
    if match := re.fullmatch(r"(\d{1,2})[-/.](\d{4})", text):
        return _of_parts(match[2], match[1], None, None)
    return _of_basic(text) if _BASIC.fullmatch(text) else _of_words(text)


def _of_basic(text: str) -> str:
    """Read ISO 8601's other forms: ``20240310T101500``, and weeks."""
    found = datetime.fromisoformat(text)
    return _instant(found) if "T" in text else found.date().isoformat()


def _of_digits(digits: str) -> str:
    """Read a year, a day (YYYYMMDD), or seconds or milliseconds since 1970."""
    size = len(digits)
    if size == 4:
        return date(int(digits), 1, 1).isoformat()[:4]
    if size == 8:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).isoformat()
    if size in (9, 10, 12, 13):
        seconds = timedelta(**{"seconds" if size < 12 else "milliseconds": int(digits)})
        return _instant(datetime(1970, 1, 1, tzinfo=UTC) + seconds)
    raise ValueError(f"{digits:.40} is no year, no YYYYMMDD and no time since 1970")


def _of_parts(year: str, month: str, day: str | None, rest: str | None) -> str:
    found = date(int(year), int(month), int(day or 1))
    time = (rest or "").lstrip(" ,T").rstrip()
    if not time:
        return found.isoformat() if day else found.isoformat()[:7]
    if not day:
        raise ValueError(f"a time without a day: {rest!r}")
    try:
        return _instant(datetime.fromisoformat(f"{found.isoformat()}T{time}"))
    except ValueError:
        return _instant(_parse(f"{found.isoformat()} {time}", datetime(2000, 1, 1)))


def _day_and_month(a: str, b: str, separator: str) -> tuple[str, str]:
    """Tell day and month apart: with dots the day is first, else a number above 12 tells."""
    if separator == "." or int(a) > 12 or a == b:
        return a, b
    if int(b) > 12:
        return b, a
    raise _UnclearError


def _of_words(text: str) -> str:
    """Read a date with the month's name; a part that the text lacks shows in two different defaults."""
    if _SHORT_YEAR.fullmatch(text):
        raise _UnclearError
    one, two = (_parse(text, d) for d in (datetime(2000, 1, 1), datetime(2001, 2, 2, 1, 1, 1)))
    if one.year != two.year:
        raise ValueError(f"{text!r} names no year")
    if not re.search(r"(?<!\d)\d{4}(?!\d)", text):
        raise _UnclearError
    if one.month != two.month:
        raise ValueError(f"{text!r} is no date")
    if one.day != two.day:
        return one.date().isoformat()[:7]
    return one.date().isoformat() if one.hour != two.hour else _instant(one)


def _parse(text: str, default: datetime) -> datetime:
    parsed: datetime = parser.parse(text, default=default, tzinfos=_zone)
    return parsed


def _zone(name: str | None, offset: int | None) -> Any:
    if name is None:
        return None if offset is None else timezone(timedelta(seconds=offset))
    if name.upper() not in _ZONES or offset:  # some libraries read the sign after a name reversed
        raise _UnclearError
    return timezone(timedelta(hours=_ZONES[name.upper()]))


def _instant(found: datetime) -> str:
    return (found.astimezone(UTC) if found.tzinfo else found).isoformat()


def _microseconds(since_year_one: datetime | timedelta) -> int:
    span = since_year_one - datetime.min if isinstance(since_year_one, datetime) else since_year_one
    return span // timedelta(microseconds=1)
