"""One message as a raw record: its sender, date, subject, and what the sender wrote."""

from __future__ import annotations

import base64
import binascii
import quopri
import re
import unicodedata
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser
from email.policy import Compat32
from email.utils import getaddresses, parsedate_to_datetime
from typing import Any

from bs4.dammit import EncodingDetector
from dateutil import parser as dateutil_parser

from rest_pg.datasets.sources.mail.charsets import decode
from rest_pg.datasets.sources.mail.own_words import own_words
from rest_pg.datasets.sources.mail.pages import UnreadableMessageError, page_text

MAX_DEPTH, MAX_PARTS = 50, 1_000
"""Of a message's parts: how deep they may nest, and how many there may be."""
_LONGEST_FIELD = 2_000
_FIRST_MAIL = 1971

NO_OWN_WORDS = "no words of the sender's own"

_OBFUSCATED = re.compile(
    r"^\W*([\w.+=-]+) (?:at|en|bei|chez|na|em) ([\w-]+(?:\.[\w-]+)+)", re.ASCII
)
"""How Mailman's archives write an address, in some of the languages that they have."""
_ADDRESS = re.compile(r"[^\s<>(),;:\"]+@[^\s<>(),;:\"]+")
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2}[ \t]*\Z")


class _Policy(Compat32):
    """Fields as they stand, cut: what parses them takes quadratic time."""

    def header_fetch_parse(self, name: str, value: Any) -> str:
        return str(value)[:_LONGEST_FIELD]


_PARSER = BytesParser(policy=_Policy())


class _EncryptedError(Exception):
    """A message that only its reader can open."""


def read_message(raw: bytes, source: str, identifier: str) -> dict[str, Any]:
    """Return a message as a raw record.

    Returns:
        ``source`` and ``id``; and ``user`` (the sender's address), ``text``, ``title``, ``date`` (ISO 8601
        with the sender's offset, None if it can't be told) and ``odd`` (what was odd about it), or
        ``skipped`` or ``unreadable``: why there is no text.
    """
    record = {"source": source, "id": identifier}
    # Whatever the parsers raise on a hostile message costs that message only.
    try:
        return record | _read(raw)
    except _EncryptedError:
        return record | {"skipped": "an encrypted message"}
    except Exception as error:
        problem = str(error) if isinstance(error, UnreadableMessageError) else repr(error)[:200]
        return record | {"unreadable": problem}


def _read(raw: bytes) -> dict[str, Any]:
    message, body = _parse(raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    status = str(message.get("X-Mozilla-Status") or "")
    if re.fullmatch(r"[0-9A-Fa-f]{4}", status) and int(status, 16) & 8:
        return {"skipped": "deleted in Thunderbird"}
    odd: list[str] = []
    user = _sender(message)
    text = _Body(odd).text(message, body)
    if not text:
        return {"skipped": NO_OWN_WORDS}
    if not user:
        raise UnreadableMessageError(
            "the message has no sender: its From field is missing or empty"
        )
    date = str(message.get("Date") or "").strip()
    moment = read_date(date)
    if date and moment is None:
        odd.append(f"the date {date[:60]!r} can't be told")
    title = " ".join(_field(message, "Subject").split())
    return {"user": user, "text": text, "title": title or None, "date": moment, "odd": odd}


def _parse(raw: bytes) -> tuple[Message, bytes]:
    """Read a part's fields; what follows them is returned as it stands."""
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    head, blank, body = (
        raw.partition(b"\n\n") if not raw.startswith(b"\n") else (b"", b"\n", raw[1:])
    )
    message = _PARSER.parsebytes(head + b"\n\n", headersonly=True)
    rest = message.get_payload()  # from a line that is no field on
    if isinstance(rest, str) and rest.strip():
        body = rest.encode("ascii", "surrogateescape") + blank + body
    return message, body


def _field(message: Message, name: str) -> str:
    """Return a field's text: encoded words (RFC 2047) and unencoded characters of any charset."""
    value = str(message.get(name) or "")
    value = decode(value.encode("ascii", "surrogateescape"))[0] if not value.isascii() else value
    value = re.sub(r"\n(?=[ \t])", "", value)
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(
        part if isinstance(part, str) else _word(part, charset) for part, charset in parts
    )


def _word(data: bytes, charset: str | None) -> str:
    if charset is None:
        return data.decode("raw_unicode_escape", "replace")  # how decode_header made it bytes
    return decode(data, charset.partition("*")[0])[0]


def _sender(message: Message) -> str:
    """Return the address of who wrote a message: of several, the one that sent it or else the first."""
    writers, senders = _addresses(message, "From"), _addresses(message, "Sender")
    if len(writers) > 1 and senders and senders[0] in writers:
        return senders[0]
    return next(iter([*writers, *senders]), "")


def _addresses(message: Message, name: str) -> list[str]:
    value = _field(message, name).replace("\0", "")
    obfuscated = _OBFUSCATED.match(value)
    if obfuscated and "@" not in value:
        found = [f"{obfuscated[1]}@{obfuscated[2]}"]
    else:
        raw = str(message.get(name) or "")
        try:
            found = [address for _, address in getaddresses([raw if raw.isascii() else value])]
        except (RecursionError, ValueError, IndexError):
            found = []
        # a name with an unquoted comma, as "Smith, Ann <ann@example.org>", reads as two addresses
        with_at = [address for address in found if "@" in address] or _ADDRESS.findall(value)
        found = with_at or found
    cleaned = (unicodedata.normalize("NFC", a).strip(" .'\"<>").lower() for a in found)
    return [address for address in cleaned if address]


def read_date(value: str) -> str | None:
    """Return a Date field as ISO 8601, with its offset if it gives one; None if it can't be told.

    None too if the moment is out of range, or before there was mail, as a clock that was never set says.
    """
    value = value.replace("\0", "")[:200]
    if re.search(r"\s0\d{3}\s", value):  # a year that would be read as one of two digits
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError, AttributeError):
        other = _any_date(value)
        if other is None:
            return None
        moment = other
    try:
        if moment.tzinfo is None and re.search(r"-0000\b", value):
            moment = moment.replace(tzinfo=UTC)
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment
        return moment.isoformat() if in_utc.year >= _FIRST_MAIL else None
    except (ValueError, OverflowError):
        return None


def _any_date(value: str) -> datetime | None:
    """Read a date in another form, if all its parts are given and their order is clear."""
    readings = []
    year_first = re.match(r"\d{4}\D", value) is not None
    for default, day_first in ((datetime(2001, 2, 3), False), (datetime(2008, 11, 14), True)):
        try:
            parsed = dateutil_parser.parse(
                value, default=default, dayfirst=day_first and not year_first
            )
        except (ValueError, OverflowError, TypeError, AttributeError, RecursionError):
            return None
        readings.append(parsed)
    first, second = readings
    return first if first == second else None


class _Body:
    """Finds the text in a message's parts; attached files and attached messages are nobody's words here."""

    def __init__(self, odd: list[str]) -> None:
        self._odd = odd
        self._n_parts = 0

    def text(self, part: Message, body: bytes, depth: int = 0) -> str | None:
        """Return what the sender wrote in a part; None if it holds no text at all.

        Raises:
            UnreadableMessageError: there are too many parts, or a part can't be decoded.
        """
        self._n_parts += 1
        if depth > MAX_DEPTH:
            raise UnreadableMessageError(f"its parts nest deeper than {MAX_DEPTH}")
        if self._n_parts > MAX_PARTS:
            raise UnreadableMessageError(f"it has more than {MAX_PARTS} parts")
        kind, subtype = part.get_content_maintype(), part.get_content_subtype()
        if kind == "multipart":
            return self._text_of_parts(part, body, subtype, depth)
        if subtype in ("pkcs7-mime", "x-pkcs7-mime") and depth == 0:
            raise _EncryptedError
        attached = part.get_content_disposition() == "attachment" or part.get_filename()
        if kind != "text" or (attached and depth):
            return None
        if subtype in ("calendar", "vcard", "x-vcard", "directory", "csv", "rfc822-headers"):
            return None
        return self._own_words(part, body, subtype)

    def _text_of_parts(self, part: Message, body: bytes, subtype: str, depth: int) -> str | None:
        if subtype == "encrypted":
            raise _EncryptedError
        bodies = _split(body, part.get_boundary())
        if bodies is None:  # no boundary: what there is, is text
            return self._own_words(part, body, "plain")
        texts = []
        for raw in bodies:
            child, inner = _parse(raw)
            if subtype == "digest" and "Content-Type" not in child:
                continue
            text = self.text(child, inner, depth + 1)
            if text is not None and subtype in ("alternative", "related", "signed", "report"):
                return text
            texts.append(text)
        found = [text for text in texts if text is not None]
        return "\n\n".join(filter(None, found)) if found else None

    def _own_words(self, part: Message, body: bytes, subtype: str) -> str | None:
        data = _transfer_decoded(part, body)
        charset = _charset(part)
        if subtype == "html" and charset is None:
            charset = EncodingDetector.find_declared_encoding(data[:2_048], is_html=True)
        text, odd = decode(data, charset)
        if odd:
            self._odd.append(odd)
        _refuse_binary(text)
        opening = text[:200].lstrip("\ufeff \n\t").lower()
        is_page = subtype in ("html", "enriched", "richtext")
        if is_page or opening.startswith(("<!doctype html", "<html")):
            text = page_text(text)
        return own_words(text) if text.strip() else None


def _split(body: bytes, boundary: str | None) -> list[bytes] | None:
    """Return the bodies between boundary lines; None if there is no such line."""
    if not boundary:
        return None
    mark = re.escape(boundary.encode("utf-8", "surrogateescape"))
    lines = list(re.finditer(rb"\n--" + mark + rb"(--)?[ \t]*(?=\n|\Z)", b"\n" + body))
    if not lines:
        return None
    parts = []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        if line[1]:
            break
        # the body that was searched has one byte more in front
        parts.append(body[line.end() : following.start() - 1 if following else len(body)])
    return parts


def _charset(part: Message) -> str | None:
    try:
        return part.get_content_charset()
    except (LookupError, UnicodeError, ValueError):
        return None


def _transfer_decoded(part: Message, body: bytes) -> bytes:
    encoding = str(part.get("Content-Transfer-Encoding") or "").partition(";")[0].strip().lower()
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding == "base64":
        return _base64_decoded(body)
    if encoding in ("x-uuencode", "uuencode", "uue", "x-uue"):
        raise UnreadableMessageError(f"its text is in the encoding {encoding}, which isn't read")
    return body


def _base64_decoded(body: bytes) -> bytes:
    """Decode base64 up to a line that is none: relays append their footers as plain text."""
    lines = []
    for line in body.strip().split(b"\n"):
        if not _BASE64_LINE.match(line):
            break
        lines.append(line.strip())
    data = b"".join(lines).split(b"=")[0]
    data = data[: len(data) - 1] if len(data) % 4 == 1 else data
    try:
        decoded = base64.b64decode(data + b"=" * (-len(data) % 4))
    except binascii.Error as error:
        raise UnreadableMessageError(f"its text is no base64: {error}") from error
    if body.strip() and not decoded:
        raise UnreadableMessageError("its text is no base64, which its header says it is")
    return decoded


def _refuse_binary(text: str) -> None:
    sample = text[:10_000]
    controls = sum(
        unicodedata.category(c) == "Cc" and c not in "\t\n\r\f\v\x85\x1b" for c in sample
    )
    controls += sample.count("\ufffd")
    if controls * 20 > len(sample):
        raise UnreadableMessageError("its text is binary, or in another encoding than it says")
