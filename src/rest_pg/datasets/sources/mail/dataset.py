"""A mailbox as a Kedro dataset."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

from rest_pg.datasets.sources.mail.containers import find_messages
from rest_pg.datasets.sources.mail.message import read_message

logger = logging.getLogger(__name__)


class MailDataset(AbstractDataset[None, list[dict[str, Any]]]):
    """Messages of any mailbox, by their senders: a user is a ``From`` address.

    What a file is, its content says, not its name. It reads mbox files of all variants (also those of
    Thunderbird, Apple Mail and Google Takeout), Mailman's archives, Maildir and MH folders, Apple's
    ``.emlx``, single messages, and zip and gzip files of all these. The Avocado collection (LDC2015T03)
    keeps zip files of messages below ``data/text``.
    """

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        """Read the file, or all files below the directory, at ``path``."""
        self._path = Path(path)
        self.metadata = metadata

    def load(self) -> list[dict[str, Any]]:
        """Return one raw record per message, in the order of paths and places.

        A message without words of the sender's own, and a file that is no mail, is a record with
        ``skipped``; what can't be read is one with ``unreadable``. Both say why.

        Raises:
            DatasetError: there is no such file or directory, or it holds no message.
        """
        if not self._path.exists():
            raise DatasetError(
                f"{self._path} is not there: export your mail as mbox and name the file, or a "
                "directory of them, with --params mail=PATH"
            )
        records, n_messages = [], 0
        for record, is_message in self._records():
            records.append(record)
            n_messages += is_message
        if not n_messages:
            first = "".join(
                f"; {r['source']}: {r.get('skipped') or r.get('unreadable')}" for r in records[:1]
            )
            raise DatasetError(
                f"{self._path} holds no message: it must be an mbox file, a message with its headers, "
                f"a zip or gzip file of those, or a directory of them{first}"
            )
        _log_odd(records)
        return records

    def _records(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield each record, and whether it comes from a message, or from a damaged file among others."""
        seen: Counter[str] = Counter()
        for found in find_messages(self._path):
            seen[found.identifier] += 1
            times = seen[found.identifier]
            identifier = f"{found.identifier}~{times}" if times > 1 else found.identifier
            base = {"source": found.source, "id": identifier}
            if found.skipped:
                yield base | {"skipped": found.skipped}, False
            elif found.unreadable:
                yield base | {"unreadable": found.unreadable}, self._path.is_dir()
            else:
                yield read_message(found.raw, found.source, identifier), True

    def save(self, data: None) -> None:
        """Refuse: raw data is read-only."""
        raise DatasetError(f"{self._path} is raw data and is never written")

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}

    def _exists(self) -> bool:
        return self._path.exists()


def _log_odd(records: list[dict[str, Any]]) -> None:
    odd = [record for record in records if record.get("odd")]
    if odd:
        logger.warning(
            "%d of %d messages are odd, and were read; the first: %s: %s",
            len(odd),
            len(records),
            odd[0]["source"],
            "; ".join(odd[0]["odd"]),
        )
