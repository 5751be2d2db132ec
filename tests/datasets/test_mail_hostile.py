"""A hostile or odd message costs that message only, and is named."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile_mails import GOOD, LINE, NAMED, READ, plain

from rest_pg.datasets.sources.mail import MailDataset, own_words, read_message
from rest_pg.datasets.sources.mail.message import read_date


@pytest.mark.parametrize("kind", READ)
def test_an_odd_message_is_read(tmp_path: Path, kind: str) -> None:
    record = read_message(READ[kind], "s", "i")
    assert record["user"] == "ann@example.org", record
    assert record["text"].startswith("The pier is open.")


@pytest.mark.parametrize("kind", NAMED)
def test_a_hostile_message_is_named(kind: str) -> None:
    raw, reason = NAMED[kind]
    record = read_message(raw, "s", "i")
    assert reason in (record.get("unreadable") or record["skipped"])


def test_the_others_of_a_mailbox_are_read(tmp_path: Path) -> None:
    hostile = [*READ.values(), *(raw for raw, _ in NAMED.values())]
    whole = b"".join(LINE + raw + b"\n\n" + LINE + GOOD + b"\n\n" for raw in hostile)
    (tmp_path / "m.mbox").write_bytes(whole)
    records = MailDataset(path=str(tmp_path / "m.mbox")).load()
    assert len(records) == 2 * len(hostile)
    assert {record["text"] for record in records[1::2]} == {"The pier is open."}


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("Tue, 02 Jan 2024 09:30:00 +0100", "2024-01-02T09:30:00+01:00"),
        ("Tue, 02 Jan 2024 09:30:00 +0100 (CET)", "2024-01-02T09:30:00+01:00"),
        ("2 Jan 24 09:30:00 GMT", "2024-01-02T09:30:00+00:00"),
        ("Tue, 02 Jan 2024 09:30:00 -0000", "2024-01-02T09:30:00+00:00"),
        ("Tue, 02 Jan 2024 09:30:00", "2024-01-02T09:30:00"),
        ("2024-01-02 09:30:00 +0100", "2024-01-02T09:30:00+01:00"),
        ("Tue, 02 Jan 2024 09:30:00 +99999999999999999", None),
        ("Tue, 32 Jan 2024 09:30:00 +0100", None),
        ("Fri, 31 Dec 9999 23:59:59 -1200", None),
        ("Mon, 01 Jan 0001 00:00:00 +1400", None),
        ("Thu, 01 Jan 1970 00:00:00 +0000", None),
        ("01/02/2024 09:30", None),  # January or February
        ("Thursday afternoon", None),
        ("Thursday", None),
        ("", None),
    ],
)
def test_dates(value: str, date: str | None) -> None:
    assert read_date(value) == date


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("iso-8859-8-i", "iso8859-8"),
        ("'utf-8 '", "utf-8"),
        ("gb2312", "gb18030"),
        ("ks_c_5601-1987", "cp949"),
        ("iso-8859-1", "cp1252"),
        ("us-ascii", "utf-8"),
        ("us-ascii", "cp1252"),
        ("x-unknown", "utf-8"),
        ("x-unknown", "cp1252"),
        ("utf-8", "cp1252"),
        ("utf-8", "utf-16"),
        ("", "utf-8-sig"),
    ],
)
def test_charsets(charset: str, codec: str) -> None:
    text = {"iso8859-8": "הרציף פתוח", "gb18030": "码头又开放了", "cp949": "부두가 열렸다"}.get(
        codec, "Liebe Grüße, der Pier ist geöffnet. Ça va déjà."
    )
    fields = f"Content-Type: text/plain; charset={charset}\n" if charset else ""
    record = read_message(plain(text.encode(codec), fields.encode()), "s", "i")
    assert record["text"] == text


def test_a_charset_that_nobody_declares_is_guessed_from_the_letters() -> None:
    text = "Гавань снова открыта, и суда входят в порт каждый день. Мы чинили мост всю весну.\n" * 3
    for codec in ("cp1251", "koi8-r"):
        record = read_message(plain(text.encode(codec)), "s", "i")
        assert record["text"] == text.strip()
        assert record["odd"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "> ",
                "On 5 Jan 2024 Bob <b@example.org> wrote:",
                "",
                "-- ",
                "--",
                "From: a",
                "Subject: b",
                "To: c",
                "mine",
                "_____",
                "-----Original Message-----",
                "Bob wrote:",
                "\xa0",
                "\u2028",
                "Sent: x@y.zz",
                "Cc: d;",
            ]
        )
    )
)
def test_own_words_are_lines_of_the_text_in_order(lines: list[str]) -> None:
    kept = own_words("\n".join(lines)).split("\n")
    rest = iter(line.rstrip() for line in "\n".join(lines).splitlines())
    assert all(line == "" or line in rest for line in kept)
    assert not any(line.startswith(">") for line in kept)
