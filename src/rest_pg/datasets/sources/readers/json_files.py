"""JSON Lines, and JSON files: an array, an object that holds one, or lines all the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from rest_pg.datasets.sources.readers.files import encoding_of, open_bytes, open_text
from rest_pg.datasets.sources.readers.records import Columns, RawRecord, broken

Found = tuple[str, RawRecord]

CHARACTERS = 2**22
"""Characters of a JSON array that are read at once; a longer item is read by twice as many."""
_SPACE = re.compile(r"[ \t\r\n]*")
_REMEDY = "the file is cut or damaged: export it again, or write one object a line (.jsonl)"


def read_lines(path: Path, columns: Columns | None = None) -> Iterator[Found]:
    """Yield the place and the record of each line of a JSON Lines file; blank lines are skipped.

    Raises:
        DatasetError: the file is no text, or a gzip file that is cut.
    """
    with open_bytes(path) as file:
        start = file.read(4096)
    wide = json.detect_encoding(start) not in ("utf-8", "utf-8-sig")
    if wide or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        encoding = encoding_of(path)
        if not _is_lines(path, encoding):
            yield from _items(path, columns, encoding)
            return
    if wide:
        yield from _parse_lines(path, _wide_lines(path, encoding), columns)
        return
    with open_bytes(path) as file:
        yield from _parse_lines(path, enumerate(_byte_lines(file), start=1), columns)


def read_json(path: Path, columns: Columns | None = None) -> Iterator[Found]:
    """Read a file called .json: an array, an object that holds one, or JSON Lines all the same.

    Raises:
        DatasetError: the array is cut or damaged: how many records are lost can't be told.
    """
    encoding = encoding_of(path)
    lines = _is_lines(path, encoding)
    return read_lines(path, columns) if lines else _items(path, columns, encoding)


def _byte_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines; they end at carriage returns too, since no string of JSON holds one."""
    for line in file:
        if line.find(b"\r", 0, len(line) - 2) < 0:
            yield line
        else:
            yield from line.splitlines()


def _wide_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    with open_text(path, encoding) as file:
        file.reconfigure(newline=None)
        yield from enumerate(file, start=1)


def _parse_lines(
    path: Path,
    lines: Iterator[tuple[int, bytes]] | Iterator[tuple[int, str]],
    columns: Columns | None,
) -> Iterator[Found]:
    encoding = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            encoding, record = _parse(path, line, encoding, columns)
        except (ValueError, RecursionError) as error:
            record = {"unreadable": str(error)}
        del line  # it may be hundreds of megabytes long, and the record holds it once more
        yield f"{path}, line {number}", record


def _parse(
    path: Path, line: bytes | str, encoding: str | None, columns: Columns | None
) -> tuple[str | None, RawRecord]:
    """Parse a line; its text goes with the return, since it may be hundreds of megabytes long."""
    if isinstance(line, str):
        text = line
    else:
        encoding, text = _decode(path, line, encoding)
    return encoding, _record(_DECODER.decode(text.removeprefix("\ufeff")), columns)


def _decode(path: Path, line: bytes, encoding: str | None) -> tuple[str | None, str]:
    """Return a line as text; the first that is no UTF-8 has the file's encoding looked for."""
    try:
        return encoding, line.decode(encoding or "utf-8", "strict" if encoding else "surrogatepass")
    except UnicodeDecodeError:
        encoding = encoding or encoding_of(path)
        return encoding, line.decode(encoding)


def _record(value: Any, columns: Columns | None) -> RawRecord:
    if isinstance(value, _Repeating):
        return {"unreadable": "a field that is there twice", "expected": "each field once"}
    if not isinstance(value, dict):
        return {"unreadable": f"a JSON {type(value).__name__}"}
    return value if columns is None else columns.pick(value)


class _Repeating(dict[str, Any]):
    """An object that has a field twice: one of the values is lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(found)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _is_lines(path: Path, encoding: str) -> bool:
    """Whether the first line is a JSON value of its own, and other lines follow it."""
    with open_text(path, encoding) as file:
        first = next(
            (line for line in iter(lambda: file.readline(CHARACTERS), "") if line.strip()), ""
        )
        start = first.lstrip("\ufeff \t\r\n")[:1]
        if start not in ("[", "{"):
            return start != ""
        if len(first) == CHARACTERS:
            return start == "{"
        try:
            json.loads(first.lstrip("\ufeff"))
        except (ValueError, RecursionError):
            return False
        return any(line.strip() for line in file)


def _items(path: Path, columns: Columns | None, encoding: str) -> Iterator[Found]:
    """Read the items of an array one by one, or the objects that follow each other without one."""
    number = 0
    with open_text(path, encoding) as file:
        reader = _Values(file)
        try:
            for value in reader.items():
                inner = _unwrap(value, columns) if reader.bare and not number else None
                for item in inner or ():
                    number += 1
                    yield f"{path}, item {number}", _record(item, columns)
                if inner is None:
                    number += 1
                    yield f"{path}, item {number}", _record(value, columns)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise broken(path, f"item {number + 1}", error, _REMEDY) from error


def _unwrap(value: Any, columns: Columns | None) -> list[Any] | None:
    """Return the only list of objects in an object that is no record itself; none if it is one."""
    if not isinstance(value, dict):
        return None
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    known = columns.places(value) if columns else {}
    is_record = len(value) > 1 if columns is None else bool(known.keys() & set(columns.required))
    return lists[0] if len(lists) == 1 and not is_record else None


class _Values:
    """Values of a JSON text, parsed one at a time from a buffer that grows with the longest."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._place, self._ended = file, "", 0, False
        self.bare = False
        """Whether the values follow each other without an array around them."""

    def items(self) -> Iterator[Any]:
        self.bare = self._next() != "["
        if self.bare:
            while self._next():
                yield self._value()
            return
        self._place += 1
        if self._next() == "]":
            self._place += 1
            self._close()
            return
        while True:
            yield self._value()
            mark = self._next()
            self._place += 1
            if mark == "]":
                self._close()
                return
            if mark != ",":
                raise ValueError(
                    f"expected a comma or the array's end, found {mark or 'the end'!r}"
                )
            if self._next() == "]":
                raise ValueError("a comma follows the last item: remove it")

    def _close(self) -> None:
        if mark := self._next():
            raise ValueError(f"{mark!r} follows the array's end")

    def _next(self) -> str:
        """Skip white space, and return the next character; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._read()

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                # a number may go on after the end of the buffer
                if end < len(self._text) or self._ended:
                    self._place = end
                    return value
            except json.JSONDecodeError as error:
                unterminated = error.msg.startswith("Unterminated")
                if self._ended or not (unterminated or error.pos > len(self._text) - 16):
                    raise ValueError(
                        f"{error.msg} (character {error.pos - self._place} of the item)"
                    ) from error
            self._read()

    def _read(self) -> None:
        rest = self._text[self._place :]
        more = self._file.read(max(CHARACTERS, len(rest)))
        self._text, self._place, self._ended = rest + more, 0, not more
