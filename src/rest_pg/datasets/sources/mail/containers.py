"""Files that hold mail, told by their content: mailboxes, single messages, zip and gzip files of them."""

from __future__ import annotations

import gzip
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rest_pg.datasets.sources.mail.mbox import find_from_line, split_mbox

Buffer = bytes | mmap.mmap

MAX_MEMBER = 2**30
"""Bytes of a compressed file that are read: it is read in memory, never unpacked to disk."""
_MAPPED = 2**26
_HEAD = 65_536

_FIELD = re.compile(rb"^([!-9;-~]{1,80}):", re.MULTILINE)
_SURE = frozenset({b"from", b"sender", b"received", b"return-path", b"message-id", b"delivered-to"})
_LIKELY = frozenset({b"date", b"subject", b"to", b"cc", b"mime-version", b"content-type"})
_COUNTED = re.compile(rb"\A\s{0,20}(\d{1,12})[ \t]*\r?\n")

_UNSUPPORTED = (
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an Outlook .msg file, which can't be read: save the message as .eml, or export the folder as mbox",
    ),
    (
        b"!BDN",
        "an Outlook .pst or .ost file, which can't be read: export it as mbox, for example with Thunderbird or readpst",
    ),
    (
        b"\xcf\xad\x12\xfe",
        "an Outlook Express .dbx file, which can't be read: export it as mbox or .eml",
    ),
)

_NAMED = (".zip", ".gz", ".mbox", ".eml", ".emlx")
"""Names of files that should hold mail."""
NO_MAIL = "no mail: neither an mbox file nor a message with headers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One message, or a file or an archive's member that gives none."""

    source: str
    """The file, and the place in it."""
    identifier: str
    """Unique in a folder: from the relative path and the message's number."""
    raw: bytes = b""
    skipped: str = ""
    """Why a file is no mail."""
    unreadable: str = ""
    """Why mail can't be read."""


Kind = Literal["empty", "zip", "gzip", "emlx", "mbox", "message", "other"]


def find_messages(root: Path) -> Iterator[Found]:
    """Yield the messages of a file, or of all files below a directory, in the order of their paths."""
    if root.is_file():
        yield from _read_file(root, root.name)
        return
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        yield from _read_file(path, path.relative_to(root).as_posix())


def _read_file(path: Path, name: str) -> Iterator[Found]:
    source, name = _printable(str(path)), _printable(name)
    try:
        if path.stat().st_size <= _MAPPED:
            yield from _read(path.read_bytes(), source, name, path)
            return
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer,
        ):
            yield from _read(buffer, source, name, path)
    except OSError as error:
        yield Found(source=source, identifier=name, unreadable=f"{type(error).__name__}: {error}")


def kind_of(head: bytes) -> Kind:
    """Tell what a file is by its first bytes."""
    if not head.strip():
        return "empty"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if find_from_line(head) is not None:
        return "mbox"
    counted = _COUNTED.match(head)
    if counted and _has_headers(head[counted.end() :]):
        return "emlx"
    return "message" if _has_headers(head) else "other"


def _has_headers(head: bytes) -> bool:
    block = re.split(rb"\n\r?\n|\r\r", head.removeprefix(b"\xef\xbb\xbf").lstrip(), maxsplit=1)[0]
    first = block.partition(b"\n")[0]
    if not _FIELD.match(first) and not first.startswith(b">From "):
        return False
    names = {name.lower() for name in _FIELD.findall(block.replace(b"\r", b"\n"))}
    return bool(names & _SURE) or len(names & _LIKELY) > 1


def _read(buffer: Buffer, source: str, name: str, path: Path | None) -> Iterator[Found]:
    """Read what a file, or an archive's member (without a path), holds."""
    head = buffer[:_HEAD]
    kind = kind_of(head)
    if kind == "other" and name.lower().endswith(".eml") and _FIELD.match(head.lstrip()):
        kind = "message"
    if kind == "mbox":
        stem = name.removesuffix(".mbox")
        for number, raw in enumerate(split_mbox(buffer), start=1):
            place = f"{source}, message {number}"
            yield Found(source=place, identifier=f"{stem}-{number}", raw=raw)
    elif kind == "emlx":
        counted = _COUNTED.match(head)
        start, size = (counted.end(), int(counted[1])) if counted else (0, 0)
        yield Found(source=source, identifier=name, raw=buffer[start : start + size])
    elif kind == "message":
        yield Found(source=source, identifier=name, raw=buffer[:])
    elif kind in ("zip", "gzip") and path is None:
        yield Found(source=source, identifier=name, skipped="an archive in an archive: unpack it")
    elif path and kind == "zip":
        yield from _read_zip(path, source, name)
    elif path and kind == "gzip":
        yield from _read_gzip(path, source, name)
    else:
        reasons = (reason for magic, reason in _UNSUPPORTED if head.startswith(magic))
        reason = "an empty file" if kind == "empty" else next(reasons, NO_MAIL)
        damaged = next((e for e in _NAMED if name.lower().endswith(e) and reason is NO_MAIL), None)
        if damaged:
            kind_of_file = f"{'an' if damaged[1] in 'em' else 'a'} {damaged[1:]} file"
            problem = f"it is not {kind_of_file}, as its name says: copy or export it again"
            yield Found(source=source, identifier=name, unreadable=problem)
        else:
            yield Found(source=source, identifier=name, skipped=reason)


def _read_gzip(path: Path, source: str, name: str) -> Iterator[Found]:
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_MEMBER + 1)
    except (OSError, EOFError, zlib.error) as error:
        yield Found(source=source, identifier=name, unreadable=f"{type(error).__name__}: {error}")
        return
    yield from _of_member(content, source, name.removesuffix(".gz"))


def _read_zip(path: Path, source: str, name: str) -> Iterator[Found]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        problem = f"{error}: copy or download the file again"
        yield Found(source=source, identifier=name, unreadable=problem)
        return
    with archive:
        for member in sorted(archive.infolist(), key=lambda info: info.filename):
            if member.is_dir():
                continue
            place = f"{source}, {_printable(member.filename)}"
            identifier = f"{name.removesuffix('.zip')}/{_printable(member.filename)}"
            try:
                with archive.open(member) as file:
                    content = file.read(MAX_MEMBER + 1)
            # an encrypted member is a RuntimeError, an unknown compression a NotImplementedError
            except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, zlib.error) as error:
                problem = f"{type(error).__name__}: {error}"
                yield Found(source=place, identifier=identifier, unreadable=problem)
            else:
                yield from _of_member(content, place, identifier)


def _of_member(content: bytes, source: str, name: str) -> Iterator[Found]:
    if len(content) > MAX_MEMBER:
        reason = (
            f"larger than {MAX_MEMBER} bytes when it is unpacked: unpack it, and name the result"
        )
        yield Found(source=source, identifier=name, unreadable=reason)
    else:
        yield from _read(content, source, name, None)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
