import itertools
import json
import os
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import document, example
from kedro.io.core import DatasetError

from rest_pg.backends.retrievers import Bm25Retriever, RandomRetriever, RecencyRetriever
from rest_pg.config import ExampleParams, PassageParams, RetrievalParams
from rest_pg.datasets.sources.documents import DocumentsDataset
from rest_pg.pipelines.data_ingestion.key_items import KeyItems
from rest_pg.pipelines.data_ingestion.nodes import (
    check_examples,
    create_examples,
    draw_examples,
    read_documents,
)
from rest_pg.pipelines.data_ingestion.passages import REST, TOO_LONG, cut_passages
from rest_pg.pipelines.data_ingestion.statistics import describe_data
from rest_pg.records import Document, Example
from rest_pg.text import text_key

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


def many_documents(n_users: int) -> list[Document]:
    """Users of eight documents of 30 words, from a vocabulary whose words are used as often as in real texts."""
    generator = random.Random(1)
    vocabulary = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=4)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    return [
        document(n, " ".join(generator.choices(vocabulary, weights, k=30)), user=f"u{user}")
        for user in range(n_users)
        for n in range(8)
    ]


def count_calls(function: Callable[[], object]) -> int:
    """Count the calls of Python and C functions that one call makes."""
    calls = Counter[str]()

    def count(frame: object, event: str, argument: object) -> None:
        calls[event] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls["call"] + calls["c_call"]


@pytest.mark.parametrize("setting", ["user", "temporal"])
def test_work_grows_with_users_and_not_with_their_square(setting: str) -> None:
    params = example_params(setting=setting)
    calls = []
    for n_users in (20, 80):
        documents = [
            replace(d, date=f"19{i % 8:02}") for i, d in enumerate(many_documents(n_users))
        ]
        examples = create_examples(documents, REQUEST, params, seed=1)
        calls.append(
            count_calls(lambda d=documents: create_examples(d, REQUEST, params, seed=1))
            + count_calls(lambda e=examples: describe_data(e, RetrievalParams(k=2)))
        )
    # four times the users: the square would be sixteen times the calls
    assert calls[1] < 5 * calls[0]


def test_key_items_look_up_the_words_of_the_text_alone() -> None:
    """Going over all users' words for each target took hours for 20,000 users."""

    class Looked(Counter[str]):
        n = 0

        def __getitem__(self, word: str) -> int:
            self.n += 1
            return super().__getitem__(word)

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("all words are gone over")

        values = items = keys = __iter__  # type: ignore[assignment]

    key_items = KeyItems(many_documents(20))
    expected = key_items.choose("aaaa aaab zebra", 2)
    looked = key_items._users = Looked(key_items._users)
    assert key_items.choose("aaaa aaab zebra", 2) == expected
    assert looked.n == 3


def same_texts() -> list[Document]:
    """Six users of eight documents, three of which all of them have, in spellings of their own."""
    topics = ["harbour", "railway", "forest", "school", "army"]
    cafe = "the caf\u00e9 by the harbour is open part one again"
    spellings = [
        cafe,
        cafe.upper(),
        cafe.replace(" ", "  "),
        unicodedata.normalize("NFD", cafe),
        f" {cafe}\n",
        cafe.title(),
    ]
    documents = []
    for user, spelling in zip(("ann", "bob", "cid", "dan", "eve", "fay"), spellings, strict=True):
        texts = [spelling, "we all wrote about railway news", "school is out says the army news"]
        texts += [f"{user} wrote of {topic} part {topic} again" for topic in topics]
        documents += [
            document(n, text, user=user, date=f"19{(n * 3) % 8:02}") for n, text in enumerate(texts)
        ]
    return documents


def standing(examples: Sequence[Example], documents: Sequence[Document], split: str) -> set[bytes]:
    """Return the texts that stand in a split's examples: their targets, whole, and their profiles."""
    text_of = {d.document_id: d.text for d in documents}
    return {
        text_key(text)
        for e in examples
        if (e.split == "train") == (split == "train")
        for text in (text_of[e.example_id], *(d.text for d in e.profile))
    }


@pytest.mark.parametrize("setting", ["user", "temporal"])
@pytest.mark.parametrize("opening_words", [0, 3])
def test_a_text_of_several_users_stands_on_one_side(setting: str, opening_words: int) -> None:
    documents = same_texts()
    users_of: dict[bytes, set[str]] = {}
    for d in documents:
        users_of.setdefault(text_key(d.text), set()).add(d.user_id)
    shared = {key for key, users in users_of.items() if len(users) > 1}
    assert len(shared) == 3
    params = example_params(setting=setting, opening_words=opening_words)
    n_held_out = 0
    for seed in range(8):
        examples, left_out = draw_examples(documents, REQUEST, params, seed)
        held_out = shared & standing(examples, documents, "held out")
        assert not held_out & standing(examples, documents, "train")
        n_held_out += len(held_out)
        # each training user has each of them
        told = {row.user_id: row.documents for row in left_out if row.left_out == "documents"}
        trained = {e.user_id for e in examples if e.split == "train"}
        assert told == (dict.fromkeys(trained, len(held_out)) if held_out else {})
    assert n_held_out > 0


def test_a_collection_of_the_same_texts_is_refused_with_the_reason() -> None:
    texts = [f"all wrote of harbour ships part {n} again" for n in range(8)]
    documents = [
        document(n, text, user=user)
        for user in ("ann", "bob", "cid", "dan")
        for n, text in enumerate(texts)
    ]
    with pytest.raises(
        ValueError, match=r"no train example.*Left out: .*held-out users have the same texts"
    ):
        create_examples(documents, REQUEST, example_params(), seed=5)


def test_texts_of_one_user_are_left_alone() -> None:
    """Two users' texts, several times each: none is in two users' hands, and nothing is left out."""
    _, left_out = draw_examples(corpus(), REQUEST, example_params(), seed=5)
    assert left_out == []


def test_each_user_without_examples_is_named_with_the_parameter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = "harbour ships railway " * 20
    documents = [
        *corpus(),
        *(document(n, f"gus wrote of railway trains part {n}", user="gus") for n in range(2)),
        *(document(n, f"{long} {n}", user="\u540d\u524d") for n in range(5)),
        # each holds the others: no profile is left
        *(
            document(n, "ida wrote of harbour ships and railway trains here", user="ida")
            for n in range(4)
        ),
        *(document(n, f"zzyzx{n} qwfpg{n} arstd{n} gmnei{n}", user="kit") for n in range(4)),
    ]
    with caplog.at_level("INFO"):
        examples, left_out = draw_examples(documents, REQUEST, example_params(), seed=5)
    found = {row.user_id: (row.reason, row.parameter, row.documents) for row in left_out}
    assert found == {
        "gus": ("too few documents", "examples.min_profile_size=2", 2),
        "\u540d\u524d": (
            "every document is too long to be asked for",
            "examples.max_reference_words=50",
            5,
        ),
        "ida": (
            "too few documents that are no copies of a target",
            "examples.min_profile_size=2",
            4,
        ),
        "kit": ("no words to ask by that other users have too", "examples.opening_words=0", 4),
    }
    assert not {e.user_id for e in examples} & found.keys()
    assert "1 user left out: too few documents (examples.min_profile_size=2): 'gus'" in caplog.text
    drawn, left_out = draw_examples(documents, REQUEST, example_params(max_users=4), seed=5)
    reasons = Counter(row.parameter for row in left_out)
    assert reasons["examples.max_users=4"] + len({e.user_id for e in drawn}) >= 5
    assert len({row.user_id for row in left_out} | {e.user_id for e in drawn}) == 9


def test_a_user_who_cannot_be_asked_leaves_the_split_to_another() -> None:
    documents = [
        *corpus(),
        *(document(n, f"zzyzx{n} qwfpg{n} arstd{n} gmnei{n}", user="kit") for n in range(4)),
    ]
    for seed in range(8):
        examples, left_out = draw_examples(documents, REQUEST, example_params(), seed)
        assert {e.split for e in examples} == {"train", "validation", "test"}
        assert [(row.user_id, row.parameter) for row in left_out] == [
            ("kit", "examples.opening_words=0")
        ]


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
