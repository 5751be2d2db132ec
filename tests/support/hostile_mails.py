"""Mails that are hostile or odd: some are read all the same, some cost themselves, none costs much time."""

import base64
from collections.abc import Callable

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
