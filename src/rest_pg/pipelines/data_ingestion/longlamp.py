"""LongLaMP's records are examples already: fields are renamed, checked and bounded, nothing is drawn anew."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rest_pg.config import LongLampParams
from rest_pg.dates import normalize_date
from rest_pg.fields import (
    UNICODE,
    identity_of,
    is_nan,
    is_unicode,
    plain_text,
    printable,
    text_of,
)
from rest_pg.method.retrieval import build_query
from rest_pg.pipelines.data_ingestion.copies import is_near_copy
from rest_pg.pipelines.data_ingestion.counts import RecordCounts, file_of
from rest_pg.pipelines.data_ingestion.documents import is_forgotten
from rest_pg.pipelines.data_ingestion.examples import random_for
from rest_pg.records import Document, Example, RejectedRecord, Split
from rest_pg.text import count_words

IDS = ("id", "document_id")
SPLIT_NAMES: Mapping[str, Split] = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Task:
    """Where a task's records keep what we need; several names are tried in order."""

    user: str
    text: tuple[str, ...]
    """Of a profile document: what reaches the prompt."""
    title: tuple[str, ...]
    index: tuple[tuple[str, ...], ...]
    """Fields that a retriever reads, joined."""


TASKS: Mapping[str, Task] = {
    "abstract_generation": Task(
        user="name",
        text=("abstract",),
        title=("title",),
        index=(("title",), ("abstract",)),
    ),
    "product_review": Task(
        user="reviewerId",
        text=("reviewText",),
        title=("summary",),
        index=(("overall",), ("summary",), ("description",), ("reviewText",)),
    ),
    # some copies spell summary and content as input and output
    "topic_writing": Task(
        user="author",
        text=("content", "output"),
        title=("summary", "input"),
        index=(("summary", "input"), ("content", "output")),
    ),
    # not LongLaMP's own: examples that another run made of mails, or of any documents
    "email_completion": Task(
        user="user_id",
        text=("text",),
        title=("title",),
        index=(("title",), ("text",)),
    ),
}


@dataclass(slots=True)
class Counts:
    """What was left out or cut while reading."""

    records: int = 0
    too_long: int = 0
    documents_cut: int = 0
    copies: int = 0
    near_copies: int = 0
    empty_profiles: int = 0
    rejected: list[RejectedRecord] = field(default_factory=list)
    by_file: RecordCounts = field(default_factory=RecordCounts)


def read_records(
    records: Iterable[dict[str, Any]],
    params: LongLampParams,
    seed: int,
    forgotten_users: Container[str] = frozenset(),
) -> tuple[list[Example], Counts]:
    """Read records one at a time, and keep the drawn ones: memory doesn't grow with the file.

    A record is drawn by its split and number in it, so the draw doesn't depend on the file's format.
    Forgotten users' records are skipped, and keep their numbers.

    Returns:
        Examples by split and number; and what was left out.
    """
    counts = Counts()
    drawn: dict[tuple[str, Split], list[tuple[float, int, str, Example]]] = {}
    numbers: Counter[tuple[str, Split]] = Counter()
    for record in records:
        counts.records += 1
        file = file_of(record)
        counts.by_file.read(file)
        task, split = task_of(record, params), SPLIT_NAMES[record["split"]]
        place = (task, split)
        numbers[place] += 1
        # the smallest keys win; the heap's first item is the largest of them
        key = random_for(seed, "longlamp", split, numbers[place]).random()
        kept, size = drawn.setdefault(place, []), params.max_examples.get(split, 0)
        found = _judge(record, task, params, counts, forgotten_users)
        if found is None and (size == 0 or (len(kept) == size and -kept[0][0] <= key)):
            found = _not_drawn(params, split)
        if found is not None:
            counts.by_file.drop(file, *found)
            continue
        example = _to_example(record, numbers[place], params, seed, counts)
        if example is None:
            counts.empty_profiles += 1
            reason = f"longlamp.near_copies={params.near_copies}"
            counts.by_file.drop(file, "no usable profile document", reason)
            continue
        item = (-key, numbers[place], file, example)
        if len(kept) < size:
            heapq.heappush(kept, item)
        else:
            _, _, left, _ = heapq.heapreplace(kept, item)
            counts.by_file.drop(left, *_not_drawn(params, split))
    for kept in drawn.values():
        for _, _, file, _ in kept:
            counts.by_file.use(file)
    return [
        example
        for _, kept in sorted(
            drawn.items(), key=lambda d: list(SPLIT_NAMES.values()).index(d[0][1])
        )
        for _, _, _, example in sorted(kept, key=lambda item: item[1])
    ], counts


def _judge(
    record: dict[str, Any],
    task: str,
    params: LongLampParams,
    counts: Counts,
    forgotten_users: Container[str],
) -> tuple[str, str] | None:
    """Return why a record isn't used, and what decides; none if it may be drawn."""
    known = TASKS.get(task)
    user = record.get(known.user) if known else None
    if is_forgotten(user, forgotten_users) or is_forgotten(f"{task}/{user}", forgotten_users):
        return "user who is forgotten", "forgotten_users"
    if problem := check_record(record, known):
        counts.rejected.append(problem)
        return f"bad record (field {re.sub(r'[0-9]+', 'N', problem.field)})", "bad_records"
    if count_words(record["output"]) > params.max_reference_words:
        counts.too_long += 1
        return "longer output", f"longlamp.max_reference_words={params.max_reference_words}"
    return None


def _not_drawn(params: LongLampParams, split: Split) -> tuple[str, str]:
    return "not drawn", f"longlamp.max_examples.{split}={params.max_examples.get(split, 0)}"


def task_of(record: Mapping[str, Any], params: LongLampParams) -> str:
    """Return the task that names a record's fields; empty if that is to be told by them, and they don't.

    Raises:
        ValueError: tasks are mixed, and the record's is none of LongLaMP's.
    """
    if params.task == "auto":
        found = [name for name, task in TASKS.items() if task.user in record]
        return found[0] if len(found) == 1 else ""
    if params.task != "mixed":
        return params.task
    task = str(record.get("task", ""))
    if task not in TASKS:
        raise ValueError(
            f"longlamp.task=mixed, and a record of {record['source']} is of the task {task!r}: name "
            f"raw_examples.tasks in the catalog by {', '.join(TASKS)}"
        )
    return task


def check_record(record: dict[str, Any], task: Task | None) -> RejectedRecord | None:
    """Return what is wrong with a record, of no known task among others, or None if it can be used."""
    if "unreadable" in record:
        return _reject(record, "record", "one JSON object", record["unreadable"])
    if task is None:
        names = " or ".join(known.user for known in TASKS.values())
        return _reject(record, names, "one of these fields, for the user", sorted(record))
    name = task.user
    try:
        identity_of(record.get(name))
        for name in ("input", "output"):
            plain_text(record.get(name))
        name = "query"
        text_of(record.get(name))
    except ValueError as error:
        return _reject(record, name, str(error), record.get(name))
    return _check_profile(record, task)


def _check_profile(record: dict[str, Any], task: Task) -> RejectedRecord | None:
    profile = record.get("profile")
    if not isinstance(profile, list) or not all(isinstance(item, dict) for item in profile):
        return _reject(record, "profile", "a list of objects", profile)
    names = {*task.text, *task.title, *(n for names in task.index for n in names), *IDS, "year"}
    for number, item in enumerate(profile):
        if not any(name in item for name in task.text):
            return _reject(record, f"profile.{number}.{task.text[0]}", "a text", sorted(item))
        for name in names & item.keys():
            value = item[name]
            if isinstance(value, str) and not is_unicode(value):
                return _reject(record, f"profile.{number}.{name}", UNICODE, value[:80])
            if value is not None and not isinstance(value, str | int | float):
                return _reject(record, f"profile.{number}.{name}", "a text or a number", value)
    return None


def _reject(record: dict[str, Any], name: str, expected: str, found: object) -> RejectedRecord:
    return RejectedRecord(
        source=printable(record["source"]), field=name, expected=expected, found=ascii(found)[:80]
    )


def _to_example(
    record: dict[str, Any], number: int, params: LongLampParams, seed: int, counts: Counts
) -> Example | None:
    name, split = task_of(record, params), SPLIT_NAMES[record["split"]]
    task = TASKS[name]
    example_id, user = f"{name}-{split}-{number}", identity_of(record[task.user])
    mixed = params.task == "mixed"
    if mixed:  # tasks name their users independently
        user = f"{name}/{user}"
    reference, request = (plain_text(record[name]).strip() for name in ("output", "input"))
    order = list(range(len(record["profile"])))
    random_for(seed, "profile", example_id).shuffle(order)
    kept: dict[int, Document] = {}
    n_copies = 0
    for place in order:
        document = _to_document(
            record["profile"][place], place, example_id, user, task, params, counts
        )
        if document is None:
            continue
        if " ".join(reference.split()) in " ".join(document.text.split()):
            counts.copies += 1
            n_copies += 1
            continue
        if params.near_copies == "remove" and is_near_copy(document.text, reference):
            counts.near_copies += 1
            n_copies += 1
            continue
        kept[place] = document
        if len(kept) == params.max_profile_size:
            break
    if not kept:
        return None
    return Example(
        example_id=example_id,
        user_id=user,
        split=split,
        input=request,
        query=build_query(request),
        reference=reference,
        profile=tuple(kept[place] for place in sorted(kept)),
        task=name if mixed else "",
        copies_left_out=n_copies,
    )


def _to_document(
    item: dict[str, Any],
    place: int,
    example_id: str,
    user: str,
    task: Task,
    params: LongLampParams,
    counts: Counts,
) -> Document | None:
    text, cut = _cut(_first(item, task.text), params.max_document_words)
    if not text.strip():
        return None
    counts.documents_cut += cut
    # each cut before they are joined: a text of hundreds of megabytes would be copied whole
    fields = (_cut(_first(item, names), params.max_document_words)[0] for names in task.index)
    index = " ".join(filter(None, fields))
    title = _first(item, task.title)
    identifier = next(filter(None, (_first(item, (name,)).strip() for name in IDS)), "")
    return Document(
        document_id=unicodedata.normalize("NFC", identifier) or f"{example_id}-{place}",
        user_id=user,
        text=text,
        title=_cut(title, params.max_document_words)[0] or None,
        date=_year_of(item.get("year")),
        index=_cut(index, params.max_document_words)[0],
    )


def _year_of(value: Any) -> str | None:
    """Return a document's date, if it is one: a profile document is used without it too."""
    try:
        return normalize_date(value)
    except ValueError:
        return None


def _first(item: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of several fields that is there, as text."""
    for name in names:
        value = item.get(name)
        if value is not None and not is_nan(value):
            return str(value)
    return ""


def _cut(text: str, max_words: int) -> tuple[str, bool]:
    """Keep the first words, and say whether that cut any; a huge text is neither split nor copied."""
    words: list[str] = []
    for word in _words(text):
        if len(words) == max_words:
            return unicodedata.normalize("NFC", " ".join(words)), True
        words.append(word)
    return unicodedata.normalize("NFC", text.strip()), False


def _words(text: str, step: int = 65_536) -> Iterator[str]:
    """Yield the words of a text of any size, working through it in parts."""
    rest = ""
    for start in range(0, len(text), step):
        part = rest + text[start : start + step]
        pieces = part.split()
        rest = pieces.pop() if pieces and not part[-1].isspace() else ""
        yield from pieces
    if rest:
        yield rest
