"""What only MLflow's pages hold: tables of samples, a run's description, a run for each system of a study."""

from __future__ import annotations

from typing import Any

import mlflow
from kedro.io import AbstractDataset, DatasetError
from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from rest_pg.records import SystemCurve


class SamplesTableDataset(AbstractDataset[dict[str, list[Any]], None]):
    """A table of samples in the MLflow run at hand, which its page shows and filters.

    In a run that goes on, a table that is there already is left as it is.
    """

    def __init__(self, *, artifact_file: str, metadata: dict[str, Any] | None = None) -> None:
        """Name the table's file among the run's artifacts."""
        self._artifact_file = artifact_file
        self.metadata = metadata

    def load(self) -> None:
        """Raise ``DatasetError``: tables are for people."""
        raise DatasetError(f"{self._artifact_file} is written for MLflow's page, and never read")

    def save(self, data: dict[str, list[Any]]) -> None:
        """Log the table by its columns; without an MLflow run there is nothing to do."""
        run = mlflow.active_run()
        if run is None:
            return
        if not self._exists():
            mlflow.log_table(data, self._artifact_file)

    def _exists(self) -> bool:
        run = mlflow.active_run()
        if run is None:
            return False
        logged = mlflow.get_run(run.info.run_id).data.tags.get("mlflow.loggedArtifacts", "")
        return self._artifact_file in logged

    def _describe(self) -> dict[str, Any]:
        return {"artifact_file": self._artifact_file}


class DescriptionDataset(AbstractDataset[str, None]):
    """The description that the page of the MLflow run at hand shows, as Markdown."""

    TAG = "mlflow.note.content"

    def __init__(self, *, metadata: dict[str, Any] | None = None) -> None:
        """Take no argument: a run has one description."""
        self.metadata = metadata

    def load(self) -> None:
        """Raise ``DatasetError``: descriptions are for people."""
        raise DatasetError("a run's description is written for MLflow's page, and never read")

    def save(self, data: str) -> None:
        """Describe the run; without one there is nothing to do."""
        if mlflow.active_run() is not None:
            mlflow.set_tag(self.TAG, data)

    def _exists(self) -> bool:
        run = mlflow.active_run()
        return run is not None and self.TAG in mlflow.get_run(run.info.run_id).data.tags

    def _describe(self) -> dict[str, Any]:
        return {"tag": self.TAG}


class SystemRunsDataset(AbstractDataset[dict[str, list[SystemCurve]], None]):
    """A run for each system, below the MLflow run at hand: charts then have a curve per system.

    In a run that goes on, the systems' runs are written anew.
    """

    TAG = "system"

    def __init__(self, *, metadata: dict[str, Any] | None = None) -> None:
        """Take no argument: the runs are named by their systems."""
        self.metadata = metadata

    def load(self) -> None:
        """Raise ``DatasetError``: charts are for people."""
        raise DatasetError("the systems' runs are written for MLflow's charts, and never read")

    def save(self, data: dict[str, list[SystemCurve]]) -> None:
        """Log every system's curves; without an MLflow run there is nothing to do."""
        run = mlflow.active_run()
        if run is None:
            return
        client = MlflowClient()
        for known in self._runs(run):
            client.delete_run(known.info.run_id)
        for system, curves in data.items():
            tags = {MLFLOW_PARENT_RUN_ID: run.info.run_id, self.TAG: system}
            own = client.create_run(run.info.experiment_id, run_name=system, tags=tags)
            points = [
                Metric(curve.metric, value, own.info.start_time, step)
                for curve in curves
                for step, value in curve.points
            ]
            client.log_batch(own.info.run_id, metrics=points)
            client.set_terminated(own.info.run_id)

    def _exists(self) -> bool:
        run = mlflow.active_run()
        return run is not None and bool(self._runs(run))

    def _runs(self, run: Run) -> list[Run]:
        below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}' and tags.`{self.TAG}` != ''"
        return list(MlflowClient().search_runs([run.info.experiment_id], below))

    def _describe(self) -> dict[str, Any]:
        return {"tag": self.TAG}
