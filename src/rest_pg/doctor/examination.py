"""``kedro doctor`` from the first check to the estimate, section by section as it goes."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.framework.context import KedroContext
from kedro.framework.hooks.manager import _NullPluginManager
from kedro.framework.project import pipelines, settings
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from transformers import AutoConfig

from rest_pg.backends.engines import close_engines
from rest_pg.backends.models import load_tokenizer
from rest_pg.backends.training_rows import tokenize_rows
from rest_pg.config import DoctorParams
from rest_pg.cost import ModelSize
from rest_pg.doctor.calibration import (
    Batch,
    Speed,
    measure_sampling,
    measure_scoring,
    measure_training,
    try_longest_batch,
)
from rest_pg.doctor.estimate import Lengths, Workload, by_part, estimate
from rest_pg.doctor.findings import Finding, histogram, ok
from rest_pg.doctor.machine import (
    OtherWork,
    check_devices,
    check_disk,
    check_memory,
    check_versions,
    memory_needed,
)
from rest_pg.doctor.models import check_models, check_templates
from rest_pg.doctor.rehearsal import Rehearsal, listen, prepare, read_examples, rebuild
from rest_pg.freshness import PACKAGE
from rest_pg.hooks.parameters import EnvironmentHook, ParametersHook
from rest_pg.hooks.selection import SelectionHook
from rest_pg.pipelines.plan.nodes import check_budgets
from rest_pg.prompts import count_tokens
from rest_pg.records import Prompt
from rest_pg.text import count_words
from rest_pg.times import STAGES, configuration_of, describe, in_words, places_of
from rest_pg.usage import peak_memory_gb


@dataclass(frozen=True, slots=True)
class Section:
    """Some checks that belong together, and a table below them."""

    title: str
    findings: list[Finding]
    table: str = ""


class ProblemError(Exception):
    """What makes further checks impossible; its section has been shown."""


def examine(
    project: Path, env: str | None, params: dict[str, Any], *, calibrated: bool = True
) -> Iterator[Section]:
    """Look at everything that a run of the method needs, then estimate it.

    Nothing is written but ``data/08_reporting/estimate.csv``, and that only if this machine's speed was
    measured.

    Args:
        project: its directory.
        env: environment of the configuration.
        params: parameters in the place of the configuration's.
        calibrated: measure this machine's speed; else ``plan.operations_per_second`` is taken.
    """
    yield Section("versions", check_versions(project))
    yield Section("devices", check_devices())
    with tempfile.TemporaryDirectory(prefix="rest-pg-doctor-") as scratch:
        examination = Examination(project, env, params, Path(scratch))
        try:
            yield from examination.sections(calibrated=calibrated)
        except ProblemError:
            return
        finally:
            examination.clean()


def load_context(project: Path, env: str | None, params: dict[str, Any]) -> KedroContext:
    """Load the project as a run would, but call none of the hooks: they would open MLflow's store."""
    loader = settings.CONFIG_LOADER_CLASS(
        conf_source=str(project / settings.CONF_SOURCE),
        env=env,
        runtime_params=params,
        **settings.CONFIG_LOADER_ARGS,
    )
    context: KedroContext = settings.CONTEXT_CLASS(
        package_name=PACKAGE,
        project_path=project,
        config_loader=loader,
        env=env,
        runtime_params=params,
        hook_manager=_NullPluginManager(),
    )
    EnvironmentHook().after_context_created(context)
    ParametersHook().after_context_created(context)
    return context


class Examination:
    """The checks that need the project's configuration, in the order in which they are made."""

    def __init__(
        self, project: Path, env: str | None, params: dict[str, Any], scratch: Path
    ) -> None:
        self._project, self._env, self._scratch = project, env, scratch
        self._params = params | {"dry_run": False}
        self._rehearsal = Rehearsal()

    def sections(self, *, calibrated: bool) -> Iterator[Section]:
        """Yield each section as it is known; raise :class:`ProblemError` behind one that ends it."""
        yield from self._attempt("configuration", self._configure)
        yield Section("models", check_models(self._catalog))
        templates = check_templates(self._project, self._catalog)
        yield from self._attempt("data", self._read)
        yield from self._attempt("prompts", self._prepare, templates)
        yield Section("budgets", self._check_budgets(), self._histogram())
        speed = Speed.stated(self._parameters["plan"].operations_per_second)
        if calibrated:
            started, others = time.perf_counter(), OtherWork()
            with listen() as records:
                try:
                    speed = self._calibrate()
                except Exception as error:
                    remedy = "mend it, or look at the rest with --no-calibration"
                    yield Section("calibration", [_problem("back-ends", error, remedy)])
                    raise ProblemError from error
            said = [_warning(r) for r in records if r.levelno >= logging.WARNING]
            took = in_words(time.perf_counter() - started)
            yield Section(
                "calibration", [ok("back-ends", f"they work; {took}"), *others.check(), *said]
            )
        yield Section("memory and disk", self._check_room(calibrated=calibrated))
        yield Section(*self._estimate(speed, calibrated=calibrated))

    def clean(self) -> None:
        """Remove the base policy that was tried, if it was."""
        if "base_policy" in self._rehearsal.outputs:
            shutil.rmtree(self._rehearsal.policy.path, ignore_errors=True)

    def _attempt(self, title: str, work: Any, findings: list[Finding] | None = None) -> Any:
        """Yield a section with what ``work`` finds, or with the error that it ends in."""
        try:
            yield Section(title, [*(findings or []), *work()])
        except Exception as error:  # whatever would stop a run is what is looked for
            yield Section(title, [*(findings or []), _problem(title, error)])
            raise ProblemError from error

    def _configure(self) -> list[Finding]:
        context = load_context(self._project, self._env, self._params)
        self._catalog: DataCatalog = context.catalog  # type: ignore[assignment]
        self._parameters = dict(context.params)
        self._pipeline: Pipeline = pipelines["__default__"]
        SelectionHook().before_pipeline_run(self._pipeline, self._catalog)
        n = len(self._pipeline.nodes)
        return [ok("parameters", f"valid, in {self._env or 'conf/base'}: a run has {n} nodes")]

    def _read(self) -> list[Finding]:
        self._rehearsal = read_examples(self._pipeline, self._catalog, self._scratch)
        return [ok("source", line) for line in self._rehearsal.lines]

    def _prepare(self) -> list[Finding]:
        before = len(self._rehearsal.lines)
        limit = self._doctor.examples
        prepare(self._rehearsal, self._pipeline, self._catalog, self._scratch, limit)
        return [ok("nodes", line) for line in self._rehearsal.lines[before:]]

    @property
    def _doctor(self) -> DoctorParams:
        return DoctorParams.model_validate(self._parameters["doctor"])

    @cached_property
    def _size(self) -> ModelSize:
        return ModelSize.of(
            AutoConfig.from_pretrained(self._rehearsal.policy.path, trust_remote_code=False)
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._rehearsal.policy)

    def _check_budgets(self) -> list[Finding]:
        """Say what the prompt's budget cuts, and whether training's hold what is to be learnt."""
        values, prompts = self._parameters, self._rehearsal.prompts
        findings = [self._check_cuts(prompts)]
        try:
            tokenize_rows(self._tokenizer, self._rehearsal.sft_examples, values["sft"].max_tokens)
            findings.append(ok("sft.max_tokens", "every example tried fits"))
        except ValueError as error:
            findings.append(_problem("sft.max_tokens", error))
        try:
            names = ("prompt", "sft", "expectation", "maximization")
            check_budgets(*(values[name] for name in names))
            findings.append(ok("maximization.max_tokens", "the longest sample fits"))
        except ValueError as error:
            findings.append(Finding(level="warning", subject="longest sample", found=str(error)))
        return findings

    def _check_cuts(self, prompts: list[Prompt]) -> Finding:
        """Count documents by what the budget leaves of them."""
        profiles = {p.example_id: p.documents for p in self._rehearsal.outputs["profiles"]}
        documents = dropped = whole = words = 0
        for prompt in prompts:
            own, text = profiles[prompt.example_id], " ".join(prompt.text.split())
            documents += len(own)
            dropped += len(own) - prompt.n_documents
            whole += sum(" ".join(document.text.split()) in text for document in own)
            words += sum(count_words(document.text) for document in own)
        lost = sum(prompt.n_words_cut for prompt in prompts) / max(words, 1)
        found = (
            f"of {documents} documents for {len(prompts)} prompts {whole} fit whole, "
            f"{documents - whole - dropped} are cut, {dropped} are dropped; {lost:.0%} of their words"
        )
        if lost <= 0.5:
            return ok("prompt.max_tokens", found)
        remedy = "raise prompt.max_tokens, or lower retrieval.k or passages.max_words"
        return Finding(level="warning", subject="prompt.max_tokens", found=found, remedy=remedy)

    def _histogram(self) -> str:
        tokens = [prompt.n_tokens for prompt in self._rehearsal.prompts]
        return histogram(tokens, self._parameters["prompt"].max_tokens)

    def _calibrate(self) -> Speed:
        """Have the configured back-ends do a little of everything."""
        started = time.perf_counter()
        values, rehearsal = self._parameters, self._rehearsal
        generator, trainer, reward = (
            rebuild(self._catalog, name, self._scratch)
            for name in ("generator", "trainer", "reward")
        )
        n = rehearsal.n_examples["train"]
        m = values["expectation"].samples_per_prompt
        sampling = measure_sampling(
            generator,
            rehearsal.policy,
            self._size,
            rehearsal.prompts,
            values["expectation"].decoding,
            min(self._batch.max_rows, m * min(n, self._batch.prompts_per_shard or n)),
        )
        del generator  # its model goes before the trainer's comes
        close_engines()
        start, training = measure_training(
            trainer,
            rehearsal.policy,
            self._size,
            rehearsal.sft_examples,
            self._tokenizer,
            values["sft"],
        )
        try_longest_batch(
            trainer,
            rehearsal.policy,
            rehearsal.sft_examples,
            self._tokenizer,
            values["maximization"],
            values["selection"],
            values["expectation"].decoding.max_new_tokens,
        )
        scoring, measuring = measure_scoring(
            reward, rehearsal.prompts, rehearsal.outputs["profiles"], m
        )
        close_engines()
        seconds = time.perf_counter() - started
        return Speed(sampling, start, training, scoring, measuring, seconds)

    @cached_property
    def _batch(self) -> Batch:
        return Batch.of(describe(self._catalog, "generator"))

    def _check_room(self, *, calibrated: bool) -> list[Finding]:
        lora = all(self._parameters[name].lora for name in ("sft", "maximization"))
        if calibrated:
            memory = check_memory(peak_memory_gb() * 1e9, "what the calibration took")
        else:
            needed = memory_needed(self._size, lora=lora)
            memory = check_memory(needed, "weights and optimiser; texts come on top")
        path = self._rehearsal.policy.path
        policy = sum(file.stat().st_size for file in path.iterdir())
        n = self._parameters["n_iterations"]
        return [memory, *check_disk(self._project, policy, n, lora=lora)]

    def _workload(self) -> Workload:
        values, rehearsal = self._parameters, self._rehearsal
        prompts = {name: rehearsal.outputs[name] for name in ("prompts", "direct_prompts")}
        learnt = [e.completion for e in rehearsal.sft_examples]
        references = [p.reference for p in rehearsal.prompts]
        texts = {"prompts": learnt, "direct_prompts": references}
        return Workload(
            size=self._size,
            n_examples=rehearsal.n_examples,
            lengths={
                name: Lengths(
                    prompt=sum(p.n_tokens for p in own) / len(own),
                    outputs=[count_tokens(self._tokenizer, text) + 1 for text in texts[name]],
                )
                for name, own in prompts.items()
            },
            former=self._former(),
            measured=self._measured(),
            batch=self._batch,
            learnt_per_prompt=values["selection"].learnt_per_prompt,
            expectation=values["expectation"],
            evaluation=values["evaluation"],
            sft=values["sft"],
            maximization=values["maximization"],
        )

    def _former(self) -> dict[str, list[int]]:
        """Read how long the samples of a former run were, where there are any."""
        names = {name for name in self._pipeline.all_outputs() if name.endswith(".samples")}
        return {
            name: [sample.n_tokens for sample in self._catalog.load(name)]
            for name in names
            if self._catalog.exists(name)
        }

    def _measured(self) -> dict[str, float]:
        """Return the seconds of what was really run, for all examples."""
        seconds = dict(self._rehearsal.seconds)
        for name in ("retrieve_profiles", "create_prompts", "create_direct_prompts"):
            seconds[name] /= self._rehearsal.share
        return seconds

    def _estimate(self, speed: Speed, *, calibrated: bool) -> tuple[str, list[Finding], str]:
        stages = {stage: pipelines[stage] for stage in STAGES}
        places = places_of(self._pipeline, stages)
        table = estimate(self._pipeline, places, self._workload(), speed)
        total = float(table["seconds"].sum())
        found = f"the run takes about {in_words(total)}"
        if calibrated:
            kept = table.assign(configuration=configuration_of(self._catalog))
            self._catalog.save("estimate", kept)
            found += "; data/08_reporting/estimate.csv has each node"
        else:
            found += " at plan.operations_per_second; nothing was measured"
        shown: pd.DataFrame = by_part(table, self._doctor.price_per_hour)
        return "estimate", [ok("time", found)], shown.to_string(index=False)


def _problem(subject: str, error: Exception, remedy: str = "") -> Finding:
    """Turn an error into a finding: its own words name the remedy."""
    text = str(error) or type(error).__name__
    return Finding(level="problem", subject=subject, found=text, remedy=remedy)


def _warning(record: logging.LogRecord) -> Finding:
    return Finding(level="warning", subject="said", found=record.getMessage())
