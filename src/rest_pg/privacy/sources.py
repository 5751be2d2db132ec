"""Raw data that hold a user: named, and never changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from rest_pg.privacy.identity import RAW_USER_FIELDS, Identity
from rest_pg.privacy.places import Source


@dataclass
class SourcesFound:
    """What raw data hold of a user."""

    files: Counter[str] = field(default_factory=Counter)
    """The user's records, by file."""
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The user's records, by the place that ingestion names."""
    users: set[str] = field(default_factory=set)
    """Some of the users that are there."""
    problems: list[str] = field(default_factory=list)


def search_sources(identity: Identity, sources: Iterable[Source]) -> SourcesFound:
    """Read the raw data that catalogs and earlier runs name, as ingestion reads them."""
    found = SourcesFound()
    for source in sources:
        if source.paths and not any(path.exists() for path in source.paths):
            continue  # nobody's; or an id of a hub, which is not the project's
        try:
            for record in _records(source):
                _note(found, identity, record)
        except Exception as error:  # whatever a reader may raise: the rest goes on
            where = ", ".join(map(str, source.paths)) or source.entry
            found.problems.append(f"the source {where} can't be searched: {error}")
    return found


def _records(source: Source) -> Iterator[Mapping[str, Any]]:
    dataset = AbstractDataset.from_config(source.entry, dict(source.description))
    for record in dataset.load():
        if isinstance(record, Mapping):
            yield record


def _note(found: SourcesFound, identity: Identity, record: Mapping[str, Any]) -> None:
    place = str(record.get("source", ""))
    named = [str(record[f]) for f in RAW_USER_FIELDS[:2] if record.get(f)]
    if len(found.users) < 1000:
        found.users.update(named)
    if not _is_own(identity, record):
        return
    file, _, row = place.rpartition(", ")
    found.files[file if file and not Path(place).exists() else place or row] += 1
    found.records[_key(place)] = record


def _is_own(identity: Identity, record: Mapping[str, Any]) -> bool:
    if identity.is_named_in(record, RAW_USER_FIELDS):
        return True
    # where tasks are mixed, a user is named with the task
    task = record.get("task")
    names = (record.get(name) for name in RAW_USER_FIELDS)
    return bool(task) and any(identity.is_named(f"{task}/{name}") for name in names if name)


def rejected_is_own(found: SourcesFound, record: Mapping[str, Any]) -> bool | None:
    """Say whether a rejected record was the user's; none if it can't be told any more."""
    raw = found.records.get(_key(str(record.get("source", ""))))
    if raw is None:
        return False
    shown = ascii(raw.get(str(record.get("field"))))[: len(str(record.get("found")))]
    return True if shown == record.get("found") else None


def _key(place: str) -> str:
    """Return a place by its file's name: projects move."""
    return "/".join(Path(place).parts[-2:])
