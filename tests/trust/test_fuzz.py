"""Readers and parsers meet anything: each case ends in a value or in an error of ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io.core import DatasetError
from pydantic import TypeAdapter, ValidationError

from rest_pg import config
from rest_pg.backends.protocols import Generation
from rest_pg.backends.teachers import StatisticalTeacher, remove_quotations
from rest_pg.config import LongLampParams, PassageParams, ResponseFormat
from rest_pg.datasets import RecordsDataset
from rest_pg.mail import MailDataset
from rest_pg.metrics import measure_response
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.pipelines.data_ingestion.nodes import read_documents
from rest_pg.records import Document, Example, PolicyCheckpoint, Profile, RetrievedDocument
from rest_pg.responses import format_completion, parse_generation
from rest_pg.sources import DocumentsDataset

from .conftest import FULL, Ledger

CASES = 2000 if FULL else 60
ODD = [
    "\u2028",
    "\u2029",
    "\x00",
    "\x85",
    "\ud800",
    "\u202e",
    "שלום",
    "\r",
    "\ufeff",
    "👩‍👩‍👧",
    "{{ x }}",
    "</s>",
]
TEXT = st.lists(st.one_of(st.text(max_size=40), st.sampled_from(ODD)), max_size=8).map("".join)
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
survived: Counter[str] = Counter()


def counted(test: Callable[..., None]) -> Callable[..., None]:
    """Count the cases that the test has met without a fault."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        test(*args, **kwargs)
        survived[test.__name__] += 1

    return run


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[None]:
    yield
    met = survived[request.function.__name__]
    if met:
        ledger.add("anything read or parsed", survived=True, cases=met)


FORMAT = ResponseFormat(reasoning=True, lead_in="Style:", bridge="So:")
PASSAGES = PassageParams(min_words=3, max_words=30)
LONGLAMP = LongLampParams(
    task="abstract_generation",
    setting="user",
    max_examples={"train": 5, "validation": 5, "test": 5},
    max_profile_size=3,
    max_document_words=20,
    max_reference_words=20,
)


def documents_of(path: Path) -> list[Document]:
    """Read what may hold nothing to use, which is said as such."""
    try:
        found, _ = read_documents(DocumentsDataset(filepath=str(path)).load(), PASSAGES, "reject")
    except ValueError as error:
        assert "gave a document" in str(error)
        return []
    return found


def records(*fields: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.one_of(TEXT, VALUE) for name in fields})


@FUZZ
@given(st.lists(records("user", "text", "title", "date"), max_size=5))
@counted
def test_documents(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for document in documents_of(path):
        document.text.encode()


@FUZZ
@given(st.binary(max_size=300))
@counted
def test_bytes_as_documents(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_bytes(content)
    documents_of(path)


@FUZZ
@given(st.lists(records("name", "input", "output", "profile", "id"), max_size=5))
@counted
def test_longlamp_records(rows: list[dict[str, Any]]) -> None:
    raw = [{**row, "source": f"f, line {i}", "split": "train"} for i, row in enumerate(rows)]
    examples, counts = read_records(raw, LONGLAMP, seed=1)
    assert len(examples) + len(counts.rejected) <= len(raw)


@FUZZ
@given(st.binary(max_size=400))
@counted
def test_mail(tmp_path: Path, content: bytes) -> None:
    for name in ("m.eml", "m.mbox", "m.zip"):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            for record in MailDataset(path=str(path)).load():
                assert "text" in record or "unreadable" in record
        except DatasetError as error:
            assert "holds no message" in str(error)
        path.unlink()


@FUZZ
@given(st.binary(max_size=300))
@counted
def test_saved_records(tmp_path: Path, content: bytes) -> None:
    dataset = RecordsDataset(filepath=str(tmp_path / "r.jsonl"), record="rest_pg.records.Score")
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(DatasetError):
        dataset.load()


@FUZZ
@given(VALUE)
@counted
def test_parameters(value: Any) -> None:
    kinds = [
        v for v in vars(config).values() if isinstance(v, type) and issubclass(v, config.Params)
    ]
    for kind in kinds:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError:
            continue


@FUZZ
@given(TEXT, st.sampled_from(["", "Style:", "Style:\nx\nSo:\n", "So:"]))
@counted
def test_generations(text: str, start: str) -> None:
    generation = Generation(
        example_id="e", sample_index=0, text=start + text, finished=True, n_tokens=1
    )
    sample = parse_generation(generation, FORMAT)
    if not sample.malformed:
        whole = format_completion(sample.reasoning_path, sample.response, FORMAT)
        again = parse_generation(
            Generation(example_id="e", sample_index=0, text=whole, finished=True, n_tokens=1),
            FORMAT,
        )
        assert (again.reasoning_path, again.response) == (sample.reasoning_path, sample.response)
    measure_response(sample.response, text, [text, start])


@FUZZ
@given(TEXT, TEXT, st.lists(TEXT, max_size=3))
@counted
def test_teacher(text: str, request_text: str, documents: list[str]) -> None:
    example = Example(
        example_id="e",
        user_id="u",
        split="train",
        input=request_text,
        query=request_text,
        reference=text,
        profile=(),
    )
    profile = Profile(
        example_id="e",
        documents=tuple(
            RetrievedDocument(document_id=str(i), text=d, similarity=0.0)
            for i, d in enumerate(documents)
        ),
    )
    policy = PolicyCheckpoint(Path("none"))
    (path,) = StatisticalTeacher().write([example], {"e": profile}, policy)
    assert 0 <= path.copied_ngrams <= 1
    remove_quotations(text, request_text)


def test_a_field_of_ten_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"user": "a", "text": "word " * 2_000_000}), encoding="utf-8")
    assert documents_of(path) == []
