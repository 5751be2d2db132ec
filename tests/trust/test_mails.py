"""Hostile mails: each costs itself alone, and time that grows with its length, not with the square."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.hostile_mails import GOOD, GROWING, LINE, NAMED, READ

from rest_pg.datasets.sources.mail import MailDataset, read_message

from .conftest import FULL, Ledger


def test_a_hostile_message_costs_itself_alone(tmp_path: Path, ledger: Ledger) -> None:
    hostile = [*READ.values(), *(raw for raw, _ in NAMED.values())]
    whole = b"".join(LINE + raw + b"\n\n" + LINE + GOOD + b"\n\n" for raw in hostile)
    (tmp_path / "m.mbox").write_bytes(whole)
    records = MailDataset(path=str(tmp_path / "m.mbox")).load()
    others = [record.get("text") for record in records[1::2]]
    lost = sum(text != "The pier is open." for text in others) + 2 * len(hostile) - len(records)
    ledger.add("hostile mail", survived=not lost, lost=lost, cases=len(hostile))
    assert not lost


def seconds(kind: str, n: int) -> float:
    """Processor time of reading a mail of n bytes: the least of three readings."""
    raw, found = GROWING[kind](n), []
    for _ in range(3):
        start = time.process_time()
        read_message(raw, "s", "i")
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.skipif(not FULL, reason="time is measured by `make trust` alone")
@pytest.mark.parametrize("kind", GROWING)
def test_time_grows_with_the_length(kind: str, ledger: Ledger) -> None:
    """Eight times the length may take three times eight as long, not eight times eight; a moment isn't measured."""
    linear = seconds(kind, 320_000) < max(24 * seconds(kind, 40_000), 0.4)
    ledger.add("mail of 320 KB", survived=linear)
    assert linear
