"""What is to be removed of a user, in steps that can be done again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rest_pg.privacy.lineage import Facts
from rest_pg.privacy.signs import Signs

Action = Literal["rows", "file", "retire", "trace", "parameter", "tag", "vacuum", "model"]


@dataclass
class Step:
    """One removal. It can be done again, and then changes nothing."""

    action: Action
    path: str
    """A file, a policy's directory, or the tracking store's address."""
    order: int
    rows: list[str] = field(default_factory=list)
    """Digests of rows, or the ids of what a store holds."""
    before: str | None = None
    """What the file was called as an input of others, until now: hashes."""
    entry: str = ""
    environments: list[str] = field(default_factory=list)
    key: str = ""
    """Of a parameter, a tag, an experiment or a model."""


@dataclass
class Finding:
    """A policy, and whether it was trained on the user."""

    facts: Facts
    certain: bool


@dataclass
class Plan:
    """What is to be done, and what is only said."""

    steps: list[Step] = field(default_factory=list)
    policies: list[Finding] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    users: set[str] = field(default_factory=set)
    signs: Signs = field(default_factory=lambda: Signs(""))
    """For the scan at the end."""
