"""Readers and parsers meet anything: each case ends in a value or in an error of ours."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io.core import DatasetError
from pyarrow import parquet
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
from rest_pg.datasets.sources.documents import DocumentsDataset, RequestsDataset
from rest_pg.datasets.sources.longlamp import LongLampDataset
from rest_pg.datasets.sources.mail import MailDataset
from rest_pg.metrics import measure_response
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.pipelines.data_ingestion.nodes import read_documents
from rest_pg.pipelines.inference.nodes import read_requests
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
    """Read what may hold nothing to use, or be broken as a whole, which is said as such."""
    try:
        raw = DocumentsDataset(filepath=str(path)).load()
        found, _, counts = read_documents(raw, PASSAGES, "reject")
    except DatasetError as error:
        assert str(path) in str(error)
        return []
    except ValueError as error:
        assert "gave a document" in str(error)
        return []
    sums = counts[counts["unit"] == "records"].groupby("outcome")["n"].sum()
    assert sums["read"] == len(raw) == sums["used"] + sums.get("dropped", 0)
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


CELL = TEXT.map(lambda text: text.encode("utf-8", "replace").decode())


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(["user", "text", "title", ""]), CELL), max_size=4))
@counted
def test_tables_of_documents(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "documents.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["user", "text", "title", ""])
        writer.writeheader()
        writer.writerows(rows)
    for document in documents_of(path):
        document.text.encode()
    columns = sorted({name for row in rows for name in row})
    path = tmp_path / "documents.parquet"
    parquet.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), path)
    for document in documents_of(path):
        document.text.encode()


@FUZZ
@given(
    st.binary(max_size=300),
    st.sampled_from([".csv", ".parquet", ".json", ".jsonl", ".tsv", ".csv.gz"]),
)
@counted
def test_bytes_as_tables(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"documents{suffix}"
    whole = io.BytesIO()
    parquet.write_table(pa.table({"user": ["a"], "text": ["b c d e"]}), whole)
    starts = (b"", b'user,text\n"', whole.getvalue()[:-20], gzip.compress(b"user,text")[:-9])
    for written in (start + content for start in starts):
        path.write_bytes(written)
        documents_of(path)


NAME = READ.map(lambda text: re.sub(r"[/\x00\r\n]", "", text)[:40]).filter(
    lambda name: name.strip(".")
)


@FUZZ
@given(st.dictionaries(st.tuples(NAME, NAME), st.one_of(st.binary(max_size=99), READ), max_size=4))
@counted
def test_folders_of_documents(tmp_path: Path, files: dict[tuple[str, str], bytes | str]) -> None:
    root = tmp_path / "folders"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for (user, title), content in files.items():
        place = root / user
        place.mkdir(exist_ok=True)
        written = content.encode() if isinstance(content, str) else content
        (place / f"{title}.txt").write_bytes(written)
    documents_of(root)


@FUZZ
@given(st.lists(records("user", "request", "documents"), max_size=3))
@counted
def test_requests(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    try:
        read = read_requests(RequestsDataset(filepath=str(path)).load())
    except (ValueError, DatasetError) as error:
        assert "request" in str(error)
        return
    assert len(read) == len(rows)


@FUZZ
@given(
    st.lists(records("name", "title", "abstract", "profile", "content"), max_size=3),
    st.binary(max_size=99),
    st.sampled_from([".jsonl", ".json", ".parquet"]),
)
@counted
def test_longlamp_files(
    tmp_path: Path, rows: list[dict[str, Any]], content: bytes, suffix: str
) -> None:
    place = tmp_path / "longlamp"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    (place / "train.jsonl").write_bytes(lines + b"\n" + content)
    (place / "val.json").write_bytes(json.dumps(rows).encode() + content)
    (place / f"test{suffix}").write_bytes(content)
    try:
        raw = list(LongLampDataset(path=str(place)).load())
    except DatasetError as error:
        assert str(place) in str(error)
        return
    assert {record["split"] for record in raw} <= {"train", "val", "test"}
    examples, counts = read_records(raw, LONGLAMP, seed=1)
    assert len(examples) + len(counts.rejected) <= len(raw)


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
                assert {"text", "unreadable", "skipped"} & record.keys()
        except DatasetError as error:
            assert "holds no message" in str(error)
        path.unlink()


HEADER = st.sampled_from(
    ["From", "To", "Date", "Subject", "Content-Type", "Content-Transfer-Encoding", "In-Reply-To"]
)
KIND = st.sampled_from(
    [
        "text/plain; charset=nowhere",
        "text/html",
        "multipart/mixed; boundary=b",
        "multipart/alternative",
        "message/rfc822",
        "base64",
        "quoted-printable",
        "Thu, 32 Foo 2001 99:99:99 +9999",
        "=?utf-8?b?4?= <a@b>",
        "a@b, c@d",
    ]
)


@FUZZ
@given(
    st.lists(st.tuples(HEADER, st.one_of(KIND, TEXT)), max_size=6),
    st.lists(st.one_of(TEXT, st.sampled_from(["--b", "--b--", "On x wrote:", "> y"])), max_size=6),
)
@counted
def test_structured_mail(tmp_path: Path, headers: list[tuple[str, str]], body: list[str]) -> None:
    head = "\n".join(f"{name}: {value}" for name, value in headers)
    content = f"{head}\n\n".encode("utf-8", "replace") + "\n".join(body).encode("utf-8", "replace")
    for name, written in (("m.eml", content), ("m.mbox", b"From a b\n" + content)):
        path = tmp_path / name
        path.write_bytes(written)
        try:
            for record in MailDataset(path=str(path)).load():
                assert {"text", "unreadable", "skipped"} & record.keys()
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


HUGE = "word " * 2_000_000
"""10 MB."""


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_field_of_ten_megabytes_in_documents(tmp_path: Path, suffix: str) -> None:
    path, row = tmp_path / f"documents{suffix}", {"user": "a", "text": HUGE}
    if suffix == ".parquet":
        parquet.write_table(pa.table({name: [value] for name, value in row.items()}), path)
    elif suffix == ".csv":
        path.write_text(f"user,text\na,{HUGE}\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(row if suffix == ".jsonl" else [row]), encoding="utf-8")
    raw = DocumentsDataset(filepath=str(path)).load()
    assert [record["text"] for record in raw] == [HUGE]
    # one sentence, cut between its words; the parts are all alike, so a few are kept
    assert {document.text for document in documents_of(path)} == {
        "word word word",
        "word " * 3 + "word",
    }


def test_a_field_of_ten_megabytes_in_longlamp_s_records(tmp_path: Path) -> None:
    mine = {"title": "t", "abstract": "An abstract of mine about the sea."}
    row = {"name": "ann", "input": f"Write about {mine['title']}", "output": HUGE}
    for split in ("train", "val", "test"):
        lines = [
            row | {"profile": [mine]},
            row | {"output": "Short.", "profile": [{**mine, "abstract": HUGE}]},
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    raw = list(LongLampDataset(path=str(tmp_path)).load())
    assert len(raw) == 6
    examples, counts = read_records(raw, LONGLAMP, seed=1)
    assert (len(examples), counts.too_long, counts.documents_cut) == (3, 3, 3)
    for made in examples:
        assert all(len(document.text) < 200 for document in made.profile)  # 20 words


def test_a_field_of_ten_megabytes_in_mail(tmp_path: Path) -> None:
    path = tmp_path / "m.eml"
    path.write_text(f"From: a@b\nSubject: s\n\n{HUGE}\n", encoding="utf-8")
    (record,) = MailDataset(path=str(path)).load()
    assert record["text"].split() == HUGE.split()


def test_a_field_of_ten_megabytes_in_saved_records_and_what_is_parsed(tmp_path: Path) -> None:
    dataset = RecordsDataset(
        filepath=str(tmp_path / "g.jsonl"), record="rest_pg.backends.protocols.Generation"
    )
    text = format_completion("a path", HUGE, FORMAT)
    made = Generation(example_id="e", sample_index=0, text=text, finished=True, n_tokens=1)
    dataset.save([made])
    (read,) = dataset.load()
    sample = parse_generation(read, FORMAT)
    assert (sample.reasoning_path, sample.response) == ("a path", HUGE.strip())


def test_a_field_of_ten_megabytes_in_a_prompt(policy: PolicyCheckpoint) -> None:
    template = (PROJECT / "conf/base/prompts/response.jinja").read_text(encoding="utf-8")
    room = PromptParams(max_tokens=800, system="")
    ((made,), _) = create_prompts(
        [example_of("ships", "x")], [profile_of([HUGE])], policy, template, FORMAT, room
    )
    assert made.n_tokens <= 800
    assert "word word" in made.text
