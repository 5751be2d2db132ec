from pathlib import Path

import pytest
from conftest import build_policy, document
from kedro.io.core import DatasetError, Version

from rest_pg.datasets import BackendDataset, PolicyDataset, RecordsDataset

DOCUMENT = "rest_pg.records.Document"


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    dataset = RecordsDataset(
        filepath=str(tmp_path / "d.jsonl"), record=DOCUMENT, version=Version(None, "v1")
    )
    assert not dataset.exists()
    documents = [document(1, "line\u2028\x00 separator \u05d0"), document(2, "b", date="1900")]
    dataset.save(documents)
    assert dataset.exists()
    assert dataset.load() == documents
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["d.jsonl"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    dataset = RecordsDataset(filepath=str(path), record=DOCUMENT)
    dataset.save([document(1, "a"), document(2, "b")])
    path.write_text(path.read_text().replace('"b"', "7"))
    with pytest.raises(DatasetError, match=r"line 2, text: .*found '7'"):
        dataset.load()


def test_a_policy_is_versioned_and_must_be_whole(tmp_path: Path) -> None:
    dataset = PolicyDataset(filepath=str(tmp_path / "policy"), version=Version(None, "v1"))
    assert not dataset.exists()
    dataset.save(build_policy(tmp_path / "made"))
    path = dataset.load().path
    assert path.parent.name == "v1"
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"model.safetensors holds \d+ bytes"):
        dataset.load()
    (path / "complete.json").unlink()
    assert not dataset.exists()


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    from rest_pg.records import PolicyCheckpoint

    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="is not a model directory"):
        PolicyDataset(filepath=str(tmp_path / "p")).save(PolicyCheckpoint(tmp_path / "none"))


def test_a_backend_names_the_argument_at_fault() -> None:
    dataset = BackendDataset(
        backend="rest_pg.backends.shared_prefix.SharedPrefixGenerator", arguments={"rows": 3}
    )
    with pytest.raises(DatasetError, match="unexpected keyword argument 'rows'"):
        dataset.load()
