"""Whose a record is: ids are fields, compared whole and in NFC."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

USER_FIELDS = ("user_id", "user")
"""Where our own records name their user."""
RAW_USER_FIELDS = (*USER_FIELDS, "name", "reviewerId", "author")
"""Where raw records do, too."""
TEXT_FIELDS = ("text", "reference")
"""Where a record that names its user keeps what that user wrote."""


def normal(value: object) -> str:
    """Return an id as it is compared: NFC, without white space around it; numbers as they are typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return unicodedata.normalize("NFC", str(value).strip())


@dataclass(frozen=True)
class Identity:
    """A user, by the id that was typed."""

    user: str

    def is_named(self, value: object) -> bool:
        """Whether a field's value is this user."""
        return isinstance(value, (str, int, float)) and normal(value) == normal(self.user)

    def is_named_in(self, record: Mapping[str, Any], fields: tuple[str, ...] = USER_FIELDS) -> bool:
        """Whether one of a record's own fields names this user."""
        return any(self.is_named(record[field]) for field in fields if field in record)


def names_user(record: Mapping[str, Any]) -> bool:
    """Whether a record says whose it is."""
    return any(record.get(field) not in (None, "") for field in USER_FIELDS)


def example_of(record: Mapping[str, Any]) -> str | None:
    """Return the id of the example that a record is of: its own field, or its sample's."""
    sample = record.get("sample")
    inner = sample if isinstance(sample, Mapping) else record
    found = inner.get("example_id", inner.get("example"))
    return normal(found) if isinstance(found, (str, int)) else None


def documents_in(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the documents within a record: of an example's profile, or of a retrieved one."""
    for field in ("profile", "documents"):
        value = record.get(field)
        for item in value if isinstance(value, list) else ():
            if isinstance(item, Mapping):
                yield item
            elif isinstance(item, str):  # an answer has their ids alone
                yield {"document_id": item}


def ids_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the example id and the document id of a record itself."""
    found = (example_of(record), record.get("document_id"))
    yield from (normal(value) for value in found if isinstance(value, (str, int)))


def texts_of(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the user of a record wrote, documents within it left out."""
    for field in TEXT_FIELDS:
        value = record.get(field)
        # a prompt's text is ours
        if isinstance(value, str) and value and not (field == "text" and "n_tokens" in record):
            yield value
