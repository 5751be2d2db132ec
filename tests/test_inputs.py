import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import example
from kedro.io import DataCatalog

from rest_pg.datasets import RecordsDataset
from rest_pg.hooks.mlflow_inputs import InputsHook
from rest_pg.records import TrainingExample


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("inputs")
    yield tmp_path / "mlflow.db"
    while mlflow.active_run():
        mlflow.end_run()


def test_a_run_lists_its_examples_by_split_and_what_was_learnt(
    database: Path, tmp_path: Path
) -> None:
    catalog = DataCatalog()
    place = str(tmp_path / "examples.jsonl")
    catalog["examples"] = RecordsDataset(filepath=place, record="rest_pg.records.Example")
    examples = [example(1), example(2), example(3, split="test", user_id="bob")]
    learnt = [TrainingExample(example_id="e1", prompt="p", completion="c")]
    catalog.save("examples", examples)
    hook = InputsHook()
    hook.after_catalog_created(catalog)
    hook.after_dataset_saved("examples", examples)  # without a run there is nothing to do
    with mlflow.start_run() as run:
        hook.after_dataset_saved("examples", examples)
        hook.after_dataset_loaded("examples", examples)
        hook.after_dataset_saved("sft_examples", learnt)
        hook.after_dataset_saved("seed", 7)
    inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    shown = {
        (i.dataset.name, i.tags[0].value, json.loads(i.dataset.profile)["num_rows"]) for i in inputs
    }
    assert shown == {
        ("examples", "train", 2),
        ("examples", "test", 1),
        ("sft_examples", "training", 1),
    }
    assert len(inputs) == 3
    assert (
        "examples.jsonl" in next(i for i in inputs if i.dataset.name == "examples").dataset.source
    )
    assert len({i.dataset.digest for i in inputs}) == 3
    # checksums and sizes only
    assert b"We repaired the pier" not in database.read_bytes()
    assert b"bob" not in database.read_bytes()
