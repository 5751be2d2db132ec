"""Values of raw records as texts: ids as typed, numbers as their digits, all in NFC."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

EXACT = 2**53
"""Above this a float holds no exact whole number: several ids would become one."""
LARGE = 2**20
UNICODE = "valid Unicode, no lone surrogate or damaged byte"
_SURROGATE = re.compile("[\ud800-\udfff]")


def text_of(value: Any) -> str | None:
    """Return a field as text in NFC; none if it holds nothing.

    Whole numbers become their digits: user 7 is user "7", and so is 7.0, which pandas makes of 7 in a
    column with gaps.

    Raises:
        ValueError: it is neither a text nor a number; the message says what is expected.
    """
    if value is None or is_nan(value):
        return None
    if isinstance(value, bytes):
        return text_of(_decoded(value))
    if isinstance(value, str):
        if not is_unicode(value):
            raise ValueError(UNICODE)
        return unicodedata.normalize("NFC", value)
    try:
        whole = not isinstance(value, bool) and int(value) == value
    except (TypeError, ValueError, ArithmeticError):
        whole = False
    if not whole or (isinstance(value, float) and abs(value) >= EXACT):
        raise ValueError("a text or a whole number")
    return str(int(value))


def plain_text(value: Any) -> str:
    """Return a field that must be written out, in NFC.

    Raises:
        ValueError: it is empty or no text.
    """
    if isinstance(value, bytes):
        value = _decoded(value)
    text = text_of(value) if isinstance(value, str) else None
    if text is None or not text.strip():
        raise ValueError("a text that is not empty")
    return text


def identity_of(value: Any) -> str:
    """Return a user's id: in NFC, as typed but for white space around it.

    Raises:
        ValueError: there is none, or it is neither a text nor a whole number.
    """
    found = (text_of(value) or "").strip()
    if not found:
        raise ValueError("a text that is not empty, or a whole number")
    return found


def is_nan(value: Any) -> bool:
    """Whether a value is the number that pandas and JSON write for a field that holds nothing."""
    return isinstance(value, float) and math.isnan(value)


def is_unicode(text: str) -> bool:
    """Whether a text holds no lone surrogate: half a character, or a byte that is none."""
    if len(text) > LARGE:  # nothing of that size is copied
        return text.isascii() or _SURROGATE.search(text) is None
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: object) -> str:
    """Return a text, such as a file's name, that can be written out as UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError("valid UTF-8") from None
