"""Names the MLflow run, leaves none open, and prints the command that resumes a failed run."""

from __future__ import annotations

import logging
from typing import Any

import mlflow
from kedro.framework.hooks import hook_impl

from rest_pg.hooks.interrupt import InterruptedRun

logger = logging.getLogger(__name__)


class MlflowRunHook:
    """Names the MLflow run, leaves none open in this process, and says how to go on after a failure."""

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Name the run: a killed one is gone on with by its id."""
        run = mlflow.active_run()
        if run is not None:
            logger.info("MLflow run %s, mlflow_run_id=%s", run.info.run_name, run.info.run_id)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Close what is still open."""
        _end_runs("FINISHED")

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, error: Exception, run_params: dict[str, Any]) -> None:
        """Say what is kept, and the command that continues in the same MLflow run."""
        run = mlflow.active_run()
        words = ["kedro run --only-missing-outputs"]
        if run_params.get("env"):
            words.append(f"--env {run_params['env']}")
        if run_params.get("pipeline_names"):
            words.append(f"--pipelines {','.join(run_params['pipeline_names'])}")
        given = dict(run_params.get("runtime_params") or {})
        if run is not None:
            given["mlflow_run_id"] = run.info.run_id
        if given:
            words.append("--params " + ",".join(f"{k}={v}" for k, v in given.items()))
        logger.error(
            "%s\nEvery finished dataset is kept below data/. When the cause is mended, go on with:"
            "\n  %s",
            error,
            " ".join(words),
        )


class MlflowLastHook:
    """Closes what kedro-mlflow left open after a failure; it must have had its turn before."""

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Close every run as failed, or as stopped."""
        _end_runs("KILLED" if isinstance(error, InterruptedRun) else "FAILED")


def _end_runs(status: str) -> None:
    while mlflow.active_run() is not None:
        mlflow.end_run(status)
