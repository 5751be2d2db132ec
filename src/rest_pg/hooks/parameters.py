"""Session parameters: kept for the pipeline registry, logged to MLflow under flat names."""

from __future__ import annotations

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog

from rest_pg.freshness import flatten
from rest_pg.runtime.session import RunParameters

PACKAGE_NAME = __name__.partition(".")[0]
MLFLOW_PARAM_LENGTH = 500
"""MLflow cuts nothing: a longer value is refused, so it becomes a tag."""


class ParametersHook:
    """Logs every parameter under its own flat name; keeps them for the pipeline registry."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the parameters, and have the pipelines built by them.

        The command line may have built them already, before it knew the environment; and Kedro types
        parameters by the pipelines that it has when it is asked first.
        """
        RunParameters.values = dict(context.config_loader["parameters"])
        pipelines.configure(f"{PACKAGE_NAME}.pipeline_registry")
        RunParameters.values = dict(context.params)

    @hook_impl
    def after_catalog_created(self, catalog: DataCatalog) -> None:
        """Put each training seed of the study where its namespace looks for it."""
        for seed in (RunParameters.values or {}).get("study", {}).get("seeds", ()):
            catalog[f"params:study_seeds.{seed}"] = seed

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Log the parameters; in a run that goes on, a changed one becomes a tag."""
        run = mlflow.active_run()
        if run is None:
            return
        known = mlflow.get_run(run.info.run_id).data.params
        for name, value in flatten(RunParameters.values or {}).items():
            text = str(value)
            if len(text) > MLFLOW_PARAM_LENGTH or known.get(name, text) != text:
                mlflow.set_tag(f"param.{name}", text)
            elif name not in known:
                mlflow.log_param(name, text)
