"""Mail as raw documents: what a person wrote in a message, without what they quoted or signed with."""

from __future__ import annotations

import mailbox
import re
import zipfile
import zlib
from collections.abc import Iterator
from email import message_from_binary_file, message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

_QUOTED_BEHIND = re.compile(
    r"^(-{2,}\s*(Original Message|Forwarded by|Forwarded message).*|On .{5,200} wrote:|_{5,}|-- ?)\s*$",
    re.IGNORECASE,
)
"""A line behind which nothing is the sender's own: an older message, or a signature."""

MESSAGES = (".eml", ".msg.txt", ".txt")


class MailDataset(AbstractDataset[None, list[dict[str, Any]]]):
    """Messages of any mailbox, by their senders: a user is a ``From`` address.

    It reads mbox files, Maildir's, other directories of single messages (.eml, or .txt), and zip files of
    single messages, as the Avocado collection (LDC2015T03) keeps them below ``data/text``: all in
    RFC 5322's format.
    """

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        """Read the mbox file, or all below the directory, at ``path``."""
        self._path = Path(path)
        self.metadata = metadata

    def load(self) -> list[dict[str, Any]]:
        """Return one raw record per message, in the order of file names and places.

        Raises:
            DatasetError: there is no such file or directory, or it holds no message.
        """
        if not self._path.exists():
            raise DatasetError(
                f"{self._path} is not there: export your mail as mbox and name the file, or a "
                "directory of them, with --params mail=PATH"
            )
        records = list(self._records())
        if not records:
            raise DatasetError(
                f"{self._path} holds no message: it must be an mbox file, or a directory with "
                f".mbox files, zip files of messages, or single messages ({', '.join(MESSAGES)})"
            )
        return records

    def _records(self) -> Iterator[dict[str, Any]]:
        single = self._path.is_file()
        files = [self._path] if single else sorted(p for p in self._path.rglob("*") if p.is_file())
        for path in files:
            if path.name.endswith(MESSAGES) or path.parent.name in ("cur", "new"):
                with path.open("rb") as file:
                    message = message_from_binary_file(file, policy=policy.default)
                yield read_message(message, str(path), str(path.relative_to(self._path.parent)))
            elif path.suffix == ".zip":
                yield from _read_zip(path)
            elif single or path.suffix == ".mbox":
                yield from _read_mbox(path)

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}

    def _exists(self) -> bool:
        return self._path.exists()


def _read_mbox(path: Path) -> Iterator[dict[str, Any]]:
    box = mailbox.mbox(path, create=False)
    try:
        for number, key in enumerate(box.iterkeys(), start=1):
            message = message_from_bytes(box.get_bytes(key), policy=policy.default)
            yield read_message(message, f"{path}, message {number}", f"{path.stem}-{number}")
    finally:
        box.close()


def _read_zip(path: Path) -> Iterator[dict[str, Any]]:
    """Read the messages where they are: nothing is unpacked to disk."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        yield {"source": str(path), "unreadable": f"{error}: copy the file anew"}
        return
    with archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(MESSAGES):
                continue
            source = f"{path}, {name}"
            try:
                message = message_from_bytes(archive.read(name), policy=policy.default)
            except (zipfile.BadZipFile, RuntimeError, OSError, zlib.error) as error:
                yield {"source": source, "unreadable": f"{type(error).__name__}: {error}"}
            else:
                yield read_message(message, source, f"{path.stem}/{name}")


def read_message(message: EmailMessage, source: str, identifier: str) -> dict[str, Any]:
    """Return a message as a raw record; what can't be read is said in it, and judged later."""
    try:
        body = message.get_body(preferencelist=("plain", "html"))
        text = "" if body is None else body.get_content()
        if body is not None and body.get_content_subtype() == "html":
            text = _without_markup(text)
        date = message["date"]
        return {
            "source": source,
            "id": identifier,
            "user": parseaddr(str(message["from"] or ""))[1].lower(),
            "text": own_words(text),
            "title": " ".join(str(message["subject"] or "").split()) or None,
            "date": parsedate_to_datetime(str(date)).date().isoformat() if date else None,
        }
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return {"source": source, "unreadable": f"{type(error).__name__}: {error}"}


def own_words(text: str) -> str:
    """Keep what the sender wrote: no quoted line, no older message below, no signature."""
    kept: list[str] = []
    for line in text.splitlines():
        if _QUOTED_BEHIND.match(line.strip()):
            break
        if not line.lstrip().startswith(">"):
            kept.append(line.rstrip())
    return "\n".join(kept).strip()


class _Text(HTMLParser):
    """Collects the text of a page; blocks end lines."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")
        if tag in ("br", "p", "div", "tr", "li"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _without_markup(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    return "".join(parser.parts)
