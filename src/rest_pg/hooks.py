"""Hooks: flat parameters in MLflow, no run left open, what is stale, and how to go on."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from rest_pg.backends.engines import close_engines
from rest_pg.checksums import policy_fingerprint
from rest_pg.config import ExpectationParams, MaximizationParams, SelectionParams
from rest_pg.freshness import Origin, content_of, flatten, origins_of, stale_reasons
from rest_pg.inputs import InputsHook
from rest_pg.logs import LogHook
from rest_pg.object_store import Root, roots_of
from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import sweep_temporary
from rest_pg.usage import UsageHook

PACKAGE_NAME = __name__.partition(".")[0]

logger = logging.getLogger(__name__)

MLFLOW_PARAM_LENGTH = 500
"""MLflow cuts nothing: a longer value is refused, so it becomes a tag."""


class RunParameters:
    """The parameters of the session at hand, for whoever has no context: pipelines need T."""

    values: dict[str, Any] | None = None


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


class SweepHook:
    """Removes what interrupted runs left half written."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Sweep the project's data; what a living process writes stays."""
        removed = sweep_temporary(Path(context.project_path) / "data")
        if removed:
            logger.info("removed %d files that an interrupted run had left half written", removed)


class ForgetInStoresHook:
    """Brings what is kept in object stores to where a user's texts are removed, and takes it back."""

    FIRST, LAST = "list_policies", "forget_user"

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}
        self._fetched: list[tuple[Root, dict[str, int]]] = []

    @hook_impl
    def after_catalog_created(
        self, conf_catalog: dict[str, Any], conf_creds: dict[str, Any]
    ) -> None:
        """Keep all entries: those of other pipelines, and patterns, hold the user too."""
        self._entries = {
            name: entry
            | {"credentials": conf_creds.get(given) if isinstance(given, str) else given}
            for name, entry in conf_catalog.items()
            if isinstance(entry, dict)
            for given in [entry.get("credentials")]
        }

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Copy all that the stores have, but for weights."""
        if node.name == self.FIRST:
            self._fetched = [(root, root.fetch()) for root in roots_of(self._entries)]

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Put what has changed back, and remove what is gone."""
        if node.name == self.LAST:
            for root, before in self._fetched:
                changed = root.put_back(before)
                logger.info("changed or removed %d objects below %s", len(changed), root.address)


class SelectionHook:
    """Refuses a selection that the reward or the M-step at hand can't work with, before any work."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Raise ``ValueError`` if self-training could keep nothing, or learn nothing from it."""
        inputs = pipeline.inputs()
        if "params:selection" not in inputs:
            return
        selection = catalog.load("params:selection")
        budget = catalog.load("params:expectation") if "params:expectation" in inputs else None
        if "params:maximization" in inputs:
            check_pairs(selection, catalog.load("params:maximization"), budget)
        if budget is not None and selection.relative_to == "prompt_mean":
            # rewards are in [0, 1]: the best there is stands alone among m - 1 of reward 0
            highest = 1 - 1 / budget.samples_per_prompt
            if selection.threshold > highest:
                raise ValueError(
                    f"selection.threshold={selection.threshold} can keep nothing: of "
                    f"expectation.samples_per_prompt={budget.samples_per_prompt} samples none is more than "
                    f"{highest:.3g} above their mean. Lower the threshold, or set relative_to: zero."
                )
        if "reward" not in inputs:
            return
        reachable = getattr(catalog.load("reward"), "reachable", None)
        absolute = selection.relative_to == "zero"
        if reachable is not None and absolute and not reachable(selection.threshold):
            raise ValueError(
                f"selection.threshold={selection.threshold} can keep nothing: the reward's "
                "aggregation=expected is a mean of the levels, and always below 1. Lower the "
                "threshold, or set aggregation: argmax."
            )


def check_pairs(
    selection: SelectionParams,
    maximization: MaximizationParams,
    expectation: ExpectationParams | None = None,
) -> None:
    """Raise ``ValueError`` unless pairs are both selected and learnt from, or neither."""
    rejected, preference = selection.rejected_per_prompt, maximization.preference
    if rejected and preference is None:
        raise ValueError(
            f"selection.rejected_per_prompt={rejected} selects rejected samples, and likelihood alone "
            "can't learn from them: set it to 0, or set maximization.preference"
        )
    if preference is not None and not rejected:
        raise ValueError(
            "maximization.preference learns from pairs, and selection.rejected_per_prompt=0 selects "
            "none: raise it, or set maximization.preference to null"
        )
    if rejected and expectation is not None and expectation.samples_per_prompt == 1:
        raise ValueError(
            "expectation.samples_per_prompt=1 leaves no pair for maximization.preference: raise it to "
            "2 or more"
        )


class FreshnessHook:
    """Has every dataset know what makes it now; what something else made counts as missing."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Compare what is there with what would make it; say what is stale, and why."""
        origins = origins_of(pipeline, catalog)
        stale = stale_reasons(pipeline, catalog, origins)
        for node in pipeline.nodes:
            for output in node.outputs:
                self._tell(catalog.get(output), origins[node.name], node.name in stale)
        if run_params.get("only_missing_outputs"):
            self._report(stale)
        self._warn_of_inputs(pipeline, catalog)

    def _tell(self, dataset: Any, origin: Origin, stale: bool) -> None:
        if hasattr(dataset, "origin"):
            dataset.origin = origin
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


class InterruptedRun(click.exceptions.Exit):
    """A person or the system ended the run: no error of the method, and no traceback to read."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)  # as shells count it
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"the run was stopped by {self._name}"


class InterruptHook:
    """Ends a run at the first Ctrl-C (or SIGTERM), as any error would; a second one ends it at once.

    Kedro's own handling calls no hook then, so that the MLflow run would stay open and nobody would say
    how to go on.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Take the signals over, in the main thread, where alone that can be done.

        What is ignored stays so: a shell has its background jobs ignore Ctrl-C.
        """
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in self.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._stop) for number in heard}

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Give the signals back."""
        self._restore()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Give the signals back."""
        self._restore()

    def _stop(self, number: int, frame: Any) -> None:
        self._restore()
        raise InterruptedRun(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class EngineHook:
    """Ends the engines that a node started, so that the next one has their memory; also after an error."""

    @hook_impl
    def after_node_run(self) -> None:
        """End what the node left open."""
        close_engines()

    @hook_impl
    def on_node_error(self) -> None:
        """End what the node left open."""
        close_engines()


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


class MlflowLastHook:
    """Closes what kedro-mlflow left open after a failure; it must have had its turn before."""

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Close every run as failed, or as stopped."""
        _end_runs("KILLED" if isinstance(error, InterruptedRun) else "FAILED")


def _end_runs(status: str) -> None:
    while mlflow.active_run() is not None:
        mlflow.end_run(status)


# the last one listed runs first: time is logged before the MLflow run is closed
PROJECT_HOOKS = (
    MlflowLastHook(),
    InterruptHook(),
    SweepHook(),
    ForgetInStoresHook(),
    EngineHook(),
    FreshnessHook(),
    SelectionHook(),
    ParametersHook(),
    LineageHook(),
    InputsHook(),
    MlflowRunHook(),
    UsageHook(),
    LogHook(),
)
