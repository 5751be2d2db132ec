import pytest

from rest_pg.bench import common
from rest_pg.bench.common import Comparison, compare, rows_of


def test_medians_in_swapped_order_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    # ours takes 1 s each time; theirs 3, 5 and 4
    theirs_takes = iter([3, 5, 4])
    now = [0.0]
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])

    def ours() -> int:
        order.append("ours")
        now[0] += 1
        return 60

    def theirs() -> int:
        order.append("theirs")
        now[0] += next(theirs_takes)
        return 60

    row = compare("sampling", "1x2", "peer", "tokens/s", ours, theirs, 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (row.ours, row.theirs, row.ratio, row.spread) == (60, 15, 4, (3, 5))
    assert rows_of([row]) == [["sampling", "1x2", "peer", 60, 15, "tokens/s", 4]]


def test_different_amounts_of_work_are_refused() -> None:
    with pytest.raises(RuntimeError, match="ours did 3, peer 4"):
        compare("judging", "m=2", "peer", "s", lambda: 3, lambda: 4, 1)


def test_a_case_in_seconds_shows_seconds() -> None:
    row = compare("judging", "m=2", "peer", "s", lambda: 3, lambda: 3, 1)
    assert isinstance(row, Comparison)
    assert row.ours < 1
