"""Bytes of a message to text: declared charsets, aliases of mail programs, and guesses."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

# What mail programs write, and the codec that reads it. Supersets where programs write a set's name and
# use its superset: Windows' characters under ISO-8859-1, GB18030's under GB2312.
_ALIASES = {
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "iso-8859-6-i": "iso8859-6",
    "iso-8859-6-e": "iso8859-6",
    "windows-874": "cp874",
    "x-sjis": "cp932",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "windows-31j": "cp932",
    "x-euc-jp": "euc_jp",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "ksc5601": "cp949",
    "macintosh": "mac_roman",
    "x-mac-roman": "mac_roman",
    "x-mac-cyrillic": "mac_cyrillic",
    "unicode-1-1-utf-7": "utf-7",
    "unicode-1-1-utf-8": "utf-8",
    "utf8mb4": "utf-8",
    "ansi": "cp1252",
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "latin1": "cp1252",
    "iso-8859-9": "cp1254",
}
# Codecs of Python's that no message is written in; some take quadratic time.
_NO_CHARSETS = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

SAMPLE = 65_536
"""Bytes from which a charset is guessed."""


def decode(data: bytes, charset: str | None = None) -> tuple[str, str | None]:
    """Decode bytes that claim a charset.

    A byte-order mark decides, then the declared charset, then UTF-8. If all fail, the charset is
    guessed: by charset-normalizer if most letters are not ASCII, otherwise Windows-1252.

    Returns:
        The text, without NUL and without lone surrogates; and what was odd about the charset, or None.
    """
    codec = next((name for bom, name in _BOMS if data.startswith(bom)), None) or find_codec(charset)
    text, odd = None, None
    if codec:
        text = _strict(data, codec)
    elif charset and charset.strip():
        odd = f"charset {charset.strip()[:40]!r} is unknown"
    if text is None:
        text = _strict(data, "utf-8")
    if text is None and codec:
        text = _few_errors(data, codec)
        odd = f"not all of it is {codec}"
    if text is None:
        guess = _guess(data)
        odd = f"{odd or 'no charset is declared'}: read as {guess}"
        text = data.decode(guess, "replace")
    return text.replace("\0", "").encode("utf-8", "replace").decode(), odd


def find_codec(charset: str | None) -> str | None:
    """Return the codec that reads a declared charset; None if none is declared or known."""
    name = re.sub(r"[\s\"'<>;]", "", charset or "").lower()
    name = _ALIASES.get(name, name)
    try:
        codec = codecs.lookup(name).name
        b"a".decode(codec, "replace")  # raises for codecs of no text, as base64
    except (LookupError, ValueError, TypeError):
        return None
    return None if codec in _NO_CHARSETS or codec.startswith("ascii") else codec


def _strict(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except (UnicodeError, ValueError):
        return None


def _few_errors(data: bytes, codec: str) -> str | None:
    """Decode with replacement characters, if at most one of fifty characters needs one."""
    text = data.decode(codec, "replace")
    return text if text.count("\ufffd") * 50 <= len(text) else None


def _guess(data: bytes) -> str:
    sample = data[:SAMPLE].rpartition(b"\n")[0] if len(data) > SAMPLE else data
    letters = sum(byte > 64 for byte in sample)
    # Western texts hold few other letters, and too little of them for a guess by frequencies.
    if 3 * sum(byte > 127 for byte in sample) > letters:
        best = from_bytes(sample).best()
        if best is not None:
            return best.encoding
    return "cp1252" if _strict(data, "cp1252") is not None else "latin-1"
