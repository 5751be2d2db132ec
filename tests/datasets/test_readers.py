import codecs
import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kedro.io.core import DatasetError
from pyarrow import parquet

from rest_pg.datasets.sources.documents import DocumentsDataset, RequestsDataset
from rest_pg.datasets.sources.readers.encoding import detect_encoding
from rest_pg.datasets.sources.readers.json_files import CHARACTERS

ROWS = [
    {
        "user": "zoë",
        "text": "Das Käsebrötchen — „gut“, sagte sie; ja.",
        "title": "Früh",
        "date": "2001",
    },
    {"user": "0010", "text": 'He said "no",\nand\r\nleft | slowly.\tThen came back.', "title": "B"},
    {"user": "名前", "text": "町の港は冬でも開いています。" * 3, "date": "2002-03"},
]
WESTERN = ROWS[:1] * 2


def read(path: Path) -> list[dict[str, Any]]:
    return DocumentsDataset(filepath=str(path)).load()


def fields(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("user", "text", "title", "date", "unreadable")
    return [{n: r[n] for n in names if r.get(n) not in (None, "")} for r in records]


def table(
    rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n", **others: Any
) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(
        file, ["user", "text", "title", "date"], delimiter=delimiter, lineterminator=end, **others
    )
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
def test_any_delimiter_and_unicode_encoding(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(table(ROWS, delimiter).encode(encoding))
    assert fields(read(path)) == ROWS


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_big_endian_marks(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "d.csv"
    encoding = "utf-16-be" if mark == codecs.BOM_UTF16_BE else "utf-32-be"
    path.write_bytes(mark + table(ROWS).encode(encoding))
    assert fields(read(path)) == ROWS


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\ufeff"), min_size=1, max_size=20
).filter(str.strip)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.booleans(),
)
def test_what_csv_writes_is_read_back(
    tmp_path: Path,
    rows: list[tuple[str, str]],
    delimiter: str,
    end: str,
    quoting: int,
    encoding: str,
    packed: bool,
) -> None:
    # Python's writer leaves a line end of another kind unquoted then, and the row can't be told from two
    assume(
        quoting != csv.QUOTE_MINIMAL
        or not any(set(field) & {"\r", "\n"} for row in rows for field in row)
    )
    written = [{"user": user, "text": text, "title": "", "date": ""} for user, text in rows]
    path = tmp_path / ("d.CSV.gz" if packed else "d.CSV")
    content = table(written, delimiter, end, quoting=quoting).encode(encoding)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [(r["user"], r["text"]) for r in read(path)] == rows


@pytest.mark.parametrize("encoding", ["cp1252", "mac_roman"])
def test_western_code_pages(
    tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "d.csv"
    path.write_bytes(table(WESTERN, ";").encode(encoding))
    assert fields(read(path)) == WESTERN
    assert f"columns are separated by semicolon, text is {encoding}" in caplog.text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le garçon est allé à l’école près de la forêt, c’était là."),
        ("cp1252", "The café “Noir” — it’s closed on Sundays."),
        ("iso8859_15", "Un cœur coûte 5 € à la sœur de l'élève."),
        ("mac_roman", "Le garçon est allé à l’école près de la forêt, c’était là."),
        ("mac_roman", "El niño comió piña. ¿Dónde está el señor?"),
        ("cp1250", "Zażółć gęślą jaźń, wczoraj byliśmy w lesie."),
        ("cp1251", "Сегодня мы гуляли по берегу реки и видели старый мост."),
        ("koi8_r", "Сегодня мы гуляли по берегу реки и видели старый мост."),
        ("cp1253", "Χθες πήγαμε στη θάλασσα και είδαμε το λιμάνι της πόλης."),
        ("cp932", "昨日は友達と一緒に海へ行きました。とても楽しかったです。"),
        ("gb18030", "昨天我们去了海边,看到了古老的港口。非常开心。"),
    ],
)
def test_code_pages_by_their_texts(encoding: str, text: str) -> None:
    content = f"user,text\nann,{text}\n".encode(encoding)
    assert content.decode(detect_encoding(io.BytesIO(content))).endswith(f"{text}\n")


def test_a_damaged_byte_in_utf8_costs_its_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("user,text\nann,Käse und Brötchen\nbob,".encode() + b"\xff\ncid,fine\n")
    found = read(path)
    assert [r["text"] for r in found] == ["Käse und Brötchen", "\udcff", "fine"]


def test_the_encoding_is_looked_for_beyond_the_start(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(
        b"user,text\n" + b"ann,plain words here\n" * 90_000 + "bob,café\n".encode("cp1252")
    )
    assert read(path)[-1]["text"] == "café"


@pytest.mark.parametrize(
    "lines",
    [
        ['User, "Text",TITLE', 'ann, "a, b",T', "", "bob,c,"],
        ["\ufeffuser,text,title", 'ann,"a, b",T', "bob,c,"],
        ["", ",user,text,title", '0,ann,"a, b",T', "1,bob,c,"],
        ["sep=;", "TEXT;user;Title", "a, b;ann;T", ";;", "c;bob;"],
        ["user,text,title,,", 'ann,"a, b",T', "bob,c,,,"],
    ],
)
def test_headers_in_other_spellings(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [(r["user"], r["text"], r.get("title")) for r in read(path)] == [
        ("ann", "a, b", "T"),
        ("bob", "c", None),
    ]


def test_rows_with_other_cells_than_the_header_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(
        'user,text,title\nann,"two\nlines",T\nbob,Dear all, hello,T\neve,short\nann,c,T,,\n'
    )
    found = read(path)
    assert [r["source"].partition(", ")[2] for r in found] == [
        "line 2, row 1",
        "line 4, row 2",
        "line 5, row 3",
        "line 6, row 4",
    ]
    assert [r.get("unreadable") for r in found] == [None, "4 cells", "2 cells", None]
    assert [r["id"] for r in found] == ["row-1", "row-2", "row-3", "row-4"]


BROKEN: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "unclosed quote": (
        "d.csv",
        lambda: b'user,text\nann,a\nbob,"b\neve,c\n',
        r"line 3: unexpected end",
    ),
    "quote within": ("d.csv", lambda: b'user,text\nann,"a\nb" c\n', r"line 2: ',' expected"),
    "repeated header": (
        "d.csv",
        lambda: b"\nuser,text,Text\na,b,c\n",
        r"line 2: .*'text' is there twice",
    ),
    "another repeated header": (
        "d.csv",
        lambda: b"user,text,x,x\na,b,c,d\n",
        r"line 1: .*'x' is there twice",
    ),
    "no header": (
        "d.csv",
        lambda: b"ann,a\nbob,b\n",
        r"line 1: .*found 'ann', 'a' \(separated by comma, utf-8\).*user,text",
    ),
    "other columns": (
        "d.csv",
        lambda: b"author;body\nbob;b\n",
        r"found 'author', 'body' \(separated by semicolon",
    ),
    "empty": ("d.csv", lambda: b"", "no column"),
    "header only": ("d.csv", lambda: b"user,text\n", "holds no record"),
    "blank lines": ("d.jsonl", lambda: b"\n \n", "holds no record"),
    "cut UTF-16": ("d.csv", lambda: table(ROWS).encode("utf-16")[:-1], "truncated data"),
    "half an array": (
        "d.json",
        lambda: b'[{"user": "a", "text": "b"}, {"user": "a", "te',
        "item 2: Unterminated",
    ),
    "array without end": (
        "d.json",
        lambda: b'[{"user": "a", "text": "b"}',
        "item 2: expected a comma",
    ),
    "trailing comma": (
        "d.json",
        lambda: b'[{"user": "a", "text": "b"},]',
        "item 2: a comma follows the last",
    ),
    "two arrays": ("d.json", lambda: b"[{}][{}]", "follows the array's end"),
    "a missing quote": ("d.json", lambda: b'[{"user": "a", "text: "b"}]', "item 1: Expecting"),
    "gzip": (
        "d.jsonl.gz",
        lambda: gzip.compress(b'{"user": "a", "text": "b"}\n' * 9)[:-9],
        "gzip file is cut",
    ),
    "Parquet": ("d.parquet", lambda: b"PAR1 and no more", "Parquet file is cut"),
    "a workbook called CSV": ("d.csv", lambda: b"PK\x03\x04 and more", "save the sheet as CSV"),
    "a workbook": ("d.xlsx", lambda: b"PK\x03\x04", r"'.xlsx'.*save the sheet as CSV"),
    "an archive": ("d.zip", lambda: b"PK\x03\x04", r"'.zip'.*unpack it"),
    "another file": (
        "d.docx",
        lambda: b"x",
        r"'.docx', which can't be read: name a file that ends in .jsonl",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_with_place_and_remedy(tmp_path: Path, name: str) -> None:
    file, content, message = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content())
    with pytest.raises(DatasetError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_cut_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pd.DataFrame(ROWS).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match="cut or damaged"):
        read(path)


OBJECTS = [
    {"user": 7, "text": "Käse.", "date": 2001},
    {"user": "b", "text": "Zwei.", "title": math.nan},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", json.dumps(OBJECTS)),
        ("d.json", f" \n{json.dumps(OBJECTS, indent=2, ensure_ascii=False)}\n "),
        ("d.JSON", json.dumps({"data": OBJECTS})),
        ("d.json", json.dumps({"count": 2, "data": OBJECTS}, indent=1)),
        ("d.json", "\n".join(json.dumps(o) for o in OBJECTS)),
        ("d.json", "\n".join(json.dumps(o, indent=1) for o in OBJECTS)),
        ("d.jsonl", json.dumps(OBJECTS)),
        ("d.JSONL", "\r\n".join(json.dumps(o) for o in OBJECTS)),
        ("d.ndjson", "\r".join(json.dumps(o, ensure_ascii=False) for o in OBJECTS)),
        ("d.jsonl", "\n\n".join(json.dumps({k.upper(): v for k, v in o.items()}) for o in OBJECTS)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_json_in_its_forms(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    found = read(path)
    assert [(r["user"], r["text"]) for r in found] == [(7, "Käse."), ("b", "Zwei.")]
    assert found[0]["date"] == 2001
    assert math.isnan(found[1]["title"])


def test_a_line_is_a_bad_record_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [
        "[1]",
        '{"user": "a", "text": "1", "text": "2"}',
        '{"text": "x", "Text": "y"}',
        "{",
        "9" * 5000,
        "NaN",
    ]
    path.write_text("\n".join([json.dumps(OBJECTS[1]), *lines, json.dumps(OBJECTS[1])]))
    found = read(path)
    assert [bool(r.get("unreadable")) for r in found] == [False, *[True] * 6, False]
    assert found[1]["id"] == "line-2"


def test_items_longer_than_the_buffer(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    rows = [{"user": "a", "text": "x" * n} for n in (3, CHARACTERS - 30, 2 * CHARACTERS, 5)]
    path.write_text(json.dumps(rows))
    assert [len(r["text"]) for r in read(path)] == [len(r["text"]) for r in rows]


def test_parquet_of_many_types(tmp_path: Path) -> None:
    path = tmp_path / "d.PARQUET"
    zone = pa.timestamp("us", tz="Asia/Tokyo")
    columns = {
        "User": pa.array(["a", "b"]).dictionary_encode(),
        "text": pa.array([b"One.", "Zwö.".encode()]),
        "title": pa.array([None, None]),
        "date": pa.array([datetime(2024, 3, 10, 16, tzinfo=UTC), None], zone),
        "other": pa.array([[1], [2]]),
    }
    parquet.write_table(pa.table(columns), path)
    found = read(path)
    assert [(r["user"], r["text"]) for r in found] == [("a", b"One."), ("b", "Zwö.".encode())]
    assert found[0]["date"] == datetime(2024, 3, 10, 16, tzinfo=UTC)
    assert "other" not in found[0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["user", "body"], "no column is called text: found user, body"),
        (["user", "text", "Text"], "'text' is there twice"),
    ],
)
def test_parquet_without_its_columns(tmp_path: Path, columns: list[str], message: str) -> None:
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table([pa.array(["x"])] * len(columns), names=columns), path)
    with pytest.raises(DatasetError, match=message):
        read(path)


def test_a_value_beyond_the_calendar_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    dates = pa.array([2**60, 0], pa.timestamp("us"))
    amounts = {
        "user": pa.array([Decimal(7), Decimal(8)]),
        "text": pa.array(["x", "y"]),
        "date": dates,
    }
    parquet.write_table(pa.table(amounts), path)
    found = read(path)
    assert ["unreadable" in r for r in found] == [True, False]


@pytest.mark.parametrize("name", [2024, 83, None, True])
def test_a_name_that_was_read_as_a_number_is_refused(name: Any) -> None:
    with pytest.raises(DatasetError, match=r"documents=.* was read as .*: write documents=\./NAME"):
        DocumentsDataset(filepath=name)


def test_requests_are_read_in_the_same_forms(tmp_path: Path) -> None:
    request = {"user": "ann", "request": "Write.", "documents": ["One.", "Two."]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps([request]), encoding="utf-16")
    (found,) = RequestsDataset(filepath=str(path)).load()
    assert {name: found[name] for name in request} == request


def make(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_folders_of_all_kinds(tmp_path: Path) -> None:
    root = tmp_path / "notes"
    good = {
        "ann/a.TXT": b"One.",
        "ann/deep/b.Markdown": b"\xef\xbb\xbfTwo.",
        "bob/c.md": "Drei — 3 Brötchen.".encode("cp1252"),
        "bob/d.text": "Vier.".encode("utf-16"),
    }
    others = {
        "bob/photo.png": b"x",
        "bob/._c.md": b"x",
        "ann/.trash/gone.md": b"x",
        ".obsidian/plugins/readme.md": b"x",
        "__MACOSX/ann/a.txt": b"x",
        "cid/binary.txt": b"\x00\x01\x02\xff\x03",
        "lost.txt": b"Whose?",
    }
    make(root, good | others)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.txt").write_bytes(b"Five.")
    (root / "eve").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "eve2").symlink_to(root / "ann", target_is_directory=True)
    (root / "bob" / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    found = read(root)
    texts = {r["id"]: (r["user"], r["text"], r["title"]) for r in found if "text" in r}
    assert texts == {
        "ann/a.TXT": ("ann", "One.", "a"),
        "ann/deep/b.Markdown": ("ann", "Two.", "b"),
        "bob/c.md": ("bob", "Drei — 3 Brötchen.", "c"),
        "bob/d.text": ("bob", "Vier.", "d"),
        "eve/e.txt": ("eve", "Five.", "e"),
    }
    left_out = {r["id"]: r["skipped"] for r in found if "skipped" in r}
    assert left_out == {
        ".obsidian": "hidden folder",
        "__MACOSX": "hidden folder",
        "ann/.trash": "hidden folder",
        "bob/._c.md": "hidden file",
        "bob/gone.txt": "broken link, or no regular file",
        "bob/photo.png": "file that ends in .png",
        "eve2": "folder that a link reaches a second time",
    }
    assert [r["id"] for r in found if "unreadable" in r] == ["cid/binary.txt", "lost.txt"]
    assert {r["file"] for r in found} == {str(root)}


def test_names_of_one_spelling(tmp_path: Path) -> None:
    make(tmp_path, {"Rene\u0301/a.txt": b"One.", "Ren\u00e9/a.txt": b"Two."})
    found = read(tmp_path)
    assert {r["user"] for r in found} == {"Ren\u00e9"}
    assert len({r["id"] for r in found}) == 2


def test_a_folder_without_texts_says_what_it_holds(tmp_path: Path) -> None:
    make(tmp_path, {"d.jsonl": b"{}", "e.jsonl": b"{}"})
    with pytest.raises(DatasetError, match=r"found: 2 .jsonl. If your documents are in one file"):
        read(tmp_path)
