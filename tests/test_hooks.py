import mlflow
import pytest

from rest_pg import hooks
from rest_pg.hooks import MlflowLastHook, MlflowRunHook, ParametersHook, RunParameters


@pytest.fixture
def store(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("t", artifact_location=str(tmp_path / "artifacts"))
    mlflow.set_experiment("t")
    yield
    while mlflow.active_run():
        mlflow.end_run()


def test_parameters_are_flat_and_a_changed_one_becomes_a_tag(store, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", {"sft": {"epochs": 2}, "long": "x" * 900})
    with mlflow.start_run() as run:
        ParametersHook().before_pipeline_run()
    monkeypatch.setattr(RunParameters, "values", {"sft": {"epochs": 3}})
    with mlflow.start_run(run_id=run.info.run_id):
        ParametersHook().before_pipeline_run()
    data = mlflow.get_run(run.info.run_id).data
    assert data.params == {"sft.epochs": "2"}
    assert data.tags["param.sft.epochs"] == "3"
    assert data.tags["param.long"] == "x" * 900


def test_a_failure_says_how_to_go_on_and_leaves_no_run_open(store, caplog) -> None:
    run = mlflow.start_run()
    with caplog.at_level("ERROR", logger=hooks.__name__):
        MlflowRunHook().on_pipeline_error(
            ValueError("no disk"),
            {"env": "own", "pipeline_names": ["sft"], "runtime_params": {"seed": 3}},
        )
    MlflowLastHook().on_pipeline_error()
    assert (
        "kedro run --only-missing-outputs --env own --pipelines sft "
        f"--params seed=3,mlflow_run_id={run.info.run_id}"
    ) in caplog.text
    assert mlflow.active_run() is None
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"
