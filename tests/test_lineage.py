import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from rest_pg import lineage
from rest_pg.runtime.session import RunParameters

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two finished runs, the older one of the whole method, and no project's database is touched."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(RunParameters, "values", None)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("rest-pg", artifact_location=str(tmp_path / "artifacts"))
    mlflow.set_experiment("rest-pg")
    yield str(tmp_path)
    mlflow.set_tracking_uri(before)


def test_without_a_run_it_says_what_to_do(finished: str) -> None:
    with pytest.raises(ValueError, match="make one, or name one by --run-id"):
        lineage.attach_lineage(PROJECT, None, None)
    (Path(finished) / "mlflow.db").write_bytes(b"no database" * 999)
    with pytest.raises(ValueError, match=r"mlflow.db is damaged \(file is not a database\)"):
        lineage.attach_lineage(PROJECT, None, None)


@pytest.mark.slow
def test_the_newest_run_gets_the_graph_as_a_site(finished: str) -> None:
    with mlflow.start_run(tags={"pipelines": "__default__"}) as whole:
        pass
    with mlflow.start_run(tags={"pipelines": "ship"}):
        pass
    assert lineage.attach_lineage(PROJECT, None, None) == whole.info.run_id
    site = Path(mlflow.artifacts.download_artifacts(f"runs:/{whole.info.run_id}/lineage"))
    assert "<html" in (site / "index.html").read_text(encoding="utf-8")
    graph = json.loads((site / "api" / "main").read_text(encoding="utf-8"))
    assert {"read_documents", "maximize", "policy_2"} <= {node["name"] for node in graph["nodes"]}
