"""Session parameters: checked by name, kept for the pipeline registry, logged to MLflow under flat names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog

from rest_pg.freshness import flatten
from rest_pg.runtime.known_parameters import nearest, runtime_names, unknown_names
from rest_pg.runtime.session import RunParameters

PACKAGE_NAME = __name__.partition(".")[0]
MLFLOW_PARAM_LENGTH = 500
"""MLflow cuts nothing: a longer value is refused, so it becomes a tag."""


class EnvironmentHook:
    """Refuses an environment that doesn't exist, before anything is read of it."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Raise ``ValueError`` with the nearest names."""
        loader: Any = context.config_loader
        check_environment(loader)


class ParametersHook:
    """Refuses unknown parameters; logs each under its own flat name; keeps them for the pipeline registry."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the parameters, and have the pipelines built by them.

        The command line may have built them already, before it knew the environment; and Kedro types
        parameters by the pipelines that it has when it is asked first.

        Raises:
            ValueError: a parameter doesn't exist, or a path or a name isn't a text.
        """
        loader: Any = context.config_loader
        check_names(loader)
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


def check_environment(loader: OmegaConfigLoader) -> None:
    """Raise ``ValueError`` unless the environment that was asked for has a directory."""
    conf = Path(loader.conf_source)
    if not loader.env or not conf.is_dir() or (conf / loader.env).is_dir():
        return
    names = sorted(p.name for p in conf.iterdir() if p.is_dir() and not p.name.startswith("."))
    near = nearest(loader.env, names)
    raise ValueError(
        f"there is no environment {loader.env!r}: {conf} has no such directory. "
        + (f"Did you mean {', '.join(near)}?" if near else f"It has {', '.join(names)}.")
    )


def check_names(loader: OmegaConfigLoader) -> None:
    """Raise ``ValueError`` for parameters that don't exist, and for paths and names that are numbers."""
    unknown = unknown_names(loader)
    if unknown:
        raise ValueError(
            f"no such parameter{'s' if len(unknown) > 1 else ''}: {' '.join(unknown)} Correct or remove "
            f"{'them' if len(unknown) > 1 else 'it'}."
        )
    given = loader.runtime_params or {}
    for name in sorted({r.name for r in runtime_names(Path(loader.conf_source)) if r.is_text}):
        value = given.get(name)
        if value is not None and not isinstance(value, str | Path):
            raise ValueError(
                f"{name} is a text, and {value!r} is none: YAML takes unquoted words such as 0123, 1e3, No and "
                f"12:30 for other things. Put it in quotes: --params \"{name}='…'\"."
            )
