"""LongLaMP's records are examples already: fields are renamed, checked and bounded, nothing is drawn anew."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rest_pg.config import LongLampParams
from rest_pg.pipelines.data_ingestion.copies import is_near_copy
from rest_pg.pipelines.data_ingestion.examples import random_for
from rest_pg.records import Document, Example, RejectedRecord, Split

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
    query_behind: str
    """The query is what stands behind this in the input; all of it where this is missing."""


TASKS: Mapping[str, Task] = {
    "abstract_generation": Task(
        user="name",
        text=("abstract",),
        title=("title",),
        index=(("title",), ("abstract",)),
        query_behind="items:",
    ),
    "product_review": Task(
        user="reviewerId",
        text=("reviewText",),
        title=("summary",),
        index=(("overall",), ("summary",), ("description",), ("reviewText",)),
        query_behind="",
    ),
    # some copies spell summary and content as input and output
    "topic_writing": Task(
        user="author",
        text=("content", "output"),
        title=("summary", "input"),
        index=(("summary", "input"), ("content", "output")),
        query_behind="",
    ),
    # not LongLaMP's own: examples that another run made of mails, or of any documents
    "email_completion": Task(
        user="user_id",
        text=("text",),
        title=("title",),
        index=(("title",), ("text",)),
        query_behind="",
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


def read_records(
    records: Iterable[dict[str, Any]], params: LongLampParams, seed: int
) -> tuple[list[Example], Counts]:
    """Read records one at a time, and keep the drawn ones: memory doesn't grow with the file.

    A record is drawn by its split and number in it, so the draw doesn't depend on the file's format.

    Returns:
        Examples by split and number; and what was left out.
    """
    counts = Counts()
    drawn: dict[tuple[str, Split], list[tuple[float, int, Example]]] = {}
    numbers: Counter[tuple[str, Split]] = Counter()
    for record in records:
        counts.records += 1
        task, split = task_of(record, params), SPLIT_NAMES[record["split"]]
        place = (task, split)
        numbers[place] += 1
        problem = check_record(record, TASKS.get(task))
        if problem:
            counts.rejected.append(problem)
            continue
        if len(record["output"].split()) > params.max_reference_words:
            counts.too_long += 1
            continue
        # the smallest keys win; the heap's first item is the largest of them
        key = random_for(seed, "longlamp", split, numbers[place]).random()
        kept, size = drawn.setdefault(place, []), params.max_examples.get(split, 0)
        if size == 0 or (len(kept) == size and -kept[0][0] <= key):
            continue
        example = _to_example(record, numbers[place], params, seed, counts)
        if example is None:
            counts.empty_profiles += 1
            continue
        item = (-key, numbers[place], example)
        heapq.heappush(kept, item) if len(kept) < size else heapq.heapreplace(kept, item)
    return [
        example
        for _, kept in sorted(
            drawn.items(), key=lambda d: list(SPLIT_NAMES.values()).index(d[0][1])
        )
        for _, _, example in sorted(kept, key=lambda item: item[1])
    ], counts


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
    for name in (task.user, "input", "output"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            return _reject(record, name, "a text that is not empty", record.get(name))
        if not _is_unicode(record[name]):
            return _reject(record, name, "valid Unicode, no lone surrogate", record[name])
    return _check_profile(record, task)


def _check_profile(record: dict[str, Any], task: Task) -> RejectedRecord | None:
    profile = record.get("profile")
    if not isinstance(profile, list) or not all(isinstance(item, dict) for item in profile):
        return _reject(record, "profile", "a list of objects", profile)
    for number, item in enumerate(profile):
        if not any(name in item for name in task.text):
            return _reject(record, f"profile.{number}.{task.text[0]}", "a text", sorted(item))
    return None


def _reject(record: dict[str, Any], name: str, expected: str, found: object) -> RejectedRecord:
    return RejectedRecord(
        source=str(record["source"]), field=name, expected=expected, found=ascii(found)[:80]
    )


def _to_example(
    record: dict[str, Any], number: int, params: LongLampParams, seed: int, counts: Counts
) -> Example | None:
    name, split = task_of(record, params), SPLIT_NAMES[record["split"]]
    task = TASKS[name]
    example_id, user = f"{name}-{split}-{number}", record[task.user].strip()
    mixed = params.task == "mixed"
    if mixed:  # tasks name their users independently
        user = f"{name}/{user}"
    reference = record["output"].strip()
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
    _, found, behind = record["input"].partition(task.query_behind or "\0")
    asked = str(record.get("query") or (behind if found and behind.strip() else record["input"]))
    return Example(
        example_id=example_id,
        user_id=user,
        split=split,
        input=record["input"].strip(),
        query=asked.strip(),
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
    if not text.strip() or not _is_unicode(text):
        return None
    counts.documents_cut += cut
    # each cut before they are joined: a text of hundreds of megabytes would be copied whole
    fields = (_cut(_first(item, names), params.max_document_words)[0] for names in task.index)
    index = " ".join(filter(None, fields))
    title = _first(item, task.title)
    year = str(item.get("year") or "")
    return Document(
        document_id=str(item.get("id") or item.get("document_id") or f"{example_id}-{place}"),
        user_id=user,
        text=text,
        title=_cut(title, params.max_document_words)[0] or None,
        date=year if year.isdigit() else None,
        index=_cut(index, params.max_document_words)[0],
    )


def _first(item: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of several fields that is there, as text."""
    for name in names:
        if item.get(name) is not None:
            return str(item[name])
    return ""


def _cut(text: str, max_words: int) -> tuple[str, bool]:
    """Keep the first words, and say whether that cut any; a huge text is neither split nor copied."""
    words: list[str] = []
    for word in _words(text):
        if len(words) == max_words:
            return " ".join(words), True
        words.append(word)
    return text.strip(), False


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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
