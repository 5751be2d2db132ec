"""Tells every dataset what makes it now, and tags the MLflow run with code, data and policies."""

from __future__ import annotations

import logging
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from rest_pg.checksums import policy_fingerprint
from rest_pg.freshness import (
    Origin,
    content_of,
    origins_of,
    stale_reasons,
    stored_content,
    stored_origin,
)
from rest_pg.records import PolicyCheckpoint
from rest_pg.runtime.session import RunParameters

logger = logging.getLogger(__name__)


class FreshnessHook:
    """Has every dataset know what makes it now; what something else made counts as missing.

    What is noted beside an output is what really went in: where another run's data were loaded, that shows.
    """

    def __init__(self) -> None:
        self._catalog = DataCatalog()
        self._origins: dict[str, Origin] = {}
        self._loaded: dict[str, tuple[str, str | None]] = {}
        """Of each dataset that was loaded: the digest of its origin, and its checksum."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Compare what is there with what would make it; say what is stale, and why."""
        self._catalog, self._loaded = catalog, {}
        self._origins = origins_of(pipeline, catalog)
        stale = stale_reasons(pipeline, catalog, self._origins)
        for node in pipeline.nodes:
            for output in node.outputs:
                self._tell(catalog.get(output), self._origins[node.name], node.name in stale)
        if run_params.get("only_missing_outputs"):
            self._report(stale)
        self._warn_of_inputs(pipeline, catalog)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Note what was really loaded."""
        dataset = self._catalog.get(dataset_name)
        if stored_origin(dataset) is not None:
            self._loaded[dataset_name] = content_of(dataset), stored_content(dataset)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Have the dataset say what it was really made from."""
        dataset: Any = self._catalog.get(dataset_name)
        expected = self._origins.get(node.name)
        if expected is None or not hasattr(dataset, "origin"):
            return
        loaded = {name: self._loaded[name] for name in node.inputs if name in self._loaded}
        dataset.origin = replace(
            expected,
            inputs={**expected.inputs, **{name: origin for name, (origin, _) in loaded.items()}},
            contents={name: content for name, (_, content) in loaded.items() if content},
        )
        dataset.is_stale = False

    def _tell(self, dataset: Any, origin: Origin, stale: bool) -> None:
        if hasattr(dataset, "origin"):
            dataset.origin, dataset.is_stale = origin, stale
        elif stale and dataset is not None:  # curves and tables of MLflow can't say what made them
            dataset._exists = lambda: False

    def _warn_of_inputs(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Say which inputs another part of the method would now make otherwise."""
        whole = pipelines.get("__default__", Pipeline([]))
        taken = pipeline.inputs() & whole.all_outputs()
        if not taken:
            return
        behind = whole.to_outputs(*sorted(taken))
        origins = origins_of(behind, catalog, RunParameters.values)
        reasons = stale_reasons(behind, catalog, origins)
        for node in behind.nodes:
            own = [r for r in reasons.get(node.name, ()) if not r.endswith(" has changed")]
            if own:
                logger.warning(
                    "%s was run with something else (%s), and what this run takes from it is as it "
                    "was then: run its pipeline again to change that",
                    node.name,
                    "; ".join(own),
                )

    def _report(self, stale: dict[str, list[str]]) -> None:
        """Name the causes; nodes that only follow from them are counted."""
        causes = {
            name: [r for r in reasons if not r.endswith(" has changed")] or reasons
            for name, reasons in stale.items()
            if any(not r.endswith(" has changed") for r in reasons)
        }
        first = causes or dict(list(stale.items())[:1])
        for name, reasons in first.items():
            logger.info("stale: what %s made (%s)", name, "; ".join(reasons))
        if len(stale) > len(first):
            logger.info("   and %d nodes behind", len(stale) - len(first))


class LineageHook:
    """Tags the MLflow run with what it was made of: code, data, and each policy's checksum."""

    def __init__(self) -> None:
        self._catalog: DataCatalog | None = None

    @hook_impl(trylast=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Tag what is known at the start."""
        self._catalog = catalog
        if mlflow.active_run() is None:
            return
        raw = sorted(name for name in pipeline.inputs() if name.startswith("raw_"))
        values = RunParameters.values or {}
        tags = {
            "pipelines": ", ".join(run_params.get("pipeline_names") or ["__default__"]),
            "data_format": str(values.get("data_format", "")),
            "data_version": ", ".join(f"{name} {content_of(catalog.get(name))}" for name in raw),
            "git_commit": git_commit(Path(run_params.get("project_path") or ".")),
        }
        mlflow.set_tags({name: value for name, value in tags.items() if value})

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Tag a policy that was just saved with its checksum."""
        if not isinstance(data, PolicyCheckpoint) or mlflow.active_run() is None:
            return
        if self._catalog is not None:
            saved = self._catalog.load(dataset_name)
            mlflow.set_tag(f"policy.{dataset_name}", policy_fingerprint(saved)[:12])


def git_commit(project: Path) -> str:
    """Return the commit that a project stands at, with a + if files differ; empty without git."""
    git = shutil.which("git")
    if git is None:
        return ""
    asked = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    answers = []
    for arguments in asked:
        done = subprocess.run(
            [git, "-C", str(project), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return ""
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")
