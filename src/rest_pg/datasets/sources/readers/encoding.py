"""The encoding of a text, the same one each time.

A byte-order mark decides, then valid UTF-8, then zero bytes (UTF-16 and UTF-32 without a mark). What
remains is in a code page: charset-normalizer tells other scripts than Latin, and a count of
characters that no writer would put there tells the western ones apart.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import IO

from charset_normalizer import from_bytes

SAMPLE = 2**20
"""Bytes at the start, and around the first byte that is no UTF-8, that decide on an encoding."""
WINDOW = 2**16

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WESTERN = ("cp1252", "iso8859_15", "mac_roman", "cp1250", "iso8859_2", "cp1254", "cp850")
"""In the order of preference, where several read the same."""
OTHER_SCRIPTS = (
    *("cp1251", "koi8_r", "cp866", "mac_cyrillic", "iso8859_5", "cp1253", "cp1255", "cp1256"),
    *("cp932", "euc_jp", "gb18030", "big5", "euc_kr"),
)
_HIGH_WORD = re.compile(rb"[A-Za-z\x80-\xff]*[\x80-\xff]{2,}[A-Za-z\x80-\xff]*")
_MIXED = re.compile(r"(?<=[A-Za-z])[^\W\d_A-Za-z]|[^\W\d_A-Za-z](?=[A-Za-z])")
_COMMON = frozenset(
    "\u201c\u201d\u201e\u2018\u2019\u201a«»\u2039\u203a\u2013\u2014…•·€£§©®™°º¡¿½¼¾²³\xa0\xad"
)
_WITHIN_WORDS = frozenset("\u2019\u2013\u2014-·\xad")
_RARE = frozenset("ðþÐÞýÝÿŸ")


def detect_encoding(file: IO[bytes]) -> str:
    """Return the encoding of a file, and read it to its end for that if it has no byte-order mark.

    Text that is UTF-8 but for single damaged bytes counts as UTF-8.
    """
    head = file.read(SAMPLE)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if wide := _wide_encoding(head):
        return wide
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_wide, chunk = 0, head
    while True:
        try:
            n_wide += len(chunk) - len(decoder.decode(chunk, final=not chunk))
        except UnicodeDecodeError as error:
            start = max(error.start - WINDOW, 0)
            around = b"" if chunk is head else error.object[start : error.start + WINDOW]
            return _code_page(head + around, n_wide)
        if not chunk:
            return "utf-8"
        chunk = file.read(SAMPLE)


def _wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if zero bytes stand where ASCII characters have them."""
    zeros = [head[place::4].count(0) for place in range(4)]
    n = sum(zeros)
    if len(head) < 4 or n < 2 or 100 * n < len(head):
        return None
    size = len(head) - len(head) % 4
    candidates = []
    if n > 0.6 * len(head):
        candidates = ["utf-32-le", "utf-32-be"]
    elif zeros[1] + zeros[3] >= 0.95 * n:
        candidates = ["utf-16-le"]
    elif zeros[0] + zeros[2] >= 0.95 * n:
        candidates = ["utf-16-be"]
    for encoding in candidates:
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(head[:size])
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return encoding
    return None


def _code_page(sample: bytes, n_wide: int) -> str:
    """Return the code page of a sample that is no UTF-8; UTF-8 if it is so but for few bytes.

    Args:
        sample: the start of the file, and what stands around the first byte that is no UTF-8.
        n_wide: continuation bytes of characters that were valid UTF-8 before it.
    """
    text = sample.decode("utf-8", "surrogateescape")
    n_damaged = sum("\ud800" <= character <= "\udfff" for character in text)
    n_valid = n_wide + sum(character > "\x7f" for character in text) - n_damaged
    if n_valid > n_damaged:
        return "utf-8"
    words = _HIGH_WORD.findall(sample)
    high = sum(byte > 127 for word in words for byte in word)
    if high > 0.5 * sum(map(len, words)) and (found := _other_script(sample)):
        return found
    scores = {encoding: _plausible(sample, encoding) for encoding in WESTERN}
    return max(WESTERN, key=lambda encoding: scores[encoding])


def _other_script(sample: bytes) -> str | None:
    """Return a code page of another script, unless its letters would stand within Latin words."""
    best = from_bytes(sample[:WINDOW], cp_isolation=list(OTHER_SCRIPTS)).best()
    if best is None:
        return None
    text = sample.decode(best.encoding, "replace")
    mixed = _MIXED.findall(text)
    letters = sum(character > "\x7f" and character.isalpha() for character in text)
    return best.encoding if 10 * len(mixed) < letters else None


def _plausible(sample: bytes, encoding: str) -> float:
    """Count the characters beyond ASCII that stand where a writer would put them, less the others."""
    text = sample.decode(encoding, "replace")
    score = 0.0
    for match in re.finditer(r"(.?)([^\x00-\x7f])(?=(.?))", text, re.DOTALL):
        before, character, after = match.groups()
        if character.isalpha():
            odd = character.isupper() and before.islower()
            score += -2 if odd else 0.5 if character in _RARE else 1
        elif character in _WITHIN_WORDS:
            score += 1
        elif before.isalpha() and after.isalpha():
            score -= 2
        elif character in _COMMON:
            score += 1
        else:
            score -= 3 if unicodedata.category(character).startswith("C") else 1
    return score
