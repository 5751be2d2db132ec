import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_pg.dates import age_key, interval_of, normalize_date

EAST = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1987", "1987"),
        (1987, "1987"),
        (1987.0, "1987"),
        ("1987.0", "1987"),
        (Decimal(1987), "1987"),
        ("1987-06", "1987-06"),
        ("06/1987", "1987-06"),
        ("1987-6-5", "1987-06-05"),
        ("1987/06/05", "1987-06-05"),
        ("19870605", "1987-06-05"),
        ("5.6.1987", "1987-06-05"),
        ("25/06/1987", "1987-06-25"),
        ("06/25/1987", "1987-06-25"),
        ("6/6/1987", "1987-06-06"),
        ("5 June 1987", "1987-06-05"),
        ("June 5, 1987", "1987-06-05"),
        ("June 1987", "1987-06"),
        ("Fri, 5 Jun 1987 10:00:00 +0200", "1987-06-05T08:00:00+00:00"),
        ("Fri Jun 05 1987 10:00:00 GMT+0200 (Summer Time)", "1987-06-05T08:00:00+00:00"),
        ("1987-06-05 10:00 EST", "1987-06-05T15:00:00+00:00"),
        ("1987-06-05T10:00Z", "1987-06-05T10:00:00+00:00"),
        ("1987-06-05 10:00 PM", "1987-06-05T22:00:00"),
        ("19870605T101500", "1987-06-05T10:15:00"),
        ("1987年6月5日", "1987-06-05"),
        (1_710_064_800, "2024-03-10T10:00:00+00:00"),
        ("1710064800000", "2024-03-10T10:00:00+00:00"),
        (date(1987, 6, 5), "1987-06-05"),
        (datetime(1987, 6, 5), "1987-06-05"),
        (datetime(1987, 6, 5, 1, tzinfo=EAST), "1987-06-04T16:00:00+00:00"),
        (None, None),
        (math.nan, None),
        (" ", None),
    ],
)
def test_dates_are_parsed(value: object, expected: str | None) -> None:
    assert normalize_date(value) == expected
    assert expected is None or interval_of(expected) is not None


@pytest.mark.parametrize(
    "text", ["03/04/1987", "3-4-1987 10:15", "5.6.87", "5 June 87", "1987-06-05 10:00 CET"]
)
def test_a_date_of_several_readings_stays_as_typed(text: str) -> None:
    assert normalize_date(f" {text}") == text
    assert interval_of(text) is None


@pytest.mark.parametrize(
    "value",
    [
        *("May", "soon", "Monday", "10:00", "1987-13-01", "1987-02-30", "0000", "31745", "1e3"),
        *("x" * 99, "0001-01-01T00:00:00+09:00"),
        *(True, 31745, 1987.5, math.inf, 10**30, [1987], {"year": 1987}),
    ],
)
def test_what_is_no_date_is_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        normalize_date(value)


@given(st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.binary(max_size=9)))
def test_anything_is_a_date_or_a_value_error(value: object) -> None:
    try:
        found = normalize_date(value)
    except ValueError:
        return
    if found is not None and interval_of(found) is not None:
        assert normalize_date(found) == found


@given(st.datetimes(timezones=st.sampled_from([UTC, EAST])), st.datetimes(timezones=st.just(EAST)))
def test_zoned_times_are_ordered_as_python_orders_them(one: datetime, other: datetime) -> None:
    try:
        texts = [normalize_date(t.isoformat()) for t in (one, other)]
    except ValueError:  # beyond the calendar in UTC
        return
    keys = [age_key(text) for text in texts]
    assert (keys[0] < keys[1]) == (one < other)


def test_intervals_worked_by_hand() -> None:
    hour = 3_600_000_000
    day = interval_of("2024-02-29")
    month = interval_of("2024-02")
    assert day is not None
    assert month is not None
    assert day.last - day.first + 1 == 24 * hour
    assert month.last == day.last
    assert month.last - month.first + 1 == 29 * 24 * hour
    wide = day.widened()
    assert (day.first - wide.first, wide.last - day.last) == (14 * hour, 12 * hour)
    assert age_key(None) == age_key("03/04/1987") < age_key("0001")
