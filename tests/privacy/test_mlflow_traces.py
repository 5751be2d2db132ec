import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.data.pandas_dataset import from_pandas
from mlflow.tracking import MlflowClient
from support.forgetting import Project, Written, forget_in

from rest_pg.checksums import mark_complete

ANN = ["The harbour lies behind seven green hills and a wall.", "Ships.", "1", "ann goes home"]
BOB = ["We planted an orchard of old apple trees last spring.", "Ships and ann", "12", "line-1"]
VERSION = "2026-01-01T00.00.00.000Z"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, database: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project")
    made.run(Written({"ann": ANN, "bob": BOB}, VERSION))
    shutil.copy(database, made.root)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{made.root}/mlflow.db")
    location = str(made.root / "mlartifacts")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("tried", location))
    yield made
    mlflow.set_tracking_uri(before)


def log_run(project: Project, version: str = VERSION, *, tags: bool = True) -> str:
    """Log what a run logs: its data, a table of samples, a report, parameters, tags."""
    with mlflow.start_run() as run:
        source = project.root / "data/03_primary/examples.jsonl" / version / "examples.jsonl"
        frame = pd.DataFrame({"example_id": [version]})
        mlflow.log_input(from_pandas(frame, source=str(source), name="examples"), context="train")
        samples = {"example": ["line-1", "line-5"], "sample": [0, 0], "response": ["one", "two"]}
        mlflow.log_table(samples, "samples/iteration_1.json")
        mlflow.log_text("<p>a report</p>", "report.html")
        mlflow.log_text("<p>seven green hills and a wall</p>", "other.html")
        mlflow.log_params({"forget.user_id": "ann", "n": "1", "name": "ann"})
        if tags:
            mlflow.set_tags({"user_id": "ann", "mlflow.note.content": ANN[0], "about": BOB[0]})
    return run.info.run_id


def table_of(project: Project, run_id: str) -> list[str]:
    (path,) = project.root.glob(f"mlartifacts/{run_id}/artifacts/samples/iteration_1.json")
    return [row[0] for row in json.loads(path.read_text())["data"]]


def test_a_dry_run_leaves_the_database_as_it_is(project: Project) -> None:
    log_run(project)
    before = project.state()
    done, said = forget_in(project, "ann", yes=False)
    assert done
    assert "1 entries" in said
    assert project.state() == before


def test_artifacts_in_an_object_store_are_changed_there(project: Project) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    experiment = mlflow.create_experiment("far", "memory://bucket/artifacts")
    run = MlflowClient().create_run(experiment)
    place = f"/bucket/artifacts/{run.info.run_id}/artifacts"
    table = {"columns": ["user", "response"], "data": [["ann", "x"], ["bob", "y"]]}
    store.pipe_file(f"{place}/samples/a.json", json.dumps(table).encode())
    store.pipe_file(f"{place}/a.html", " ".join(ANN).encode())
    done, said = forget_in(project, "ann")
    assert done, said
    assert json.loads(store.cat_file(f"{place}/samples/a.json"))["data"] == [["bob", "y"]]
    assert not store.exists(f"{place}/a.html")


def test_tables_pages_parameters_and_tags_of_runs(project: Project) -> None:
    run_id = log_run(project)
    done, said = forget_in(project, "ann")
    assert done, said
    assert table_of(project, run_id) == ["line-5"]
    artifacts = project.root / "mlartifacts" / run_id / "artifacts"
    assert not (artifacts / "report.html").exists()
    assert (artifacts / "other.html").exists()  # a phrase of seven words is nobody's for certain
    found = mlflow.get_run(run_id).data
    assert found.params == {"n": "1", "name": "ann"}
    assert "user_id" not in found.tags
    assert "mlflow.note.content" not in found.tags
    assert found.tags["about"] == BOB[0]
    assert b"seven green hills" not in (project.root / "mlflow.db").read_bytes()
    assert "mlflow.db: the id" in said
    project.check_without("ann")


def test_a_table_is_of_the_data_set_that_its_run_was_given(project: Project) -> None:
    second = "2026-01-02T00.00.00.000Z"
    project.run(Written({"bob": BOB, "ann": ANN}, second))
    first_run, second_run = log_run(project), log_run(project, second)
    assert forget_in(project, "ann")[0]
    assert table_of(project, first_run) == ["line-5"]
    assert table_of(project, second_run) == ["line-1"]


def test_traces_go_by_user_and_by_text_and_cannot_be_read_from_the_file(project: Project) -> None:
    for user, text in (("ann", "hm"), ("bob", ANN[0]), ("bob", BOB[0]), ("anna", "Ships.")):
        with mlflow.start_span("answer") as span:
            span.set_inputs([{"user": user, "documents": [{"text": text}]}])
    mlflow.flush_trace_async_logging()
    assert forget_in(project, "ann")[0]
    left = mlflow.search_traces(return_type="list", include_spans=True)
    inputs = sorted(trace.data.spans[0].inputs[0]["documents"][0]["text"] for trace in left)
    assert inputs == ["Ships.", BOB[0]]
    assert ANN[0].encode() not in (project.root / "mlflow.db").read_bytes()


def test_a_moved_project_never_touches_the_one_it_was_copied_from(
    project: Project, tmp_path: Path
) -> None:
    run_id = log_run(project)
    copy = project.copy_to(tmp_path / "copy")
    # MLflow has put the first project's address into the environment: it is another project's all the same
    assert str(project.root) in os.environ["MLFLOW_TRACKING_URI"]
    before = project.state()
    done, said = forget_in(copy, "ann")
    assert done, said
    assert project.state() == before
    assert table_of(copy, run_id) == ["line-5"]
    assert table_of(project, run_id) == ["line-1", "line-5"]
    # without its own artifacts, the copy's database leads to the other project
    bare = project.copy_to(tmp_path / "bare")
    shutil.rmtree(bare.root / "mlartifacts")
    assert forget_in(bare, "ann")[0]
    assert project.state() == before


def test_a_locked_database_is_named_and_the_rest_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = log_run(project, tags=False)  # MLflow itself waits for 20 seconds
    lock = sqlite3.connect(project.root / "mlflow.db")
    with monkeypatch.context() as patch:
        real = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.1}))
        lock.execute("BEGIN IMMEDIATE")
        done, said = forget_in(project, "ann")
        lock.rollback()
    lock.close()
    assert not done
    assert "database is locked" in said
    assert "mlflow.db" in said.split("Not done.")[1]
    project.check_without("ann")
    done, said = forget_in(project, "ann")
    assert done, said
    assert "forget.user_id" not in mlflow.get_run(run_id).data.params


def test_a_damaged_database_is_named_and_the_rest_goes_on(project: Project) -> None:
    log_run(project)
    mlflow.set_tracking_uri("sqlite:///:memory:")
    damaged = project.copy_to(project.root.parent / "damaged")
    (damaged.root / "mlflow.db").write_bytes(b"no database at all" * 1000)
    done, said = forget_in(damaged, "ann")
    assert not done
    assert f"{damaged.root}/mlflow.db can't be read" in said
    damaged.check_without("ann")


def register(project: Project) -> Path:
    """Register policy_0 as a model, as the ship pipeline does."""
    (policy,) = [p for p in project.policies if "policy_0" in str(p)]
    with mlflow.start_run() as run:
        uri = f"{run.info.artifact_uri}/served"
    directory = Path(uri)
    shutil.copytree(policy, directory / "artifacts" / "policy")
    mark_complete(directory / "artifacts" / "policy")
    digests = [hashlib.sha256(user.encode()).hexdigest()[:16] for user in ("ann", "bob")]
    scores = pd.DataFrame({"user": digests, "example": ["a", "b"], "reward": [0.1, 0.2]})
    scores.to_parquet(directory / "artifacts" / "validation.parquet", index=False)
    table = {"columns": ["user", "request"], "data": [["ann", "x"], ["bob", "y"]]}
    (directory / "input_example.json").write_text(json.dumps(table))
    client = MlflowClient()
    client.create_registered_model("writer's own")
    client.create_model_version("writer's own", str(directory), run.info.run_id)
    return directory


def test_registered_models_lose_rows_and_are_retired_with_their_policy(project: Project) -> None:
    directory = register(project)
    done, said = forget_in(project, "ann")
    assert done, said
    assert f"{directory.relative_to(project.root)}/artifacts/policy: stays" in said
    assert (directory / "artifacts/policy/tokenizer.json").exists()
    assert pd.read_parquet(directory / "artifacts/validation.parquet")["reward"].tolist() == [0.2]
    assert json.loads((directory / "input_example.json").read_text())["data"] == [["bob", "y"]]
    assert len(MlflowClient().search_model_versions()) == 1
    done, said = forget_in(project, "ann", retire=True)
    assert done, said
    assert not (directory / "artifacts/policy").exists()
    assert MlflowClient().search_model_versions() == []
    assert [p for p in project.policies if p.exists()] == [
        p for p in project.policies if "base" in str(p)
    ]
