"""Whose each row is: every row is read, and none is changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rest_pg.backends.embeddings import digest as text_digest
from rest_pg.checksums import ROWS, example_digest
from rest_pg.privacy.identity import (
    Identity,
    documents_in,
    example_of,
    ids_of,
    names_user,
    normal,
    texts_of,
)
from rest_pg.privacy.lineage import Facts, Lineage
from rest_pg.privacy.places import Place
from rest_pg.privacy.plan import Action, Finding, Plan, Step
from rest_pg.privacy.register import VIZ_EVENTS, Treatment
from rest_pg.privacy.removal import check_readable
from rest_pg.privacy.rows import DamagedError, read_rows, whole_digest
from rest_pg.privacy.scan import show_texts
from rest_pg.privacy.signs import Signs
from rest_pg.privacy.sources import SourcesFound, rejected_is_own

TABLES = (
    Treatment.FIGURES,
    Treatment.SHARDS,
    Treatment.RECORDS,
    Treatment.EXAMPLES,
    Treatment.DOCUMENTS,
)
VALIDATION = "validation.parquet"
"""Of a registered model: its users and examples are digests."""


class Search:
    """Reads every row, and says which are the user's."""

    def __init__(self, identity: Identity, lineage: Lineage, sources: SourcesFound) -> None:
        """Take the user, the files, and what raw data hold."""
        self._identity, self._lineage, self._sources = identity, lineage, sources
        self._texts: set[str] = set()
        self._embedded: set[str] = set()
        self._embedded_by_others: set[str] = set()
        self._seen: set[tuple[str, int]] = set()
        self._samples: set[int] = set()
        self._samples_of_others: set[int] = set()
        self._trained: set[str] = set()
        self.plan = Plan()
        self.only = Signs("")
        """Shingles that no other user wrote."""

    def run(self, artifacts: Iterable[Facts]) -> Plan:
        """Find the user's rows in all files, the tracking store's last."""
        last = {id(facts) for facts in artifacts}
        files = [f for f in self._lineage.in_order() if f.place.treatment in TABLES]
        for facts in files:
            self._read(facts, self._learn)
        for record in self._sources.records.values():
            self._texts |= set(texts_of(record))
        signs = Signs.of(self._identity.user, self._texts)
        for facts in files:
            self._read(facts, lambda _, __, record: self._see(signs, record))
        self.only, self.plan.signs = signs.only(), signs.rare()
        for facts in sorted(files, key=lambda f: id(f) in last):
            self._read(facts, self._decide)
            self._add_rows(facts)
        self._embeddings()
        self._pages(last)
        self._policies()
        self.plan.ids = sorted(set().union(*(f.own for f in self._lineage.files), set()))
        self.plan.users -= {normal(self._identity.user)}
        return self.plan

    def _read(self, facts: Facts, note: Any) -> None:
        """Pass a file's rows on; a damaged file is named once, and read as far as it goes."""
        problem = ""
        try:
            for row, record in read_rows(facts.place.path):
                if isinstance(record, DamagedError):
                    problem = f"{facts.place.path} is damaged: a line can't be read as JSON"
                elif isinstance(record, Mapping):
                    note(facts, row, record)
            if not problem and not facts.problem:
                check_readable(facts.place.path)
        except (DamagedError, OSError) as error:
            problem = str(error)
        if problem and not facts.problem:
            facts.problem = problem
            self.plan.problems.append(problem)

    # ---- first: ids and texts, from the rows that name their user ----

    def _learn(self, facts: Facts, row: str, record: Mapping[str, Any]) -> None:
        if not names_user(record) or facts.place.path.name == VALIDATION:
            return
        own = self._identity.is_named_in(record)
        (facts.own if own else facts.others).update(ids_of(record))
        if own:
            self._note_own(record)
        elif len(self.plan.users) < 1000:
            self.plan.users.add(normal(record.get("user_id", record.get("user"))))
        for document in documents_in(record):
            mine = self._is_own_document(document, own)
            if mine is None:
                continue
            (facts.own if mine else facts.others).update(ids_of(document))
            if mine:
                self._note_own(document)
            if mine and not own and (example := example_of(record)):
                facts.shown.add(example)

    def _is_own_document(self, document: Mapping[str, Any], within_own: bool) -> bool | None:
        if names_user(document):
            return self._identity.is_named_in(document)
        return within_own if "text" in document else None

    def _note_own(self, record: Mapping[str, Any]) -> None:
        self._texts |= set(texts_of(record))
        self._embedded |= set(map(text_digest, _searched(record)))

    # ---- second: what others wrote too ----

    def _see(self, signs: Signs, record: Mapping[str, Any]) -> None:
        if not names_user(record):
            return
        for part in (record, *(d for d in documents_in(record) if names_user(d))):
            if self._identity.is_named_in(part):
                continue
            user = normal(part.get("user_id", part.get("user")))
            for text in texts_of(part):
                key = (user, hash(text))
                if key not in self._seen:
                    self._seen.add(key)
                    signs.see(user, text)
            if self._embedded:
                self._embedded_by_others |= set(map(text_digest, _searched(part)))

    # ---- third: whose each row is ----

    def _decide(self, facts: Facts, row: str, record: Mapping[str, Any]) -> None:
        verdict = self._verdict(facts, record)
        if verdict == "own":
            facts.rows.append(row)
        elif verdict == "mixed":
            facts.ambiguous.append(example_of(record) or str(record.get("document_id", "")))
        if verdict == "own" and {"prompt", "completion"} <= record.keys():
            self._trained.add(example_digest(record))
        sample = record.get("sample")
        inner = sample if isinstance(sample, Mapping) else record
        if "sample_index" in inner and verdict in ("own", "other"):
            known = self._samples if verdict == "own" else self._samples_of_others
            shown = inner.get("text") if inner.get("malformed") else inner.get("response")
            known.add(hash((example_of(record), inner["sample_index"], shown)))

    def _verdict(self, facts: Facts, record: Mapping[str, Any]) -> str:
        if facts.place.path.name == VIZ_EVENTS.name:
            return "own" if self._event_is_own(record) else "other"
        if {"source", "field", "found"} <= record.keys():
            return self._rejected(record)
        if facts.place.path.name == VALIDATION:
            digest = hashlib.sha256(self._identity.user.strip().encode("utf-8", "surrogatepass"))
            return "own" if record.get("user") == digest.hexdigest()[:16] else "other"
        example = example_of(record)
        if names_user(record):
            if self._identity.is_named_in(record):
                return "own"
            return "own" if self._shows(facts, record, example) else "other"
        owners = {self._lineage.owner(facts, key) for key in ids_of(record)}
        if "own" in owners:
            verdict = "mixed" if owners & {"other", "mixed"} else "own"
        elif "mixed" in owners:
            verdict = self._by_sample(record, example)
        else:
            verdict = "own" if self._shows(facts, record, example) else "other"
        if "copied_ngrams" in record and example and isinstance(record.get("text"), str):
            facts.paths[example] = record["text"]
        return verdict

    def _by_sample(self, record: Mapping[str, Any], example: str | None) -> str:
        """Tell a row of a table in the tracking store by the sample that it shows."""
        key = hash((example, record.get("sample"), record.get("response")))
        own, others = key in self._samples, key in self._samples_of_others
        return "mixed" if own == others else "own" if own else "other"

    def _shows(self, facts: Facts, record: Mapping[str, Any], example: str | None) -> bool:
        """Whether another user's row shows the user: by a document, or by a path that was put into it."""
        if example and self._lineage.shows(facts, example):
            return True
        shown = any(
            self._lineage.owner(facts, normal(document["document_id"])) == "own"
            for document in documents_in(record)
            if not names_user(document) and isinstance(document.get("document_id"), (str, int))
        )
        if not shown and example and isinstance(record.get("n_tokens"), int):
            shown = self._has_path(facts, str(record.get("text", "")), example)
        if shown and example:
            facts.shown.add(example)
        return shown

    def _has_path(self, facts: Facts, prompt: str, example: str) -> bool:
        """Whether a prompt holds a reasoning path of the user's, as an experiment puts it there."""
        for parent in self._lineage.parents(facts):
            own = parent.paths.get(example, "")
            for key, path in parent.paths.items():
                mine = self._lineage.owner(parent, key) == "own"
                if mine and path.strip() and path in prompt and path not in own:
                    return True
        return False

    def _rejected(self, record: Mapping[str, Any]) -> str:
        found = str(record["found"])
        if "user" in str(record["field"]) and self._identity.is_named(found.strip("'\"")):
            return "own"
        own = rejected_is_own(self._sources, record)
        if own or self.only.count(found):
            return "own"
        return "other" if own is False else "mixed"

    def _event_is_own(self, record: Mapping[str, Any]) -> bool:
        said = [text for key, text in _leaves(record) if _ERRORS & set(key.lower().split("_"))]
        return any(self.plan.signs.names(t) or self.only.count(t) for t in said)

    # ---- what follows from it ----

    def _add_rows(self, facts: Facts) -> None:
        place = facts.place
        if facts.ambiguous:
            named = ", ".join(sorted(set(facts.ambiguous))[:3])
            self.plan.ambiguous.append(
                f"{place.path}: {len(facts.ambiguous)} rows whose ids ({named}, …) may be another user's"
            )
        if not facts.rows:
            if place.treatment is Treatment.FIGURES and self._shows_texts(place):
                self._add_file(facts)
            return
        whole = None if facts.problem else whole_digest(place.path)
        if whole is not None and whole in facts.rows:
            self._add_file(facts)
            return
        # a damaged file stays what it is said to be
        before = " ".join(facts.digests) if facts.digests and not facts.problem else None
        self._add("rows", facts, rows=sorted(set(facts.rows)), before=before)

    def _shows_texts(self, place: Place) -> bool:
        try:
            return any(self.only.count(text) for text in show_texts(place.path))
        except (OSError, ValueError) as error:
            self.plan.problems.append(f"{place.path} can't be read: {error}")
            return False

    def _embeddings(self) -> None:
        mine = self._embedded - self._embedded_by_others
        for facts in self._lineage.files:
            if facts.place.treatment is not Treatment.EMBEDDINGS or not mine:
                continue
            found: set[str] = set()
            rows: set[str] = set()

            def note(
                _: Facts,
                row: str,
                __: Mapping[str, Any],
                rows: set[str] = rows,
                found: set[str] = found,
            ) -> None:
                rows.add(row)
                found |= {row} & mine

            self._read(facts, note)
            if found and found == rows:
                self._add_file(facts)
            elif found:
                self._add("rows", facts, rows=sorted(found))

    def _pages(self, artifacts: set[int]) -> None:
        files = self._lineage.files
        pages = [f for f in files if f.place.treatment is Treatment.PAGE]
        named = {f.place.path.name for f in pages if id(f) not in artifacts}
        for facts in pages:
            ours = id(facts) not in artifacts or facts.place.path.name in named | PAGES
            if (ours and self._lineage.is_made_from_user(facts)) or self._shows_texts(facts.place):
                self._add_file(facts)

    def _policies(self) -> None:
        trained_anywhere = any(
            f.rows and f.place.path.name in TRAINING for f in self._lineage.files
        )
        for facts in self._lineage.files:
            if facts.place.treatment is Treatment.CHECKPOINTS and facts.place.path.is_dir():
                certain = self._checkpoint_is_of_user(facts.place.path)
            elif facts.is_policy and facts.place.entry != "base_policy":
                certain = self._is_trained_on_user(facts, set())
            else:
                continue
            if certain or (certain is None and trained_anywhere):
                self.plan.policies.append(Finding(facts, certain=bool(certain)))

    def _checkpoint_is_of_user(self, path: Path) -> bool | None:
        try:
            digests = json.loads((path.parent / ROWS).read_text(encoding="utf-8"))
            return not self._trained.isdisjoint(digests)
        except (OSError, ValueError, TypeError):
            return None

    def _is_trained_on_user(self, facts: Facts, seen: set[int]) -> bool | None:
        """Say whether a policy, or one that it started from, was trained on the user; none: unknown."""
        if id(facts) in seen or facts.place.entry == "base_policy":
            return False
        seen.add(id(facts))
        parents = self._lineage.parents(facts)
        if not facts.has_origin:
            parents = self._lineage.peers(facts)
            parents = [p for p in parents if p.place.path.name in TRAINING]
        rows = [p for p in parents if not p.is_policy]
        if any(p.rows for p in rows):
            return True
        known = [self._is_trained_on_user(p, seen) for p in parents if p.is_policy]
        if True in known:
            return True
        unclear = not rows or any(p.ambiguous or p.problem for p in rows)
        return None if unclear or None in known else False

    def _add_file(self, facts: Facts) -> None:
        self._add("file", facts)

    def _add(
        self,
        action: Action,
        facts: Facts,
        rows: list[str] | None = None,
        before: str | None = None,
    ) -> None:
        place = facts.place
        # of records, the most derived go first
        depth = len(self._lineage.levels(facts))
        order = 1000 * list(Treatment).index(place.treatment) - depth
        step = Step(action, str(place.path), order, rows or [], before, place.entry)
        step.environments = sorted(place.environments)
        self.plan.steps.append(step)


TRAINING = ("sft_examples.jsonl", "training_examples.jsonl")
PAGES = {"report.html", "study.html"}
_ERRORS = {"error", "errors", "message", "traceback", "exception"}


def _searched(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a retriever embeds of a record: a document's index or text, an example's query."""
    if "document_id" in record:
        value = record.get("index")
        yield str(record.get("text") if value is None else value)
    elif isinstance(record.get("query"), str):
        yield record["query"]
        # by retrieval.query=request
        yield " ".join(str(record.get("input", "")).split())


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
