"""Mbox files and Mailman archives: where a message starts, and what a writer of mailboxes escaped."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

_DAYS = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTHS = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_ZONE = rb"(?: +(?:[+-]\d{4}|[A-Z]{1,5}(?:[+-]\d{1,4})?)){0,2}"
_FROM_LINE = re.compile(
    rb"From [^\n]{0,500}?\b" + _DAYS + rb"[a-z]*,? +"
    rb"(?:" + _MONTHS + rb"[a-z]* +\d{1,2}|\d{1,2}[ -]" + _MONTHS + rb"[a-z]*[ -]\d{2,4}),? +"
    rb"(?:\d{4} +)?\d{1,2}:\d\d(?::\d\d)?"
    + _ZONE
    + rb"(?: +\d{4})?"
    + _ZONE
    + rb"(?: remote from [^\n]*)?[ \t\r]*\Z"
)
"""Sender and date, as ``asctime`` writes it; some programs add a zone, or write the date as headers do."""
_KNOWN_FIELD = re.compile(
    rb"(?:>?From |(?:From|To|Date|Subject|Received|Return-Path|Message-ID|MIME-Version|Delivered-To|Status"
    rb"|X-[\w-]{1,60}|Content-[\w-]{1,60}): ?)",
    re.IGNORECASE,
)
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,12})[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_ESCAPED = re.compile(rb"^>(>*From )", re.MULTILINE)
_HEADERS = 65_536
_LINE = 1_000


def find_from_line(head: bytes) -> int | None:
    """Return the end of the line that starts an mbox file; None if it isn't one.

    The first line needs no date where a header follows.
    """
    blank = re.match(rb"(?:\xef\xbb\xbf)?[\s]{0,100}", head)
    start = blank.end() if blank else 0
    if not head.startswith(b"From ", start):
        return None
    end = head.find(b"\n", start)
    end = len(head) if end < 0 else end
    following = head[end + 1 : end + 1 + _LINE]
    if _FROM_LINE.match(head[start:end]) or re.match(rb"[!-9;-~]{1,80}:|>From ", following):
        return end
    return None


def split_mbox(buffer: bytes | mmap.mmap) -> Iterator[bytes]:
    """Yield the messages of an mbox file, without ``From `` lines and unescaped.

    A message ends at a line of sender and date after a blank line. A ``Content-Length`` (mboxcl) decides
    where it ends before such a line or the end of the file; otherwise it is wrong, and not used.
    """
    lines = _from_lines(buffer)
    starts = {start for start, _ in lines}
    number = 0
    while number < len(lines):
        begin = lines[number][1] + 1
        number += 1
        end = lines[number][0] if number < len(lines) else len(buffer)
        counted = _counted_end(buffer, begin, starts)
        escaped = True
        if counted is not None and counted > end:
            # "From " lines stand unescaped in what is counted
            end, escaped = counted, False
            while number < len(lines) and lines[number][0] < end:
                number += 1
        message = buffer[begin:end]
        yield _unescape(message) if escaped else message


def _from_lines(buffer: bytes | mmap.mmap) -> list[tuple[int, int]]:
    """Return where each ``From `` line starts and ends."""
    first = find_from_line(buffer[:_HEADERS])
    lines = [] if first is None else [(buffer.find(b"From ", 0, first), first)]
    for match in re.finditer(rb"\nFrom [^\n]*", buffer):
        start, end = match.start() + 1, match.end()
        if (lines and start <= lines[0][0]) or end - start > _LINE:
            continue
        if not _FROM_LINE.match(match[0][1:]):
            continue
        blank = buffer[max(start - 3, 0) : start]
        after_blank = blank.endswith((b"\n\n", b"\n\r\n"))
        if after_blank or _KNOWN_FIELD.match(buffer[end + 1 : end + 100]):
            lines.append((start, end))
    return lines


def _counted_end(buffer: bytes | mmap.mmap, begin: int, starts: set[int]) -> int | None:
    """Return where a message ends by its Content-Length, if a message or the file's end follows there."""
    head = buffer[begin : begin + _HEADERS]
    separator = re.search(rb"\n\r?\n", head)
    length = _LENGTH.search(head, 0, separator.end()) if separator else None
    if separator is None or length is None:
        return None
    end = begin + separator.end() + int(length[1])
    if end > len(buffer):
        return None
    following = end
    while buffer[following : following + 1] in (b"\n", b"\r"):
        following += 1
    return end if following == len(buffer) or following in starts else None


def _unescape(message: bytes) -> bytes:
    """Remove the ``>`` that mbox writers put before ``From `` at the start of a line.

    A line between quoted ones without a space after their ``>`` is a quoted line itself.
    """
    if b"\n>" not in message or not _ESCAPED.search(message):
        return message
    lines = message.split(b"\n")
    quoted = [
        line.startswith(b">") and line[1:2] not in (b" ", b"") and not _ESCAPED.match(line)
        for line in lines
    ]
    return b"\n".join(
        line[1:]
        if _ESCAPED.match(line) and not any(quoted[max(number - 1, 0) : number + 2])
        else line
        for number, line in enumerate(lines)
    )
