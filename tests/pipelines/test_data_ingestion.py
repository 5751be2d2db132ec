import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import document, example
from kedro.io.core import DatasetError

from rest_pg.backends.retrievers import Bm25Retriever, RandomRetriever, RecencyRetriever
from rest_pg.config import ExampleParams, PassageParams
from rest_pg.datasets.sources.documents import DocumentsDataset
from rest_pg.pipelines.data_ingestion.key_items import KeyItems
from rest_pg.pipelines.data_ingestion.nodes import (
    check_examples,
    create_examples,
    read_documents,
)
from rest_pg.pipelines.data_ingestion.passages import REST, TOO_LONG, cut_passages

PASSAGES = PassageParams(min_words=3, max_words=6)
REQUEST = (
    "Write{% if title %} {{ title }}{% endif %}:{% for item in items %} {{ item }}{% endfor %}"
)


def example_params(**fields) -> ExampleParams:
    values = {
        "setting": "user",
        "validation_share": 0.2,
        "test_share": 0.2,
        "examples_per_user": {"train": 2, "validation": 1, "test": 1},
        "max_profile_size": 3,
        "min_profile_size": 2,
        "max_reference_words": 50,
        "n_key_items": 2,
    }
    return ExampleParams(**(values | fields))


def corpus():
    topics = ["harbour ships", "railway trains", "forest timber", "school teachers", "army forts"]
    return [
        document(n, f"{user} wrote of {topics[n % 5]} part {n} again", user=user, date=f"19{n:02}")
        for user in ("ann", "bob", "cid", "dan", "eve")
        for n in range(8)
    ]


def test_passages_end_at_paragraph_ends() -> None:
    text = "one two\n\nthree four\n\nfive six seven eight nine ten eleven\n\na b c\n\nrest"
    # "one … four" has 4 words; the next paragraph has 7, above 6; the rest has 1, below 3
    passages, lost = cut_passages(text, PASSAGES)
    assert passages == ["one two\n\nthree four", "a b c"]
    assert lost == {TOO_LONG: 1, REST: 1}


def test_bad_records_are_listed_or_stop_the_run(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    lines = [
        json.dumps({"user": "ann", "text": "good\u2028still good"}),
        "{broken",
        json.dumps(["a", "list"]),
        json.dumps({"user": "ann"}),
        json.dumps({"user": "ann", "text": "x", "date": "May"}),
        '{"user": "ann", "text": "\\ud800"}',
        json.dumps({"user": "ann", "text": "GOOD\u2028still  good"}),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    raw = DocumentsDataset(filepath=str(path)).load()
    documents, rejected, _ = read_documents(raw, PASSAGES, "reject")
    assert [d.document_id for d in documents] == ["line-1"]
    assert [(r.source.rpartition(", ")[2], r.field) for r in rejected] == [
        ("line 2", "line"),
        ("line 3", "line"),
        ("line 4", "text"),
        ("line 5", "date"),
        ("line 6", "text"),
    ]
    with pytest.raises(ValueError, match=r"5 of 7 records .*line 2, field line: expected one JSON"):
        read_documents(raw, PASSAGES, "stop")


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--params documents=FILE"):
        DocumentsDataset(filepath=str(tmp_path / "none.jsonl")).load()


ROWS = [
    {"user": "ann", "text": 'She said "go",\nand left.', "title": "One", "date": "2001"},
    {"user": "bob", "text": "Ships\u2028come. " * 30_000, "title": "", "date": ""},
]


def write_rows(path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        pd.DataFrame(ROWS).to_csv(path, index=False, encoding="utf-8-sig")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"documents{suffix}"
    write_rows(path)
    raw = DocumentsDataset(filepath=str(path)).load()
    assert [(r["user"], r["text"]) for r in raw] == [(r["user"], r["text"]) for r in ROWS]
    assert raw[0]["title"] == "One"
    passages = PassageParams(min_words=1, max_words=100_000)
    documents, rejected, _ = read_documents(raw, passages, "stop")
    assert [(d.user_id, d.title, d.date) for d in documents] == [
        ("ann", "One", "2001"),
        ("bob", None, None),
    ]
    assert rejected == []


def test_half_a_character_in_a_json_array_costs_no_item(tmp_path: Path) -> None:
    """The quick parser takes one and the character behind it together, and gives up."""
    path = tmp_path / "documents.json"
    texts = ["One.", "\ud800\U00010000", "Three."]
    path.write_text(json.dumps([{"user": "ann", "text": text} for text in texts]))
    raw = DocumentsDataset(filepath=str(path)).load()
    assert [record["text"] for record in raw] == texts
    assert [record["id"] for record in raw] == ["item-1", "item-2", "item-3"]
    documents, rejected, _ = read_documents(raw, PASSAGES, "reject")
    assert [document.text for document in documents] == ["One.", "Three."]
    assert len(rejected) == 1


def test_a_folder_per_user(tmp_path: Path) -> None:
    for name, text in {"ann/a.txt": b"One.", "ann/old/b.md": b"Two.", "bob/c.txt": b"\0\1"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    (tmp_path / "lost.txt").write_text("Whose?")
    (tmp_path / "ann" / "photo.png").write_bytes(b"x")
    raw = DocumentsDataset(filepath=str(tmp_path)).load()
    documents, rejected, _ = read_documents(raw, PASSAGES, "reject")
    assert [(d.document_id, d.user_id, d.title) for d in documents] == [
        ("ann/a.txt", "ann", "a"),
        ("ann/old/b.md", "ann", "b"),
    ]
    assert [Path(r.source).name for r in rejected] == ["c.txt", "lost.txt"]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("user,text\nann,schön\nbob,".encode() + b"\xff\neve\n")
    raw = DocumentsDataset(filepath=str(path)).load()
    _, rejected, _ = read_documents(raw, PASSAGES, "reject")
    assert [(r.source.partition(", ")[2], r.field) for r in rejected] == [
        ("line 3, row 2", "text"),
        ("line 4, row 3", "line"),
    ]


def test_user_setting_keeps_users_apart_and_targets_out_of_profiles() -> None:
    examples = create_examples(corpus(), REQUEST, example_params(), seed=5)
    users = {
        s: {e.user_id for e in examples if e.split == s} for s in ("train", "validation", "test")
    }
    assert [len(users[s]) for s in users] == [3, 1, 1]
    targets = {e.example_id for e in examples}
    assert not targets & {d.document_id for e in examples for d in e.profile}
    assert all(d.user_id == e.user_id for e in examples for d in e.profile)
    assert examples == create_examples(corpus(), REQUEST, example_params(), seed=5)
    assert examples != create_examples(corpus(), REQUEST, example_params(), seed=6)


def test_temporal_setting_holds_out_the_latest() -> None:
    params = example_params(setting="temporal")
    examples = create_examples(corpus(), REQUEST, params, seed=5)
    date = {d.document_id: d.date for d in corpus()}
    for e in examples:
        assert all((d.date or "") < date[e.example_id] for d in e.profile)
    last = {s: max(date[e.example_id] for e in examples if e.split == s) for s in ("train", "test")}
    first_test = min(date[e.example_id] for e in examples if e.split == "test")
    assert last["train"] < first_test


def test_temporal_setting_needs_dates() -> None:
    undated = [document(n, f"words {n} here") for n in range(5)]
    with pytest.raises(ValueError, match="has no date"):
        create_examples(undated, REQUEST, example_params(setting="temporal"), seed=1)


def test_key_items_are_shared_words_and_telling() -> None:
    documents = [
        document(i, text, user=f"u{i}")
        for i, text in enumerate(
            ["harbour harbour zebra common", "harbour common", "common words", "common other"]
        )
    ]
    # zebra is one user's own; common is everywhere, so it tells nothing: log(4/4) = 0
    assert KeyItems(documents).choose(documents[0].text, 2) == ["harbour", "common"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        pytest.param([example(1), example(2, split="test")], "in two splits", id="user"),
        pytest.param(
            [
                example(
                    1, profile=(document(1, "The harbour  is open. We repaired the pier. Yes."),)
                )
            ],
            "in its own profile",
            id="leak",
        ),
        pytest.param([example(1, profile=())], "empty profile", id="empty"),
        pytest.param([example(1), example(1)], "occurs twice", id="twice"),
        pytest.param([example(1)], "no validation example", id="split"),
    ],
)
def test_leaks_and_gaps_raise(examples, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_examples(examples)


def test_retrievers_rank_as_they_say() -> None:
    dated = example(
        profile=(
            document(1, "green hills", date="1901"),
            document(2, "the harbour at night", date="1903"),
            document(3, "old walls", date="1902"),
        )
    )

    def order(retriever):
        return [d.document_id for d in retriever.retrieve([dated], 2)[0].documents]

    assert order(Bm25Retriever())[0] == "ann-2"
    assert order(RecencyRetriever()) == ["ann-2", "ann-3"]
    assert order(RandomRetriever(1)) == order(RandomRetriever(1))
    assert len({tuple(order(RandomRetriever(s))) for s in range(9)}) > 1


def test_jax_is_told_not_to_fill_a_gpu_before_bm25s_asks_it(monkeypatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")  # put back behind the test
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setitem(sys.modules, "bm25s", None)  # importing it fails
    with pytest.raises(ImportError):
        Bm25Retriever().retrieve([example()], 1)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
