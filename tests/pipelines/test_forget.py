import json
import mailbox
from email.message import EmailMessage
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from rest_pg.backends.embeddings import digest
from rest_pg.checksums import check_seal, mark_complete
from rest_pg.config import ForgetParams
from rest_pg.datasets import RecordsDataset, SealedDataset
from rest_pg.pipelines.forget.nodes import forget_user, list_policies
from rest_pg.records import Document

OWN = "The secret harbour lies behind seven green hills."
OTHER = "Ships come and go."


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForgetParams:
    """A project of two users, ann and bob, with a bit of everything that runs leave behind."""
    monkeypatch.chdir(tmp_path)
    write_lines("data/01_raw/documents.jsonl", {"user": "ann", "text": OWN}, {"user": "bob"})
    documents = [
        Document(document_id="1", user_id="ann", text=OWN),
        Document(document_id="2", user_id="bob", text=OTHER),
    ]
    records = "rest_pg.records.Document"
    RecordsDataset(filepath="data/02_intermediate/documents.jsonl", record=records).save(documents)
    profile = [{"document_id": "1", "user_id": "ann", "text": OWN}]
    example = {"example_id": "a/1", "user_id": "ann", "split": "train", "reference": "Mine."}
    write_lines("data/03_primary/examples.jsonl", example | {"profile": profile})
    sample = {"example_id": "a/1", "text": "A harbour."}
    write_lines(
        "data/07_model_output/i/scored_samples.jsonl",
        {"sample": sample, "score": {"reward": 0.5}},
        {"sample": sample | {"example_id": "b/1"}, "score": {"reward": 0.1}},
    )
    table = {"type": "pandas.ParquetDataset"}
    SealedDataset(filepath="data/08_reporting/metrics.parquet", dataset=table).save(
        pd.DataFrame({"user_id": ["ann", "bob"], "reward": [0.1, 0.2]})
    )
    SealedDataset(filepath="data/04_feature/embeddings/m/1.parquet", dataset=table).save(
        pd.DataFrame({"text": [digest(OWN), digest(OTHER)], "embedding": [[1.0], [2.0]]})
    )
    text = {"type": "text.TextDataset"}
    page = f"<p>The secret\nharbour lies behind seven green</p> {OTHER}"
    SealedDataset(filepath="data/08_reporting/report.html", dataset=text).save(page)
    SealedDataset(filepath="data/08_reporting/other.html", dataset=text).save(OTHER)
    write_lines("mlartifacts/1/samples/i.json", {"columns": ["example"], "data": [["a/1"]]})
    (tmp_path / "data/07_model_output/shards/x").mkdir(parents=True)
    for name in ("base_policy", "policy_0"):
        policy = tmp_path / "data/06_models" / name / "v1" / name
        policy.mkdir(parents=True)
        mark_complete(policy)
    return ForgetParams(user_id="ann")


def write_lines(name: str, *records: dict) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def everything() -> bytes:
    return b"".join(p.read_bytes() for p in Path().rglob("*") if p.is_file())


def test_what_is_a_users_goes_and_what_is_anothers_stays_whole(params: ForgetParams) -> None:
    policies = list_policies(params)
    assert policies["policy"].tolist() == ["data/06_models/policy_0/v1/policy_0"]
    done = forget_user(params, policies).set_index("path")
    for trace in (b"ann", b"secret", b"a/1", b"Mine", digest(OWN).encode()):
        assert trace not in everything(), trace
    left = RecordsDataset(
        filepath="data/02_intermediate/documents.jsonl", record="rest_pg.records.Document"
    ).load()
    assert [d.text for d in left] == [OTHER]
    for name in ("08_reporting/metrics.parquet", "04_feature/embeddings/m/1.parquet"):
        check_seal(Path("data", name))
        assert len(pd.read_parquet(Path("data", name))) == 1
    check_seal(Path("data/08_reporting/other.html"))
    assert done.loc["data/08_reporting/report.html", "done"] == "file removed"
    assert done.loc["data/07_model_output/i/scored_samples.jsonl", "records"] == 1
    assert not Path("data/07_model_output/shards").exists()


def test_a_run_s_files_go_at_any_depth_and_a_persons_are_named(params: ForgetParams) -> None:
    runs = [
        Path("run.log"),
        Path("logs/info.log"),
        Path("mlartifacts/1/r/artifacts/docs/x.txt"),  # named as a part of the project at its top
        Path("data/08_reporting/tests/table.csv"),
    ]
    persons = [Path("README.md"), Path("notebooks/mine.ipynb"), Path("data/01_raw/own/letter.txt")]
    for path in [*runs, *persons]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Of ann: {OWN}", encoding="utf-8")
    closed = Path("data/01_raw/mails.zip")
    closed.write_bytes(b"PK")
    for name in ("conf", "docs", "src"):
        Path(name).mkdir()
        Path(name, "ann.md").write_text("ann", encoding="utf-8")
    done = forget_user(params, list_policies(params)).set_index("path")["done"]
    assert not any(path.exists() for path in runs)
    assert all(path.exists() for path in [*persons, closed])
    assert set(done[done == "left"].index) == {str(path) for path in persons}
    assert done[str(closed)] == "not searched"
    assert not any(name.startswith(("conf", "docs", "src")) for name in done.index)


def test_traces_of_a_users_answers_go_too(params: ForgetParams) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
    mlflow.set_experiment("answers")
    try:
        for user, text in (("ann", OWN), ("bob", OTHER)):
            with mlflow.start_span("answer") as span:
                span.set_inputs({"user": user, "documents": [{"text": f'"{text}"'}]})
        mlflow.flush_trace_async_logging()
        assert OWN.encode() in Path("mlflow.db").read_bytes()
        done = forget_user(params, list_policies(params)).set_index("path")
        assert done.loc["mlflow.db", "records"] == 1
        left = Path("mlflow.db").read_bytes()
        assert OWN.encode() not in left
        assert OTHER.encode() in left
    finally:
        mlflow.set_tracking_uri(before)


def test_nobody_and_someone_unknown_are_refused_and_nothing_is_touched(
    params: ForgetParams,
) -> None:
    before = everything()
    with pytest.raises(ValueError, match="add --params user_id=ID"):
        list_policies(ForgetParams(user_id=None))
    with pytest.raises(ValueError, match=r"'eve' is in no file .* 2 users \(ann, bob"):
        list_policies(ForgetParams(user_id="eve"))
    assert everything() == before


def test_a_number_is_an_id_and_mail_is_taken_out_of_its_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines("data/01_raw/d.jsonl", {"user": "42", "text": "x"}, {"user": "421", "text": "y"})
    params = ForgetParams(user_id=42)
    forget_user(params, list_policies(params))
    assert Path("data/01_raw/d.jsonl").read_text() == '{"user": "421", "text": "y"}\n'
    box = mailbox.mbox("data/01_raw/own.mbox")
    for sender in ("Ann <Ann@x.org>", "bob@x.org"):
        mail = EmailMessage()
        mail["From"] = sender
        mail.set_content(f"by {sender.split('@')[0]}")
        box.add(mail)
    box.close()
    params = ForgetParams(user_id="ann@x.org")
    forget_user(params, list_policies(params))
    assert len(mailbox.mbox("data/01_raw/own.mbox")) == 1
    assert b"Ann" not in Path("data/01_raw/own.mbox").read_bytes()
