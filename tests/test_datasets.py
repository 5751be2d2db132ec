import json
from pathlib import Path

import mlflow
import pytest
from conftest import build_policy, document
from kedro.io.core import DatasetError, Version

from rest_pg.datasets import (
    BackendDataset,
    PolicyDataset,
    RecordsDataset,
    SamplesTableDataset,
)

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


def test_a_samples_table_is_logged_once_per_run(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("tables", artifact_location=str(tmp_path / "artifacts"))
    dataset = SamplesTableDataset(artifact_file="samples/iteration_1.json")
    dataset.save({"reward": [0.5]})  # no run, nothing to log to
    with mlflow.start_run(experiment_id=experiment):
        dataset.save({"reward": [0.5, 0.25]})
        dataset.save({"reward": [0.5, 0.25]})
    (table,) = (tmp_path / "artifacts").rglob("iteration_1.json")
    assert json.loads(table.read_text()) == {"columns": ["reward"], "data": [[0.5], [0.25]]}
    with pytest.raises(DatasetError, match="never read"):
        dataset.load()
