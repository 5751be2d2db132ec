"""Settles MLflow's database, names the MLflow run, leaves none of ours open, and prints how to resume."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

from rest_pg.hooks.interrupt import InterruptedRun
from rest_pg.runtime.command_line import resume_command
from rest_pg.runtime.mlflow_store import check_database, mlflow_settings

logger = logging.getLogger(__name__)


class MlflowStoreHook:
    """Settles the database and the experiment before kedro-mlflow opens them.

    They are those of the environment, else the project's, wherever the command was typed.
    """

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Put the settings where kedro-mlflow reads them; raise ``ValueError`` for a damaged database."""
        ForeignRun.note()
        if ForeignRun.run_id is None:  # else kedro-mlflow writes where that run is
            loader: Any = context.config_loader
            settings = mlflow_settings(loader, Path(context.project_path))
            check_database(settings)
            loader["mlflow"] = settings


class ForeignRun:
    """The MLflow run that was open before the session, in a notebook: it is its owner's to close."""

    run_id: str | None = None

    @classmethod
    def note(cls) -> None:
        """Remember which run is open now."""
        run = mlflow.active_run()
        cls.run_id = None if run is None else run.info.run_id

    @classmethod
    def ours(cls) -> str | None:
        """Return the id of the open run, if this session opened it."""
        run = mlflow.active_run()
        return None if run is None or run.info.run_id == cls.run_id else str(run.info.run_id)


class MlflowRunHook:
    """Names the MLflow run, leaves none of ours open in this process, and says how to resume after a failure."""

    def __init__(self) -> None:
        self._conf_source: str | None = None
        self._directory = Path.cwd()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep where the command was typed, and a configuration that isn't the project's."""
        conf = Path(context.config_loader.conf_source)
        standard = Path(context.project_path, "conf")
        self._conf_source = None if conf == standard else str(context.config_loader.conf_source)
        self._directory = Path.cwd()

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Name the run: a killed one is resumed by its id."""
        run = mlflow.active_run()
        if run is not None:
            logger.info("MLflow run %s, mlflow_run_id=%s", run.info.run_name, run.info.run_id)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Close what is still open of ours."""
        _end_runs("FINISHED")

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, error: Exception, run_params: dict[str, Any]) -> None:
        """Say what is kept, and the command that continues in the same MLflow run.

        The error itself is told after it, once, where it is caught.
        """
        command, left = resume_command(
            run_params,
            run_id=ForeignRun.ours(),
            conf_source=self._conf_source,
            runner_params=_runner_params(),
            directory=self._directory,
        )
        text = f"\nEvery finished dataset is kept below data/. When the cause is mended, resume with:\n  {command}"
        if left:
            text += "\nafter adding to conf/local/parameters.yml what --params can't carry:\n  "
            text += "\n  ".join(left)
        logger.error("%s", text.lstrip("\n"))


class MlflowLastHook:
    """Closes what kedro-mlflow left open after a failure; it must have had its turn before."""

    @hook_impl(wrapper=True)
    def before_pipeline_run(self) -> Generator[None, Any, Any]:
        """Close the run as failed if it is refused before its first node: Kedro tells no hook of that."""
        try:
            return (yield)
        except BaseException:
            _end_runs("FAILED")
            raise

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Close every run of ours as failed, or as stopped."""
        _end_runs("KILLED" if isinstance(error, InterruptedRun) else "FAILED")


def _end_runs(status: str) -> None:
    while ForeignRun.ours() is not None:
        mlflow.end_run(status)


def _runner_params() -> dict[str, Any]:
    """Return the runner's arguments from the command line: Kedro tells hooks the runner's name alone."""
    context = click.get_current_context(silent=True)
    typed = {} if context is None else context.params
    given = dict(typed.get("runner_params") or {})
    return given | ({"is_async": True} if typed.get("is_async") else {})
