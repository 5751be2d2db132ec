"""Nodes of the plan: operations, hours and disk of each stage, from the cost formula."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from kedro.io.core import DatasetError
from transformers import AutoConfig, PretrainedConfig

from rest_pg.backends.models import EMBEDDED, embedded_file
from rest_pg.config import (
    BasePolicyParams,
    EvaluationParams,
    ExpectationParams,
    LongLampParams,
    MaximizationParams,
    PassageParams,
    PlanParams,
    PromptParams,
    ResponseFormat,
    RetrievalParams,
    SelectionParams,
    TrainingParams,
)
from rest_pg.cost import (
    ModelSize,
    judging_operations,
    retrieval_operations,
    sampling_operations,
    training_operations,
)
from rest_pg.pipelines.data_ingestion.longlamp import TASKS, task_of
from rest_pg.pipelines.data_ingestion.longlamp import check_record as check_longlamp_record
from rest_pg.pipelines.data_ingestion.nodes import read_documents

logger = logging.getLogger(__name__)

COLUMNS = [
    *("stage", "prompts", "texts", "tokens", "petaflop", "petaflop_unshared", "hours", "gigabytes"),
]
BYTES_PER_WEIGHT = 4
"""Policies are saved in float32."""
BYTES_PER_TOKEN = 4.5
"""Of English text."""
BYTES_PER_SAMPLED_TOKEN = 9
"""A sample is kept whole and in its parts: 8.6 bytes a token in the default run."""


class Work(NamedTuple):
    """Nodes of a pipeline that do the same."""

    function: str
    samples_per_prompt: int | None
    """If that is fixed, and no parameter."""
    times: int


def check_configuration(
    base_policy: BasePolicyParams,
    retrieval: RetrievalParams,
    response_format: ResponseFormat,
    direct_response_format: ResponseFormat,
) -> None:
    """Have Kedro check the types and ranges of what no other node of the plan reads."""
    logger.info(
        "configuration: the parameters are valid; the base policy is %s", base_policy.source
    )


def check_documents(
    raw_documents: Sequence[dict[str, Any]],
    passages: PassageParams,
    bad_records: Literal["stop", "reject"],
    plan: PlanParams,
) -> None:
    """Read the first documents as a run would.

    Raises:
        ValueError: as :func:`~rest_pg.pipelines.data_ingestion.nodes.read_documents`.
    """
    first = list(raw_documents[: plan.checked_records])
    documents, rejected, _ = read_documents(first, passages, bad_records)
    logger.info(
        "data: %s%d records checked, %d rejected, %d documents",
        "the first " if len(first) < len(raw_documents) else "",
        len(first),
        len(rejected),
        len(documents),
    )


def check_records(
    raw_examples: Iterable[dict[str, Any]],
    longlamp: LongLampParams,
    bad_records: Literal["stop", "reject"],
    plan: PlanParams,
) -> None:
    """Read the first of LongLaMP's records as a run would; data that aren't here are only said to be.

    A run may be planned on another machine than it is for.

    Raises:
        ValueError: a record is bad and ``bad_records`` is ``stop``.
    """
    n, problems = 0, []
    try:
        for record in islice(raw_examples, plan.checked_records):
            n += 1
            problem = check_longlamp_record(record, TASKS.get(task_of(record, longlamp)))
            problems += [problem] if problem else []
    except DatasetError as error:
        logger.warning("data: can't be read here, so nothing of it was checked: %s", error)
        return
    if problems and bad_records == "stop":
        first = problems[0]
        raise ValueError(
            f"{len(problems)} of the first {n} records can't be used. The first: {first.source}, field "
            f"{first.field}: expected {first.expected}, found {first.found}. Mend them, set "
            "longlamp.task to the data's, or set bad_records=reject."
        )
    logger.info("data: the first %d records checked, %d rejected", n, len(problems))


def create_plan(
    n_iterations: int,
    prompt: PromptParams,
    sft: TrainingParams,
    expectation: ExpectationParams,
    selection: SelectionParams,
    maximization: MaximizationParams,
    evaluation: EvaluationParams,
    plan: PlanParams,
    work: Sequence[Work] | None = None,
) -> pd.DataFrame:
    """Estimate every stage of a run: an upper bound, with full prompts and ``output_tokens`` a text.

    Args:
        n_iterations: T.
        prompt: its budget.
        sft: of fine-tuning.
        expectation: of the samples for training.
        selection: how many of them are learnt from.
        maximization: of each iteration's training.
        evaluation: of the samples for held-out users.
        plan: what no parameter of the run says.
        work: what another pipeline than the method does; its nodes are put together by what they do.

    Returns:
        One row per stage: prompts, texts written or learnt, tokens processed, operations with each
        prompt processed once (and once per text, for comparison), hours of all devices, and what is
        kept on disk.

    Raises:
        ValueError: a training example could be longer than its budget, or a model's configuration
            can't be read.
    """
    check_budgets(prompt, sft, expectation, maximization)
    policy = ModelSize.of(_configuration(plan.policy))
    _check_disk(policy, n_iterations)
    stages = _Stages(
        policy=policy,
        judge=None if plan.judge is None else ModelSize.of(_configuration(plan.judge)),
        teacher=None if plan.teacher is None else ModelSize.of(_configuration(plan.teacher)),
        prompt=prompt,
        sft=sft,
        expectation=expectation,
        maximization=maximization,
        evaluation=evaluation,
        plan=plan,
        learnt=min(selection.learnt_per_prompt, expectation.samples_per_prompt),
    )
    rows = stages.method(n_iterations) if work is None else stages.of(work)
    table = pd.DataFrame(row for row in rows if row)
    for name in ("petaflop", "petaflop_unshared"):
        table[name] /= 1e15
    table["hours"] = table["petaflop"] * 1e15 / plan.operations_per_second / 3600
    return table[COLUMNS].round(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """The rows of a plan; one that costs nothing is empty."""

    policy: ModelSize
    judge: ModelSize | None
    teacher: ModelSize | None
    prompt: PromptParams
    sft: TrainingParams
    expectation: ExpectationParams
    maximization: MaximizationParams
    evaluation: EvaluationParams
    plan: PlanParams
    learnt: int
    """Texts of a prompt that an M-step learns from."""

    def method(self, n_iterations: int) -> Iterator[dict[str, Any]]:
        """Yield each stage of the method by itself."""
        yield self._retrieve()
        yield self._write_paths()
        yield self._finetune("sft")
        for t in range(1, n_iterations + 1):
            yield self._sample(f"iteration_{t}.samples", "train", self._m)
            yield self._score(f"iteration_{t}.scored_samples", "train", self._m)
            yield self._maximize(f"iteration_{t}.policy")
        m = self.evaluation.samples_per_prompt
        for system in ("base", "sft", *(f"iteration_{t}" for t in range(1, n_iterations + 1))):
            yield self._sample(f"evaluation.{system}.samples", "held_out", m)
            yield self._score(f"evaluation.{system}.scores", "held_out", m)

    def of(self, work: Sequence[Work]) -> Iterator[dict[str, Any]]:
        """Yield what a pipeline's nodes do, those of one kind together."""
        drawn, scored, held_out = Counter[int](), 0, self.evaluation.samples_per_prompt
        for function, m, times in work:
            name = f"{function}, {times} times"
            if function == "retrieve_profiles":
                yield _times(self._retrieve(name), times)
            elif function == "write_reasoning_paths":
                yield _times(self._write_paths(name), times)
            elif function == "finetune":
                yield _times(self._finetune(name), times)
            elif function == "maximize":
                yield _times(self._maximize(name), times)
            elif function == "sample_responses":
                yield _times(self._sample(name, "train", m or self._m), times)
                drawn[m or self._m] += times
            elif function == "sample_held_out":
                yield _times(self._sample(name, "held_out", held_out), times)
            elif function == "score_samples":
                scored += times
        for m, times in drawn.items():
            scored -= times
            name = f"score_samples for training, {times} times"
            yield _times(self._score(name, "train", m), times)
        if scored > 0:
            name = f"score_samples held out, {scored} times"
            yield _times(self._score(name, "held_out", held_out), scored)

    @property
    def _m(self) -> int:
        return self.expectation.samples_per_prompt

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"prompt": self.prompt.max_tokens, "output": self.plan.output_tokens}

    def _n(self, split: str) -> int:
        examples = self.plan.examples
        return examples["train"] if split == "train" else examples["validation"] + examples["test"]

    def _retrieve(self, stage: str = "retrieval") -> dict[str, Any]:
        return _retrieve(stage, self._n("train") + self._n("held_out"), self.plan)

    def _write_paths(self, stage: str = "reasoning_paths") -> dict[str, Any]:
        if self.teacher is None:
            return {}
        # it reads the documents and the reference, and is asked once
        sizes = self._sizes | {"prompt": self.prompt.max_tokens + self.plan.output_tokens}
        return _sample(stage, self.teacher, self._n("train"), 1, sizes)

    def _finetune(self, stage: str) -> dict[str, Any]:
        return _train(stage, self.policy, self.sft, self._n("train"), 1, self._sizes)

    def _maximize(self, stage: str) -> dict[str, Any]:
        n, k = self._n("train"), self.learnt
        return _train(stage, self.policy, self.maximization, n, k, self._sizes)

    def _sample(self, stage: str, split: str, m: int) -> dict[str, Any]:
        return _sample(stage, self.policy, self._n(split), m, self._sizes)

    def _score(self, stage: str, split: str, m: int) -> dict[str, Any]:
        output = self.plan.output_tokens
        static = 2 * output + self.prompt.max_tokens // 8
        return _judge(stage, self.judge, self._n(split), m, static, output)


def _times(row: dict[str, Any], times: int) -> dict[str, Any]:
    return {name: v if isinstance(v, str) else v * times for name, v in row.items()}


def check_budgets(
    prompt: PromptParams,
    sft: TrainingParams,
    expectation: ExpectationParams,
    maximization: MaximizationParams,
) -> None:
    """Raise ``ValueError`` if a sample could be too long to be learnt."""
    longest = prompt.max_tokens + expectation.decoding.max_new_tokens
    for name, params in (("sft", sft), ("maximization", maximization)):
        if params.max_tokens < longest:
            raise ValueError(
                f"{name}.max_tokens={params.max_tokens} is below prompt.max_tokens + "
                f"expectation.decoding.max_new_tokens = {longest}: raise it to that"
            )


def _check_disk(policy: ModelSize, n_iterations: int) -> None:
    """Warn of too small a disk; no error, for a run may be planned on another machine than it is for."""
    needed = (n_iterations + 2) * _weights(policy) * BYTES_PER_WEIGHT
    free = shutil.disk_usage(Path.cwd()).free
    if free < needed:
        logger.warning(
            "%d policies take %.0f GB, and %.0f GB are free here: run from a larger disk, or lower "
            "n_iterations",
            n_iterations + 2,
            needed / 1e9,
            free / 1e9,
        )


def _weights(size: ModelSize) -> int:
    return size.body + size.hidden * size.vocabulary


def _configuration(model: str | dict[str, Any]) -> PretrainedConfig:
    if isinstance(model, dict):
        return PretrainedConfig(**model)
    try:
        config: PretrainedConfig
        if model == EMBEDDED:
            file = embedded_file()
            config = AutoConfig.from_pretrained(
                file.parent, gguf_file=file.name, trust_remote_code=False
            )
        else:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the sizes of {model!r} can't be read: {error} State them in plan.policy or plan.judge, "
            "by the names of a model's config.json."
        ) from error
    return config


def _retrieve(stage: str, n: int, plan: PlanParams) -> dict[str, Any]:
    if plan.profile is None:
        return {}
    own = plan.profile
    operations = retrieval_operations(n=n, **own.model_dump())
    kept = own.tokens * BYTES_PER_TOKEN + 4 * own.embedding_size
    return {
        "stage": stage,
        "prompts": n,
        "texts": n * own.documents,
        "tokens": n * own.documents * own.tokens,
        "petaflop": operations,
        "petaflop_unshared": operations,
        "gigabytes": n * own.documents * kept / 1e9,
    }


def _train(
    stage: str,
    size: ModelSize,
    params: TrainingParams,
    n: int,
    k: int,
    sizes: dict[str, Any],
) -> dict[str, Any]:
    epochs = params.n_epochs(n)
    kind = {"lora": params.lora is not None, "pairs": params.preference is not None}
    given: dict[str, Any] = {"n": n, "k": k, "epochs": epochs, **kind}
    return {
        "stage": stage,
        "prompts": n,
        "texts": n * k,
        "tokens": round(epochs * n * (sizes["prompt"] + k * sizes["output"])),
        "petaflop": training_operations(size, **given, **sizes),
        "petaflop_unshared": training_operations(size, **given, **sizes, shared=False),
        "gigabytes": BYTES_PER_WEIGHT * _weights(size) / 1e9,
    }


def _sample(stage: str, size: ModelSize, n: int, m: int, sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "prompts": n,
        "texts": n * m,
        "tokens": n * (sizes["prompt"] + m * sizes["output"]),
        "petaflop": sampling_operations(size, n=n, m=m, **sizes),
        "petaflop_unshared": sampling_operations(size, n=n, m=m, **sizes, shared=False),
        "gigabytes": n * m * sizes["output"] * BYTES_PER_SAMPLED_TOKEN / 1e9,
    }


def _judge(
    stage: str, size: ModelSize | None, n: int, m: int, static: int, output: int
) -> dict[str, Any]:
    if size is None:
        return {}
    given: dict[str, Any] = {"n": n, "m": m, "static": static, "output": output}
    return {
        "stage": stage,
        "prompts": n,
        "texts": n * m,
        "tokens": n * (static + m * output),
        "petaflop": judging_operations(size, **given),
        "petaflop_unshared": judging_operations(size, **given, shared=False),
        "gigabytes": n
        * m
        * output
        * BYTES_PER_SAMPLED_TOKEN
        / 1e9,  # scores stand by their samples
    }


def log_plan(plan: pd.DataFrame, params: PlanParams) -> None:
    """Print the plan and its sums."""
    sums = plan[["petaflop", "petaflop_unshared", "hours", "gigabytes"]].sum()
    logger.info(
        "what the run would do, at %.3g operations a second; nothing was started:\n\n%s\n\n"
        "in all %.3g petaflop in %.3g device hours, and %.3g GB kept; with every prompt processed once per text "
        "%.3g petaflop (%.1f times as much)",
        params.operations_per_second,
        plan.to_string(index=False),
        sums["petaflop"],
        sums["hours"],
        sums["gigabytes"],
        sums["petaflop_unshared"],
        sums["petaflop_unshared"] / sums["petaflop"],
    )
