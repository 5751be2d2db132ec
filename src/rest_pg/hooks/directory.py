"""Has a run work in the project's directory, wherever it was started."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

from rest_pg.runtime.session import RunParameters, use_project_logging


class DirectoryHook:
    """Works in the project's directory during a run, and returns to where a notebook was.

    Back-ends and templates name their files relative to the project.
    """

    def __init__(self) -> None:
        self._before: Path | None = None

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the project's directory, for what is loaded without a run, and log as the project says."""
        RunParameters.project = Path(context.project_path)
        use_project_logging(RunParameters.project)

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any]) -> Generator[None, Any, Any]:
        """Go to the project; return at once if the run is refused."""
        self._before = Path.cwd()
        os.chdir(run_params.get("project_path") or self._before)
        try:
            return (yield)
        except BaseException:
            self._return()
            raise

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Return to where the run was started."""
        self._return()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Return to where the run was started."""
        self._return()

    def _return(self) -> None:
        if self._before is not None:
            os.chdir(self._before)
        self._before = None
