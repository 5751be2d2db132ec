import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io.core import DatasetError

from rest_pg.config import LongLampParams
from rest_pg.datasets import RecordsDataset
from rest_pg.datasets.sources import longlamp
from rest_pg.datasets.sources.longlamp import LongLampDataset
from rest_pg.pipelines.data_ingestion.longlamp import read_records
from rest_pg.pipelines.data_ingestion.nodes import read_examples
from rest_pg.records import Document, Example, Split

PARAMS = LongLampParams(
    task="abstract_generation",
    setting="user",
    max_examples={"train": 2, "validation": 1, "test": 1},
    max_profile_size=2,
    max_document_words=6,
    max_reference_words=8,
    near_copies="remove",
)


def abstract(user: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    record = {
        "name": user,
        "input": f'Generate an abstract for the title "T{number}" using the following items: a, b.',
        "output": f"abstract {number} by {user}",
        "profile": [
            {"id": f"{user}-p{i}", "title": f"P{i}", "abstract": f"text {i}", "year": "2020"}
            for i in range(3)
        ],
    }
    return record | fields


SPLITS = {
    "train": [abstract("ann", 1), abstract("ann", 2), abstract("bob", 3)],
    "val": [abstract("cat", 4)],
    "test": [abstract("dan", 5)],
}


def write(directory: Path, suffix: str) -> Path:
    for split, records in SPLITS.items():
        path = directory / f"{split}{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in records))
        elif suffix == ".json":
            path.write_text(json.dumps(records))
        else:
            pd.DataFrame(records).to_parquet(path)
    return directory


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    raw = LongLampDataset(path=str(write(tmp_path, suffix))).load()
    examples, rejected, _ = read_examples(raw, PARAMS, "stop", seed=7)
    assert rejected == []
    assert [e.split for e in examples] == ["train", "train", "validation", "test"]
    last = examples[-1]
    assert (last.example_id, last.user_id) == ("abstract_generation-test-1", "dan")
    assert last.reference == "abstract 5 by dan"
    assert last.query == "a, b."
    assert len(last.profile) == 2
    document = last.profile[0]
    assert (document.title, document.date) == (f"P{document.document_id[-1]}", "2020")
    assert document.searched == f"{document.title} {document.text}"
    again, _ = read_records(_records(), PARAMS, seed=7)
    assert examples == again


READ = """
import re, sys
from pathlib import Path
from test_longlamp import PARAMS
from rest_pg.pipelines.data_ingestion.nodes import read_examples
from rest_pg.datasets.sources import longlamp
from rest_pg.datasets.sources.longlamp import LongLampDataset
examples, _, _ = read_examples(LongLampDataset(path=sys.argv[1]).load(), PARAMS, "stop", seed=7)
# the peak since this program began: ru_maxrss is what the process that started it had, if that was more
print(len(examples), re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_a_file_of_a_gigabyte_with_a_text_of_a_quarter_stays_below_one_and_a_half(
    tmp_path: Path,
) -> None:
    write(tmp_path, ".jsonl")
    with (tmp_path / "train.jsonl").open("a") as file:
        for number, words in enumerate([46_000_000, *[5_500_000] * 25], start=10):
            large = {"id": "p", "title": "P", "abstract": "words " * words, "year": "2020"}
            small = abstract("eve", number)
            file.write(json.dumps(small | {"profile": [large, *small["profile"]]}) + "\n")
    assert (tmp_path / "train.jsonl").stat().st_size > 1e9
    found = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    n_examples, kilobytes = map(int, found.stdout.splitlines()[-1].split())  # after the log
    assert n_examples == 4
    assert kilobytes < 1.5e6, "peak of resident memory"


def _records() -> list[dict[str, Any]]:
    return [
        record | {"split": split, "source": f"{split} {i}"}
        for split, records in SPLITS.items()
        for i, record in enumerate(records)
    ]


def test_files_by_other_names_and_lines_called_json(tmp_path: Path) -> None:
    directory = write(tmp_path, ".jsonl")
    (directory / "val.jsonl").rename(directory / "validation.json")
    (directory / "test.jsonl").rename(directory / "test.json")
    examples, _, _ = read_examples(
        LongLampDataset(path=str(directory)).load(), PARAMS, "stop", seed=7
    )
    assert sorted(e.user_id for e in examples if e.split != "train") == ["cat", "dan"]


def test_a_hub_id_is_streamed_by_its_configuration(monkeypatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool):
        asked.append((path, name, split, streaming))
        return iter(SPLITS[split])

    monkeypatch.setattr(longlamp, "load_dataset", load_dataset)
    raw = LongLampDataset(path="LongLaMP/LongLaMP", name="abstract_generation_user")
    examples, _, _ = read_examples(raw.load(), PARAMS, "stop", seed=7)
    assert [e.user_id for e in examples if e.split != "train"] == ["cat", "dan"]
    assert asked == [
        ("LongLaMP/LongLaMP", "abstract_generation_user", split, True) for split in SPLITS
    ]


def test_a_split_in_parts_as_the_hub_names_them(tmp_path: Path) -> None:
    records = {
        split: [abstract(f"{split}{i}") for i in range(4)] for split in ("train", "val", "test")
    }
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        for part in range(2):
            table = pd.DataFrame(records[split][2 * part : 2 * part + 2])
            table.to_parquet(tmp_path / f"{name}-0000{part}-of-00002.parquet")
    found = list(LongLampDataset(path=str(tmp_path)).load())
    assert [r["split"] for r in found] == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    assert [r["name"] for r in found[:4]] == [r["name"] for r in records["train"]]


def test_tasks_are_mixed_and_keep_their_users_apart(tmp_path: Path) -> None:
    places = {}
    for task in ("abstract_generation", "topic_writing"):
        (tmp_path / task).mkdir()
        write(tmp_path / task, ".jsonl")
        places[task] = {"path": str(tmp_path / task)}
    for path in (tmp_path / "topic_writing").iterdir():
        text = path.read_text().replace('"name"', '"author"').replace('"abstract":', '"content":')
        path.write_text(text)
    mixed = PARAMS.model_copy(update={"task": "mixed"})
    examples, _, _ = read_examples(LongLampDataset(tasks=places).load(), mixed, "stop", seed=7)
    assert Counter((e.split, e.task) for e in examples) == {
        ("train", "abstract_generation"): 2,
        ("train", "topic_writing"): 2,
        **{(s, t): 1 for s in ("validation", "test") for t in places},
    }
    assert {e.user_id for e in examples if e.split == "test"} == {
        "abstract_generation/dan",
        "topic_writing/dan",
    }
    raw = ({**r, "task": "email"} for r in LongLampDataset(path=str(tmp_path / task)).load())
    with pytest.raises(ValueError, match="of the task 'email'"):
        read_examples(raw, mixed, "stop", seed=7)
    with pytest.raises(ValueError, match="must be given"):
        LongLampDataset()


def test_what_held_out_users_share_is_left_out_of_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def given(split: str, user: str, output: str, *profile: str) -> dict[str, Any]:
        texts = [{"id": f"{user}-{text}", "abstract": text} for text in profile]
        record = abstract(user, output=output, profile=texts)
        return record | {"split": split, "source": "a file, line 1"}

    records = [
        given("train", "ann", "ships  at SEA", "a pier", "a hill"),  # dan's output
        given("train", "ann", "a night train", "a pier", "a hill"),  # stands in cat's profile
        given(
            "train", "bob", "a quiet town", "A  Lighthouse", "a field"
        ),  # cat's output in the profile
        given("train", "eve", "a broad river", "a lighthouse"),  # and nothing else there
        given("train", "fay", "a dry road", "a common text"),  # in profiles on both sides
        given("val", "cat", "a lighthouse", "A night train", "a wood", "a common text"),
        given("test", "dan", "Ships at sea", "a wood"),
    ]
    params = PARAMS.model_copy(
        update={"max_examples": {"train": 9, "validation": 9, "test": 9}, "max_profile_size": 9}
    )
    with caplog.at_level("INFO"):
        examples, _, counts = read_examples(records, params, "stop", seed=7)
    found = {e.user_id: [d.text for d in e.profile] for e in examples}
    assert found == {
        "bob": ["a field"],
        "fay": ["a common text"],
        "cat": ["A night train", "a wood", "a common text"],
        "dan": ["a wood"],
    }
    dropped = counts[counts.outcome == "dropped"]
    assert dict(zip(dropped.unit, dropped.n, strict=True)) == {
        "examples": 3,
        "profile documents": 1,
    }
    assert "dropped: 3 held-out users have the same texts" in caplog.text


def test_examples_of_mails_are_mixed_in(tmp_path: Path) -> None:
    """As another run made them, in the file that it kept."""
    (tmp_path / "abstracts").mkdir()
    write(tmp_path / "abstracts", ".jsonl")
    splits: tuple[Split, ...] = ("train", "validation", "test")
    mails = [
        Example(
            example_id=f"m{i}",
            user_id=f"u{i}",
            split=split,
            input=f"Write a mail that begins: Hello {i}.",
            query=f"Hello {i}.",
            reference=f"We meet at pier {i}.",
            profile=(Document(document_id=f"d{i}", user_id=f"u{i}", text="See you there."),),
        )
        for i, split in enumerate(splits)
    ]
    kept = tmp_path / "examples.jsonl"
    RecordsDataset(filepath=str(kept), record="rest_pg.records.Example").save(mails)
    with kept.open("a") as file:
        file.write('{"split": "dev"}\n[]\n')
    places = {
        "abstract_generation": {"path": str(tmp_path / "abstracts")},
        "email_completion": {"path": str(kept)},
    }
    bounds = {"max_document_words": 50, "max_reference_words": 50}
    mixed = PARAMS.model_copy(update={"task": "mixed"} | bounds)
    raw = LongLampDataset(tasks=places).load()
    examples, rejected, _ = read_examples(raw, mixed, "reject", seed=7)
    found = {e.split: e for e in examples if e.task == "email_completion"}
    assert found.keys() == set(splits)
    first = found["train"]
    assert (first.user_id, first.reference) == ("email_completion/u0", mails[0].reference)
    assert (first.input, first.query) == (mails[0].input, mails[0].query)
    assert [d.text for d in first.profile] == [d.text for d in mails[0].profile]
    assert [d.document_id for d in first.profile] == [d.document_id for d in mails[0].profile]
    assert len(rejected) == 2


def test_the_task_is_told_by_the_field_that_holds_the_user() -> None:
    auto = PARAMS.model_copy(update={"task": "auto"})
    review = abstract("eve", 6) | {"reviewerId": "eve", "split": "train", "source": "line 1"}
    del review["name"]
    review["profile"] = [{"summary": "Fine", "reviewText": "Hot."}]
    nobody = {k: v for k, v in review.items() if k != "reviewerId"} | {"source": "line 2"}
    both = review | {"name": "eve", "source": "line 3"}
    cut = {"unreadable": "no end", "split": "train", "source": "line 4"}
    examples, counts = read_records([review, nobody, both, cut, *_records()], auto, seed=7)
    assert examples[0].example_id == "product_review-train-1"
    assert len(examples) == 5
    assert examples[0].profile[0].searched == "Fine Hot."
    found = [(r.source, r.field, r.expected) for r in counts.rejected]
    users = "name or reviewerId or author or user_id"
    assert found == [
        ("line 2", users, "one of these fields, for the user"),
        ("line 3", users, "one of these fields, for the user"),
        ("line 4", "record", "one JSON object"),
    ]


def test_the_seed_draws_and_the_limit_bounds() -> None:
    many = [abstract(f"u{i}") | {"split": "train", "source": str(i)} for i in range(50)]
    drawn = [{e.user_id for e in read_records(many, PARAMS, seed)[0]} for seed in range(5)]
    assert {len(users) for users in drawn} == {2}
    assert len(set().union(*drawn)) > 4


@pytest.mark.parametrize(
    ("task", "record", "expected"),
    [
        pytest.param(
            "product_review",
            {
                "reviewerId": "r1",
                "input": "Write a review.",
                "output": "Good.",
                "profile": [
                    {"overall": 5, "summary": "Fine", "description": "A pan", "reviewText": "Hot."}
                ],
            },
            ("Hot.", "Fine", "5 Fine A pan Hot."),
            id="review",
        ),
        pytest.param(
            "topic_writing",
            {
                "author": "r1",
                "input": "Generate the content for a reddit post.",
                "output": "Good.",
                "profile": [{"id": "x", "summary": "S", "content": "C", "author": "r1"}],
            },
            ("C", "S", "S C"),
            id="topic",
        ),
        pytest.param(
            "topic_writing",
            {
                "author": "r1",
                "input": "Generate the content for a reddit post.",
                "output": "Good.",
                "profile": [{"id": "x", "input": "S", "output": "C"}],
            },
            ("C", "S", "S C"),
            id="topic in its other spelling",
        ),
    ],
)
def test_each_schema_is_read(task: Any, record: dict[str, Any], expected: tuple[str, ...]) -> None:
    params = PARAMS.model_copy(update={"task": task})
    (example,), counts = read_records([record | {"split": "test", "source": "1"}], params, 7)
    (document,) = example.profile
    assert (document.text, document.title, document.searched) == expected
    assert example.query == record["input"]
    assert counts.rejected == []


def test_long_texts_are_cut_and_the_target_leaves_its_profile() -> None:
    record = abstract("ann")
    record["profile"] = [
        {"id": "long", "title": "L", "abstract": "one two three four five six seven"},
        {"id": "copy", "title": "C", "abstract": f"x {record['output']}"},
        {"id": "empty", "title": "E", "abstract": " "},
    ]
    long = abstract("bob", output="w " * 9)
    records = [r | {"split": "train", "source": "1"} for r in (record, long)]
    (example,), counts = read_records(records, PARAMS, seed=7)
    (document,) = example.profile
    assert document.text == "one two three four five six"
    assert (counts.documents_cut, counts.copies, counts.too_long) == (1, 1, 1)


@pytest.mark.parametrize(
    ("near_copies", "kept"), [("remove", ["other"]), ("keep", ["near", "other"])]
)
def test_near_copies_of_the_target_leave_its_profile_by_a_parameter(near_copies, kept) -> None:
    ten = "one two three four five six seven eight nine ten"
    record = abstract("ann", output=ten)
    record["profile"] = [
        # 2 of the target's 3 runs of 8 words, and 1 of them
        {"id": "near", "title": "N", "abstract": ten.removesuffix(" ten") + " and more"},
        {"id": "other", "title": "O", "abstract": ten.removesuffix(" nine ten") + " and more"},
    ]
    bounds = {"near_copies": near_copies, "max_document_words": 20, "max_reference_words": 20}
    records = [record | {"split": "train", "source": "1"}]
    (example,), counts = read_records(records, PARAMS.model_copy(update=bounds), seed=7)
    assert [document.document_id for document in example.profile] == kept
    assert counts.near_copies == 2 - len(kept)
    assert example.copies_left_out == 2 - len(kept)


def test_words_are_counted_across_the_parts_of_a_huge_text() -> None:
    record = abstract("ann")
    record["profile"] = [{"id": "h", "title": "H", "abstract": "word" * 40_000 + " end " * 9}]
    (example,), counts = read_records([record | {"split": "train", "source": "1"}], PARAMS, 7)
    assert example.profile[0].text == "word" * 40_000 + " end" * 5
    assert counts.documents_cut == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"name": [3]}, r"field name: expected a text .*found \[3\]", id="user"),
        pytest.param({"output": " "}, "field output", id="empty output"),
        pytest.param({"input": "\ud800"}, "field input: expected valid Unicode", id="surrogate"),
        pytest.param({"profile": "x"}, "field profile: expected a list", id="profile"),
        pytest.param({"profile": [{"id": 1}]}, r"field profile\.0\.abstract", id="no text"),
    ],
)
def test_a_bad_record_is_named_or_listed(tmp_path: Path, fields, message: str) -> None:
    bad = [abstract("eve", **fields) | {"split": "train", "source": "train, 9"}]
    with pytest.raises(ValueError, match=f"1 of 6 records .*train, 9, {message}"):
        read_examples(_records() + bad, PARAMS, "stop", seed=7)
    examples, rejected, _ = read_examples(_records() + bad, PARAMS, "reject", seed=7)
    assert len(examples) == 4
    assert [r.source for r in rejected] == ["train, 9"]


def test_broken_lines_and_arrays_are_named(tmp_path: Path) -> None:
    write(tmp_path, ".jsonl")
    (tmp_path / "test.jsonl").write_text('{"name": "x"\n[1]\n')
    found = [r for r in LongLampDataset(path=str(tmp_path)).load() if "unreadable" in r]
    assert [r["source"].rpartition(", ")[2] for r in found] == ["line 1", "line 2"]
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.json").write_text(json.dumps([abstract("dan")])[:-20])
    with pytest.raises(DatasetError, match=r"test\.json, item 1: .* cut or damaged"):
        list(LongLampDataset(path=str(tmp_path)).load())


def test_a_missing_split_names_directory_and_remedy(tmp_path: Path) -> None:
    write(tmp_path, ".jsonl")
    (tmp_path / "val.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"holds no val\.jsonl .*longlamp_path=DIR"):
        LongLampDataset(path=str(tmp_path)).load()


def test_a_user_in_two_splits_is_refused_in_the_user_setting() -> None:
    records = [*_records(), abstract("dan", 9) | {"split": "train", "source": "x"}]
    params = PARAMS.model_copy(update={"max_examples": {"train": 9, "validation": 1, "test": 1}})
    with pytest.raises(ValueError, match="user dan is in two splits"):
        read_examples(records, params, "stop", seed=7)
    temporal = params.model_copy(update={"setting": "temporal"})
    assert len(read_examples(records, temporal, "stop", seed=7)[0]) == 6


def test_what_became_of_each_record_is_counted() -> None:
    forgotten = {"gone", "abstract_generation/eve"}
    records = [
        abstract("ann", 1),
        abstract("gone", 2),
        abstract("eve", 3),
        abstract("bob", 4, output="w " * 9),
        abstract("cid", 5, profile=[{"id": "x", "title": "T", "abstract": "abstract 5 by cid"}]),
        abstract("dan", 6, input=" "),
        *[abstract(f"u{i}", i) for i in range(10, 15)],
    ]
    raw = [
        *[r | {"split": "train", "source": f"a, {i}", "file": "a"} for i, r in enumerate(records)],
        abstract("val") | {"split": "val", "source": "b, 1", "file": "b"},
        abstract("test") | {"split": "test", "source": "c, 1", "file": "c"},
    ]
    examples, rejected, table = read_examples(
        raw, PARAMS, "reject", seed=7, forgotten_users=forgotten
    )
    assert {e.user_id for e in examples}.isdisjoint({"gone", "eve"})
    assert len(rejected) == 1
    for _, own in table.groupby("file"):
        sums = own.groupby("outcome")["n"].sum()
        assert sums["read"] == sums["used"] + sums.get("dropped", 0)
    dropped = table[(table["file"] == "a") & (table["outcome"] == "dropped")]
    found = {row.reason: (row.decided_by, row.n) for row in dropped.itertuples()}
    drawn = {
        "longer output": ("longlamp.max_reference_words=8", 1),
        "user who is forgotten": ("forgotten_users", 2),
        "bad record (field input)": ("bad_records", 1),
    }
    assert drawn.items() <= found.items()
    assert found["not drawn"][0] == "longlamp.max_examples.train=2"
    assert sum(n for _, n in found.values()) == 9


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"title": "half \ud83d"}, "title"),
        ({"id": "half \ud83d"}, "id"),
        ({"abstract": "half \ud83d"}, "abstract"),
        ({"abstract": ["One.", "Two."]}, "abstract"),
        ({"title": {"a": 1}}, "title"),
    ],
)
def test_a_profile_document_with_no_text_in_a_field_is_named(
    fields: dict[str, Any], place: str
) -> None:
    record = abstract("eve")
    record["profile"][1] |= fields
    bad = record | {"split": "train", "source": "train, 9"}
    with pytest.raises(ValueError, match=rf"train, 9, field profile\.1\.{place}: expected"):
        read_examples([*_records(), bad], PARAMS, "stop", seed=7)


def test_numbers_and_spellings_are_one_user() -> None:
    wide = PARAMS.model_copy(update={"max_examples": {"train": 9, "validation": 1, "test": 1}})
    names: list[Any] = [7, 7.0, "7", "Jose\u0301", "Jos\u00e9"]
    raw = [abstract("x", name=n) | {"split": "train", "source": f"a, {n}"} for n in names]
    nan = abstract("x", name="nan", query=float("nan")) | {"split": "train", "source": "a, 9"}
    nan["profile"][0]["title"] = float("nan")
    examples, counts = read_records([*raw, nan], wide, 7)
    assert counts.rejected == []
    assert Counter(e.user_id for e in examples) == {"7": 3, "Jos\u00e9": 2, "nan": 1}
    assert "nan" not in {d.title for e in examples for d in e.profile}
    assert examples[-1].query == "a, b."


def test_endings_in_any_case_and_arrays_with_nan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, records in SPLITS.items():
        written = [record | {"score": float("nan")} for record in records]
        content = json.dumps(written).encode()
        (tmp_path / f"{split}.JSON.gz").write_bytes(gzip.compress(content))
    (tmp_path / "validation.jsonl").write_text("")
    found = list(LongLampDataset(path=str(tmp_path)).load())
    assert [r["split"] for r in found] == ["train"] * 3 + ["val", "test"]
    assert "validation.jsonl" in caplog.text


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, ".parquet")
    (tmp_path / "test.parquet").rename(tmp_path / "test-00001-of-00002.parquet")
    with pytest.raises(
        DatasetError, match=r"part 0 is missing beside test-00001-of-00002\.parquet"
    ):
        LongLampDataset(path=str(tmp_path)).load()
