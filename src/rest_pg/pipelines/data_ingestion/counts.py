"""What became of every record: read, used, or dropped, with the reason and what decides."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rest_pg.config import ExampleParams
from rest_pg.fields import printable
from rest_pg.records import Document, Example, LeftOut

logger = logging.getLogger(__name__)

COLUMNS = ("file", "unit", "outcome", "reason", "decided_by", "n")
SHOWN = 20
"""Files that the log names one by one."""


class RecordCounts:
    """Counts of records and of the passages made of them, by file.

    For each file and unit, what was read is what was used and what was dropped.
    """

    def __init__(self) -> None:
        """Start with no file."""
        self._counts: Counter[tuple[str, str, str, str, str]] = Counter()

    def read(self, file: str, unit: str = "records", n: int = 1) -> None:
        """Count what was found."""
        self._counts[file, unit, "read", "", ""] += n

    def use(self, file: str, unit: str = "records", n: int = 1) -> None:
        """Count what is used."""
        self._counts[file, unit, "used", "", ""] += n

    def drop(
        self, file: str, reason: str, decided_by: str = "", unit: str = "records", n: int = 1
    ) -> None:
        """Count what is dropped, and the parameter that decides on it, if one does."""
        self._counts[file, unit, "dropped", reason, decided_by] += n

    def total(self, outcome: str, unit: str = "records", reason: str = "") -> int:
        """Return a number over all files."""
        wanted = (unit, outcome, reason)
        return sum(n for key, n in self._counts.items() if key[1:4] == wanted)

    def table(self) -> pd.DataFrame:
        """Return one row per file, unit, outcome and reason: what was read first, what was dropped last."""
        order = {"read": 0, "used": 1, "dropped": 2}
        files = {key[:2]: place for place, key in reversed(list(enumerate(self._counts)))}
        keys = sorted(self._counts, key=lambda key: (files[key[:2]], order[key[2]]))
        rows = [(*key, self._counts[key]) for key in keys if self._counts[key]]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def log(self) -> None:
        """Log a line per file and unit."""
        log_counts(self.table())


def log_counts(table: pd.DataFrame) -> None:
    """Log a line per file and unit: read, used, and dropped by reason."""
    lines: defaultdict[tuple[str, str], dict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in table.itertuples():
        decided = f" ({row.decided_by})" if row.decided_by else ""
        said = f"{row.n} {row.reason}{decided}" if row.reason else str(row.n)
        lines[str(row.file), str(row.unit)][str(row.outcome)].append(said)
    for (file, unit), found in list(lines.items())[:SHOWN]:
        logger.info(
            "%s: %s %s read, %s used, dropped: %s",
            file,
            *(["0", *found["read"]][-1], unit, ["0", *found["used"]][-1]),
            "; ".join(found["dropped"]) or "0",
        )
    if len(lines) > SHOWN:
        logger.info("and %d files more, in the table of counts", len(lines) - SHOWN)


def file_of(record: Mapping[str, Any]) -> str:
    """Return the file that a raw record comes from; of single messages, their folder."""
    if "file" in record:
        return printable(record["file"])
    source = printable(record["source"])
    file, _, _ = source.rpartition(", ")
    return file or str(Path(source).parent)


def count_records(
    reading_counts: pd.DataFrame,
    documents: Sequence[Document],
    examples: Sequence[Example],
    left_out: Sequence[LeftOut],
    params: ExampleParams,
) -> pd.DataFrame:
    """Add what became of the documents: used as a target or in a profile, or dropped.

    Args:
        reading_counts: of the records, by file.
        documents: of all users.
        examples: made of them.
        left_out: users without an example, and documents that training leaves out.
        params: of the examples.

    Returns:
        One row per file, unit (records, passages, documents), outcome and reason.
    """
    by_user: defaultdict[str, set[str]] = defaultdict(set)
    for document in documents:
        by_user[document.user_id].add(document.document_id)
    used: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        used[example.user_id].add(example.example_id)
        used[example.user_id] |= {document.document_id for document in example.profile}
    reasons: defaultdict[str, list[LeftOut]] = defaultdict(list)
    for row in left_out:
        reasons[row.user_id].append(row)
    counts = RecordCounts()
    for user, own in by_user.items():
        unused = len(own - used[user])
        counts.read("all", "documents", len(own))
        counts.use("all", "documents", len(own) - unused)
        for row in reasons[user]:
            n = min(row.documents, unused)
            reason = (
                f"user without examples: {row.reason}" if row.left_out == "user" else row.reason
            )
            counts.drop("all", reason, row.parameter, "documents", n)
            unused -= n
        counts.drop("all", *_unasked(params), "documents", unused)
    table = counts.table()
    log_counts(table)
    return pd.concat([reading_counts, table], ignore_index=True)


def _unasked(params: ExampleParams) -> tuple[str, str]:
    limits = f"examples.examples_per_user, max_profile_size={params.max_profile_size}"
    return "neither a target nor in a profile", limits
