"""Records become documents: no record disappears uncounted, and ids, texts and dates are compared right."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import document, example
from hypothesis import given
from hypothesis import strategies as st

from rest_pg.config import ExampleParams, PassageParams
from rest_pg.datasets import BackendDataset
from rest_pg.freshness import content_of
from rest_pg.pipelines.data_ingestion.counts import count_records
from rest_pg.pipelines.data_ingestion.examples import hold_out_latest
from rest_pg.pipelines.data_ingestion.nodes import check_examples, draw_examples, read_documents
from rest_pg.pipelines.data_ingestion.passages import cut_passages
from rest_pg.pipelines.data_ingestion.time_order import order_in_time
from rest_pg.privacy.forgotten import ForgottenUsers
from rest_pg.records import Document
from rest_pg.text import count_words

PASSAGES = PassageParams(min_words=4, max_words=9)
PARAMS = ExampleParams(
    setting="user",
    validation_share=0.2,
    test_share=0.2,
    examples_per_user={"train": 2, "validation": 1, "test": 1},
    max_users=4,
    max_profile_size=3,
    min_profile_size=2,
    max_reference_words=50,
    n_key_items=2,
)


def raw(number: int = 1, **fields: Any) -> dict[str, Any]:
    record = {"source": f"d.csv, row {number}", "file": "d.csv", "id": f"row-{number}"}
    return {**record, "user": "ann", "text": f"Text {number}.", **fields}


def numbers(table: pd.DataFrame, unit: str = "records") -> dict[str, int]:
    own = table[table["unit"] == unit]
    names = own["outcome"] + own["reason"].map(lambda reason: f": {reason}" if reason else "")
    return dict(zip(names, own["n"], strict=True))


def test_each_record_is_counted_with_what_decided(tmp_path: Path) -> None:
    forgotten = ForgottenUsers(filepath=str(tmp_path / "forgotten.json"))
    forgotten.add("eve")
    forgotten.add("7")
    records = [
        raw(1),
        raw(2, text="text  1."),
        raw(3, user=" eve "),
        raw(4, user=7.0, text=None),
        raw(5, text=" "),
        raw(6, text="a b c d\n\ne f g h\n\ni"),
        {"source": "d.csv, row 7", "file": "d.csv", "id": "row-7", "unreadable": "3 cells"},
        {"source": "x/.y", "file": "x", "id": ".y", "skipped": "hidden file"},
    ]
    documents, rejected, table = read_documents(records, PASSAGES, "reject", forgotten)
    assert [d.document_id for d in documents] == ["row-1", "row-6"]
    assert [r.field for r in rejected] == ["text", "line"]
    assert "eve" not in table.to_csv()
    found = {tuple(row) for row in table[table["outcome"] == "dropped"].itertuples(index=False)}
    assert found == {
        ("d.csv", "passages", "dropped", "repeated text of its user", "", 1),
        ("d.csv", "records", "dropped", "repeated text of its user", "", 1),
        ("d.csv", "records", "dropped", "user who is forgotten", "forgotten_users", 2),
        ("d.csv", "records", "dropped", "bad record (field text)", "bad_records", 1),
        ("d.csv", "records", "dropped", "bad record (field line)", "bad_records", 1),
        ("x", "records", "dropped", "hidden file", "", 1),
    }


def test_what_a_long_text_loses_is_counted() -> None:
    text = "a b c d\n\n" + "e " * 12 + "\n\nf g"
    documents, _, table = read_documents([raw(text=text)], PASSAGES, "stop")
    assert [d.document_id for d in documents] == ["row-1#1"]
    assert numbers(table, "passages") == {
        "read": 3,
        "used": 1,
        "dropped: passage above the limit, that no paragraph end cuts": 1,
        "dropped: rest of a long text, below the limit": 1,
    }
    assert "passages.max_words=9" in set(table["decided_by"])


WORD = st.sampled_from(["one", "two.", "three!", "drei", "四。", "\n", "\n\n", "a"])
RECORD = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", 7, None, "eve", True]),
        "text": st.one_of(st.none(), st.integers(), st.lists(WORD, max_size=30).map(" ".join)),
        "file": st.sampled_from(["a", "b"]),
    },
    optional={
        "skipped": st.just("hidden file"),
        "unreadable": st.just("x"),
        "date": st.text(max_size=3),
    },
)


@given(st.lists(RECORD, max_size=12))
def test_what_was_read_is_used_or_dropped(rows: list[dict[str, Any]]) -> None:
    records = [raw(n, **row) for n, row in enumerate(rows)]
    good = raw(99, text="A good one.", file="c")
    documents, _, table = read_documents([*records, good], PASSAGES, "reject", {"eve"})
    for _, own in table.groupby(["file", "unit"]):
        sums = own.groupby("outcome")["n"].sum()
        assert sums["read"] == sums.get("used", 0) + sums.get("dropped", 0)
    sums = table.groupby(["unit", "outcome"])["n"].sum()
    assert sums["records", "read"] == len(records) + 1
    assert sums["passages", "used"] == len(documents)


@given(st.lists(WORD, min_size=1, max_size=80), st.booleans())
def test_a_text_without_a_usable_paragraph_loses_no_word(words: list[str], spaced: bool) -> None:
    text = (" " if spaced else "").join(words).strip()
    passages, lost = cut_passages(text, PASSAGES)
    for passage in passages:
        assert 0 < count_words(passage) <= PASSAGES.max_words
    if not lost and count_words(text):
        assert "".join(" ".join(passages).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three. Four five! Six seven eight nine ten.", ["One two three. Four five!", "Six seven eight nine ten."]),
        ("他去了海边。看到旧港口！你呢？我在家里。", ["他去了海边。", "看到旧港口！", "你呢？我在家里。"]),
        ("मैं घर गया था। वह वहाँ नहीं था। सब कुछ ठीक है।", ["मैं घर गया था।", "वह वहाँ नहीं था।", "सब कुछ ठीक है।"]),
        ("أين كنت أمس يا؟ ذهبت إلى البحر مع. رأيت الميناء القديم أيضا", ["أين كنت أمس يا؟", "ذهبت إلى البحر مع.", "رأيت الميناء القديم أيضا"]),
        ("a b c d e f g h i j k l", ["a b c d", "e f g h", "i j k l"]),
        ("a b c d e\nf g h i j k", ["a b c d e", "f g h i j k"]),
        ("a b c d e\r\nf g h i j k", ["a b c d e", "f g h i j k"]),
        ("a b\nc d e\n\nf g h i j k", ["a b\nc d e", "f g h i j k"]),
        ("A b c. D e f g h i. J k.", ["A b c. D e f g h i.", "J k."]),
        ("A b c d e. F g.", ["A b c d e. F g."]),
    ],
)  # fmt: skip
def test_long_texts_are_cut_at_the_best_ends(text: str, expected: list[str]) -> None:
    assert cut_passages(text, PASSAGES)[0] == expected


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_text_up_to_the_limit_stays_whole(n: int) -> None:
    (found,), _, _ = read_documents([raw(text="word " * n)], PASSAGES, "stop")
    assert (found.document_id, count_words(found.text)) == ("row-1", n)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"user": 7}, ("7", None, None)),
        ({"user": 7.0}, ("7", None, None)),
        ({"user": "0010"}, ("0010", None, None)),
        ({"user": "1e3 "}, ("1e3", None, None)),
        ({"user": b"ann", "text": b"One."}, ("ann", None, None)),
        ({"title": 1984, "date": 1984}, ("ann", "1984", "1984")),
        ({"title": float("nan"), "date": float("nan")}, ("ann", None, None)),
        ({"user": "Jose\u0301", "title": "Cafe\u0301"}, ("Jos\u00e9", "Caf\u00e9", None)),
        ({"date": "03/04/2021"}, ("ann", None, "03/04/2021")),
    ],
)  # fmt: skip
def test_values_are_converted_and_ids_kept_as_typed(
    fields: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (found,), _, _ = read_documents([raw(**fields)], PASSAGES, "stop")
    assert (found.user_id, found.title, found.date) == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user": True}, "user"),
        ({"user": 7.5}, "user"),
        ({"user": 2.0**60}, "user"),
        ({"user": None}, "user"),
        ({"user": ["ann"]}, "user"),
        ({"user": b"\xff"}, "user"),
        ({"text": 7}, "text"),
        ({"text": ["One.", "Two."]}, "text"),
        ({"text": "half \ud83d"}, "text"),
        ({"title": "half \ud83d"}, "title"),
        ({"id": "half \ud83d"}, "id"),
        ({"title": {"a": 1}}, "title"),
        ({"date": "soon"}, "date"),
        ({"date": True}, "date"),
        ({"date": "2021-02-30"}, "date"),
    ],
)  # fmt: skip
def test_other_values_are_bad_records(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"1 of 1 records .*row 1, field {field}: expected"):
        read_documents([raw(**fields)], PASSAGES, "stop")


def test_texts_of_one_spelling_are_repeated_and_no_profile_of_themselves() -> None:
    text = "Zoë är här i byn och går till kaféet varje dag."
    spelled = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    records = [
        raw(n, text=t, user=u)
        for n, (t, u) in enumerate(zip(spelled, ("é", "e\u0301"), strict=True))
    ]
    documents, _, table = read_documents(records, PassageParams(min_words=1, max_words=99), "stop")
    assert [d.text for d in documents] == spelled[:1]
    assert numbers(table)["dropped: repeated text of its user"] == 1


def test_documents_that_no_example_uses_are_counted() -> None:
    topics = ["harbour ships", "railway trains", "forest timber", "school teachers", "army forts"]
    documents = [
        document(n, f"{user} wrote of {topics[n % 5]} part {n} again", user=user)
        for user, size in {"ann": 8, "bob": 8, "cid": 8, "dan": 8, "eve": 8, "few": 2}.items()
        for n in range(size)
    ]
    examples, left_out = draw_examples(
        documents, "Write: {{ items }} {{ opening }} {{ date }} {{ title }}", PARAMS, 5
    )
    table = count_records(pd.DataFrame(), documents, examples, left_out, PARAMS)
    found = numbers(table, "documents")
    used = {e.example_id for e in examples} | {d.document_id for e in examples for d in e.profile}
    assert found["read"] == len(documents) == 42
    assert found["used"] == len(used)
    assert found["dropped: user without examples: too few documents"] == 2
    assert found["dropped: user without examples: not drawn"] == 8
    assert sum(n for name, n in found.items() if name != "read") == 42


def dated(*dates: str | None) -> list[Document]:
    return [
        Document(document_id=f"d{n}", user_id="ann", text=f"Text {n}.", date=date)
        for n, date in enumerate(dates)
    ]


@pytest.mark.parametrize(
    ("dates", "order"),
    [
        (["2024", "1999", "2001"], "120"),
        (["2024-03-10", "2024-03-09T23:00:00", "2024-02"], "210"),
        (["2024-03-10T04:00:00+00:00", "2024-03-10T03:59:59+00:00"], "10"),
        (["2024-03-10T09:59:59+00:00", "2024-03-11"], "01"),
        (["2024-03-10T12:00:00+00:00", "2024-03-09"], "10"),
    ],
)  # fmt: skip
def test_clear_dates_are_ordered(dates: list[str], order: str) -> None:
    assert "".join(d.document_id[1] for _, d in order_in_time(dated(*dates))) == order


def test_equal_dates_are_no_doubt_and_neither_is_older() -> None:
    (one, _), (other, _) = order_in_time(dated("2024", "2024"))
    assert one == other


@pytest.mark.parametrize(
    "dates",
    [
        ("2024-03-10", "2024"),
        ("2024-03-10", "2024-03"),
        ("2024-03-10", "2024-03-10T10:00:00"),
        ("2024-03-10T10:00:00+00:00", "2024"),
        ("2024-03-10T10:00:00+00:00", "2024-03-10T20:00:00"),
        ("2023-03-10", "2024-03-10T10:00:00+00:00", "2022", "2024-03-11"),
        ("2024", "2024-12-31T23:00:00+00:00"),
        ("2024-03-10T10:00:00+00:00", "2024-03-11"),
        ("2024-03-10T11:59:59+00:00", "2024-03-09"),
    ],
)
def test_an_unclear_order_is_refused_by_name(dates: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"documents d\d \(.*\) and d\d \(.*\) of user ann: .*YYYY-MM-DD"
    ):
        order_in_time(dated(*dates))


def test_a_date_of_two_readings_is_refused() -> None:
    with pytest.raises(ValueError, match="document d1 of user ann has the date '03/04/2021'"):
        order_in_time(dated("2021-01-01", "03/04/2021"))


DATE = st.one_of(
    st.dates().map(str),
    st.dates().map(lambda d: str(d)[:4]),
    st.datetimes().map(lambda t: f"{t.isoformat()}+00:00"),
    st.datetimes().map(lambda t: t.isoformat()),
)


@given(st.lists(DATE, min_size=2, max_size=8))
def test_an_order_is_clear_for_every_pair_or_refused(dates: list[str]) -> None:
    documents = dated(*dates)
    pairs_clear = True
    for one in documents:
        for other in documents:
            try:
                order_in_time([one, other]) if one is not other else None
            except ValueError:
                pairs_clear = False
    try:
        places = [place for place, _ in order_in_time(documents)]
    except ValueError:
        assert not pairs_clear
    else:
        assert pairs_clear
        assert places == sorted(places)


def test_a_profile_is_older_than_its_target_in_utc() -> None:
    days = [f"2024-03-{day:02}T10:00:00+00:00" for day in range(1, 9)]
    records = [
        raw(n, text=f"Words about subject {n} here.", date=date)
        for n, date in enumerate([*days, "2024-03-11T01:00:00+09:00", "2024-03-10T23:00:00-05:00"])
    ]
    documents, _, _ = read_documents(records, PASSAGES, "stop")
    params = PARAMS.model_copy(
        update={"setting": "temporal", "test_share": 0.3, "max_profile_size": 20}
    )
    targets = {
        t.document.document_id: t
        for t in hold_out_latest(
            documents, "test", params.model_copy(update={"examples_per_user": {"test": 9}}), 1
        )
    }
    assert "row-8" in {d.document_id for d in targets["row-9"].profile}
    assert "row-9" not in {d.document_id for d in targets["row-8"].profile}


def test_the_remedy_names_the_parameter_that_works() -> None:
    examples = [example(1), example(2, split="test")]
    with pytest.raises(ValueError, match=r"longlamp\.setting=temporal"):
        check_examples(examples, "user", "longlamp")
    with pytest.raises(
        ValueError, match=r"raise longlamp\.max_reference_words or longlamp\.max_examples"
    ):
        check_examples([example(1)], "user", "longlamp")


def test_a_changed_list_of_forgotten_users_makes_ingestion_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "forgotten_users.json"
    entry = BackendDataset(
        backend="rest_pg.privacy.forgotten.ForgottenUsers", arguments={"filepath": str(path)}
    )
    assert "ann" not in entry.load()
    before = content_of(entry)
    entry.load().add("ann")
    assert "ann" in entry.load()
    assert content_of(entry) != before
    assert json.loads(path.read_text())["users"]
