"""Readers and parsers meet anything: each case ends in a value or in an error of ours."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io.core import DatasetError
from pydantic import TypeAdapter, ValidationError

from rest_pg import config
from rest_pg.backends.engines import Ask
from rest_pg.backends.judges import RubricJudge
from rest_pg.backends.models import load_tokenizer
from rest_pg.backends.openai_server import ServerError, Servers
from rest_pg.backends.protocols import Generation, Target
from rest_pg.backends.teachers import StatisticalTeacher, remove_quotations
from rest_pg.checksums import digest_of, seal_of
from rest_pg.config import LongLampParams, PassageParams, PromptParams, ResponseFormat
from rest_pg.datasets import RecordsDataset
from rest_pg.mail import MailDataset
from rest_pg.metrics import measure_response
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.pipelines.data_ingestion.nodes import read_documents
from rest_pg.pipelines.reasoning_path.nodes import create_prompts
from rest_pg.records import (
    Document,
    Example,
    PolicyCheckpoint,
    Profile,
    RetrievedDocument,
    Sample,
    Score,
)
from rest_pg.responses import format_completion, parse_generation
from rest_pg.sources import DocumentsDataset

from .conftest import FULL, PROJECT, Ledger

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
READ = TEXT.map(lambda text: text.replace("\ud800", ""))
"""What the readers let through, and what is decoded from tokens: they hold no half of a character."""
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
def told(
    request: pytest.FixtureRequest, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    caplog.set_level(logging.WARNING, "rest_pg")  # thousands of cases would each have their line
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
    near_copies="remove",
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
    path = tmp_path / "r.jsonl"
    dataset = RecordsDataset(filepath=str(path), record="rest_pg.records.Score")
    path.write_bytes(content)
    seal_of(path).write_text(digest_of(path))  # a whole file, so that its content is read
    try:
        assert all(isinstance(score, Score) for score in dataset.load())
    except DatasetError as error:
        assert "r.jsonl" in str(error)


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


def example_of(request: str, reference: str) -> Example:
    return Example(
        example_id="e",
        user_id="u",
        split="train",
        input=request,
        query=request,
        reference=reference,
        profile=(),
    )


def profile_of(texts: list[str]) -> Profile:
    documents = (
        RetrievedDocument(document_id=str(i), text=text, similarity=0.0)
        for i, text in enumerate(texts)
    )
    return Profile(example_id="e", documents=tuple(documents))


@FUZZ
@given(TEXT, TEXT, st.lists(TEXT, max_size=3))
@counted
def test_teacher(text: str, request_text: str, documents: list[str]) -> None:
    policy = PolicyCheckpoint(Path("none"))
    (path,) = StatisticalTeacher().write(
        [example_of(request_text, text)], {"e": profile_of(documents)}, policy
    )
    assert 0 <= path.copied_ngrams <= 1
    remove_quotations(text, request_text)


def markup(policy: PolicyCheckpoint, text: str) -> list[int]:
    """Starts and ends of messages among a prompt's tokens: 0 and 1 in the tests' tokenizer."""
    ids = load_tokenizer(policy)(text, add_special_tokens=False, verbose=False).input_ids
    return [token for token in ids if token < 2]


@FUZZ
@given(READ, st.lists(READ, max_size=3), st.integers(200, 800))
@counted
def test_prompts(policy: PolicyCheckpoint, request_text: str, texts: list[str], room: int) -> None:
    template = (PROJECT / "conf/base/prompts/response.jinja").read_text(encoding="utf-8")
    params = PromptParams(max_tokens=room, system="Be brief.")
    try:
        ((made,), figures) = create_prompts(
            [example_of(request_text, "SECRET")],
            [profile_of(texts)],
            policy,
            template,
            FORMAT,
            params,
        )
    except ValueError as error:
        assert f"prompt.max_tokens={room}: raise it" in str(error)
        return
    assert made.n_tokens <= room
    assert figures["max_tokens"] == made.n_tokens
    assert "SECRET" not in made.text
    assert markup(policy, made.text) == [0, 1, 0, 1, 0]


@FUZZ
@given(st.lists(READ, min_size=1, max_size=3), READ, READ)
@counted
def test_what_a_judge_reads(
    policy: PolicyCheckpoint, responses: list[str], request_text: str, reference: str
) -> None:
    judge = RubricJudge(str(PROJECT / "conf/base/prompts/judge.jinja"), str(policy.path))
    target = Target(input=request_text, reference=reference)
    judged = judge._judged("e", target, responses)
    fence = judged.before.rpartition("[")[2].removesuffix("]")
    for candidate in judged.candidates:
        assert fence not in candidate
        assert markup(policy, judged.before + candidate + judged.after) == [0, 1, 0]
    samples = [
        Sample(
            example_id="e",
            sample_index=i,
            text=response,
            reasoning_path="",
            response=response,
            malformed="",
            finished=True,
            n_tokens=1,
        )
        for i, response in enumerate(responses)
    ]
    for score in judge.score(samples, {"e": target}):
        assert 0 <= score.reward <= 1


@FUZZ
@given(st.lists(st.floats(max_value=0), min_size=5, max_size=5), st.booleans())
@counted
def test_a_judges_log_probabilities(logs: list[float], expected: bool) -> None:
    judge = RubricJudge(
        str(PROJECT / "conf/base/prompts/judge.jinja"),
        aggregation="expected" if expected else "argmax",
    )
    try:
        score: Score = judge._read(logs)
    except ValueError as error:
        assert "none can be read from them" in str(error)
        assert any(map(math.isnan, logs)) or max(logs) == -math.inf
        return
    assert 0.1 <= score.reward <= 1
    assert math.isclose(sum(score.components.values()), 1)


CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.one_of(st.integers(0, 2), VALUE),
        "finish_reason": st.sampled_from(["stop", "length", "abort", None, 1]),
        "text": st.one_of(TEXT, VALUE),
        "token_ids": st.one_of(st.none(), st.lists(st.integers(0, 9)), VALUE),
        "logprobs": st.one_of(st.just({"top_logprobs": [{"token_id:3": -1.5}]}), VALUE),
    },
)


@FUZZ
@given(
    st.one_of(VALUE, st.fixed_dictionaries({"choices": st.lists(st.one_of(CHOICE, VALUE))})),
    st.one_of(VALUE, st.fixed_dictionaries({"data": st.lists(st.one_of(CHOICE, VALUE))})),
)
@counted
def test_a_servers_answers(completions: Any, models: Any) -> None:
    servers = Servers(["http://127.0.0.1:1/v1"])
    answers = {"completions": completions, "models": models}

    def request(method: str, url: str, **_: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response._content = json.dumps(answers.get(url.rpartition("/")[2], {})).encode()
        return response

    ask = Ask(tokens=[1], seeds=[1], sampling={"temperature": 0.5, "logprob_token_ids": [3]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "request", request)
        with suppress(ServerError):
            (written,) = servers._complete("http://127.0.0.1:1/v1", "m", ask)
            (written.text or "").encode()
            assert set(written.log_probabilities) == {3}
        with suppress(ServerError):
            servers._model_of("http://127.0.0.1:1/v1", PolicyCheckpoint(Path("hub/id")))


def test_a_field_of_ten_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"user": "a", "text": "word " * 2_000_000}), encoding="utf-8")
    assert documents_of(path) == []
