"""A hostile or odd message costs that message only, is named, and takes no more than linear time."""

import base64
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_pg.datasets.sources.mail import MailDataset, own_words, read_message
from rest_pg.datasets.sources.mail.message import read_date

LINE = b"From x Mon Jan  1 10:00:00 2024\n"
HEAD = b"From: ann@example.org\nSubject: s\nDate: Tue, 02 Jan 2024 09:30:00 +0100\n"
GOOD = HEAD + b"\nThe pier is open.\n"


def nested(n: int, kind: str = "multipart") -> bytes:
    if kind == "message":
        return HEAD + b"Content-Type: message/rfc822\n\n" * n + b"hello"
    parts = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (i, i) for i in range(n)
    )
    return HEAD + parts + b"\nhello\n"


def page(html: bytes) -> bytes:
    return HEAD + b"Content-Type: text/html; charset=utf-8\n\n" + html


def plain(text: bytes, fields: bytes = b"") -> bytes:
    return HEAD + fields + b"\n" + text


READ = {
    "bad date": GOOD.replace(b"Tue, 02 Jan 2024 09:30:00 +0100", b"Thursday afternoon"),
    "zone overflow": GOOD.replace(b"+0100", b"+99999999999999999"),
    "20,000 recipients": b"To: "
    + b", ".join(b"u%d@example.org" % i for i in range(20_000))
    + b"\n"
    + GOOD,
    "gigantic header": b"X-Odd: " + b"x" * 3_000_000 + b"\n" + GOOD,
    "folded header": b"X-Odd: a\n" + b" b\n" * 50_000 + GOOD,
    "quoted parameters": plain(
        b"The pier is open.", b'Content-Type: text/plain; x="' + b";" * 99_999 + b"\n"
    ),
    "unknown charset": plain(
        b"The pier is open.", b"Content-Type: text/plain; charset=x-nowhere\n"
    ),
    "charset of no text": plain(
        b"The pier is open.", b"Content-Type: text/plain; charset=base64\n"
    ),
    "unsafe charset": plain(b"The pier is open.", b"Content-Type: text/plain; charset=punycode\n"),
    "NUL bytes": plain(b"The \0pier is open.\0\0"),
    "bad encoded word": b"Subject: =?utf-8?b?4?= =?x?y?z?=\n" + GOOD.replace(b"Subject: s\n", b""),
    "8-bit headers": b"Subject: Gr\xfc\xdfe \xe2\x82\n" + GOOD.replace(b"Subject: s\n", b""),
    "boundary that never comes": plain(
        b"The pier is open.", b"Content-Type: multipart/mixed; boundary=b\n"
    ),
    "no boundary": plain(b"The pier is open.", b"Content-Type: multipart/mixed\n"),
    "RFC 2231": plain(
        b"The pier is open.",
        b"Content-Type: text/plain; charset*0*=utf-8''utf%2; charset*1*=8; x*9=\n",
    ),
    "broken HTML": page(b"<p>The <b>pier</i></table> is open.</p><div <a <!-- x"),
    "deep HTML": page(b"<div>" * 50_000 + b"The pier is open."),
    "unclosed comments": page(b"The pier is open." + b"<!-- x>" * 99_999),
    "unclosed tags": page(b"The pier is open." + b'<a b="' * 99_999),
    "broken quoted-printable": plain(
        b"The pier is open.=ZZ=\n=", b"Content-Transfer-Encoding: quoted-printable\n"
    ),
    "footer after base64": plain(
        base64.encodebytes(b"The pier is open.") + b"\n____\nPier mailing list, unsubscribe!\n",
        b"Content-Transfer-Encoding: base64\n",
    ),
    "carriage returns": GOOD.replace(b"\n", b"\r"),
}
NAMED = {
    "1,000 nested parts": (nested(1_000), "nest deeper than 50"),
    "1,000 nested messages": (nested(1_000, "message"), "no words"),
    "2,000 parts": (
        plain(b"--b\n\nhi\n" * 2_000, b"Content-Type: multipart/mixed; boundary=b\n"),
        "more than 1000 parts",
    ),
    "base64 rubbish": (
        plain(b"!@#$ no base64 ***\n" * 99, b"Content-Transfer-Encoding: base64\n"),
        "no base64",
    ),
    "binary in base64": (
        plain(base64.encodebytes(bytes(range(256)) * 9), b"Content-Transfer-Encoding: base64\n"),
        "binary",
    ),
    "no From": (b"Subject: s\nDate: x\n\nThe pier is open.", "no sender"),
    "no headers": (b"\nThe pier is open.", "no sender"),
    "nested comments": (GOOD.replace(b"ann@example.org", b"(" * 1_900), "no sender"),
    "many tags": (page(b"<b>x</b>" * 99_999), "199998 tags, and at most 100000"),
    "empty": (b"", "no words"),
}


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


GROWING: dict[str, Callable[[int], bytes]] = {
    "lines": lambda n: plain(b"a\n" * (n // 2)),
    "quotations": lambda n: plain(
        b"On 3 Jan 2022 Bob <b@example.org> wrote:\n> a\nb\n" * (n // 50)
    ),
    "attributions": lambda n: plain((b"On " * 90 + b"1:\n> q\n") * (n // 280)),
    "fields": lambda n: plain(b"From: a\n" * (n // 8)),
    "colons": lambda n: plain(b"a:\n" * (n // 3)),
    "signatures": lambda n: plain(b"--\n\n" * (n // 4)),
    "one line": lambda n: plain(b"On " + b"a <" * (n // 3) + b":\n> q"),
    "blanks": lambda n: plain(b" " * n + b"x"),
    "Chinese": lambda n: plain("港".encode() * (n // 3)),
    "PGP": lambda n: plain(b"-----BEGIN PGP SIGNATURE-----\n" * (n // 30)),
    "recipients": lambda n: b"To: " + b"a@example.org, " * (n // 15) + b"\n" + GOOD,
    "open tags": lambda n: page(b"<a " * (n // 3)),
    "attributes": lambda n: page(b"<a b=" * (n // 5)),
    "entities": lambda n: page(b"&#" * (n // 2)),
    "declarations": lambda n: page(b"<![CDATA[" * (n // 9)),
    "sections": lambda n: page(b'<div style="border-top:x">' * (n // 26)),
    "quoted sections": lambda n: page(b'<div class="gmail_quote">' * (n // 25)),
    "image": lambda n: page(b'<img src="data:' + b"a" * n + b'">hi'),
}


@pytest.mark.parametrize("kind", GROWING)
def test_time_grows_with_the_length(kind: str) -> None:
    """Eight times as much may take three times eight as long, not eight times eight; short ones aren't measured."""

    def seconds(n: int) -> float:
        raw = GROWING[kind](n)
        start = time.process_time()
        read_message(raw, "s", "i")
        return time.process_time() - start

    short = min(seconds(40_000) for _ in range(2))
    assert seconds(320_000) < max(24 * short, 0.4)


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
