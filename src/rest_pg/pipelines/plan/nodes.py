"""Nodes of the plan: operations, hours and disk of each stage, from the cost formula."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig, PretrainedConfig

from rest_pg.backends.models import EMBEDDED, embedded_file
from rest_pg.config import (
    EvaluationParams,
    ExpectationParams,
    MaximizationParams,
    PlanParams,
    PromptParams,
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


def create_plan(
    n_iterations: int,
    prompt: PromptParams,
    sft: TrainingParams,
    expectation: ExpectationParams,
    selection: SelectionParams,
    maximization: MaximizationParams,
    evaluation: EvaluationParams,
    plan: PlanParams,
) -> pd.DataFrame:
    """Estimate every stage of a run: an upper bound, with full prompts and ``output_tokens`` a text.

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
    judge = None if plan.judge is None else ModelSize.of(_configuration(plan.judge))
    _check_disk(policy, n_iterations)
    train, held_out = plan.examples["train"], plan.examples["validation"] + plan.examples["test"]
    sizes: dict[str, Any] = {"prompt": prompt.max_tokens, "output": plan.output_tokens}
    learnt = min(selection.learnt_per_prompt, expectation.samples_per_prompt)
    static = 2 * plan.output_tokens + prompt.max_tokens // 8
    rows = [_retrieve(train + held_out, plan), _train("sft", policy, sft, train, 1, sizes)]
    for t in range(1, n_iterations + 1):
        m = expectation.samples_per_prompt
        rows += [
            _sample(f"iteration_{t}.samples", policy, train, m, sizes),
            _judge(f"iteration_{t}.scored_samples", judge, train, m, static, plan.output_tokens),
            _train(f"iteration_{t}.policy", policy, maximization, train, learnt, sizes),
        ]
    m = evaluation.samples_per_prompt
    for system in ("base", "sft", *(f"iteration_{t}" for t in range(1, n_iterations + 1))):
        rows += [
            _sample(f"evaluation.{system}.samples", policy, held_out, m, sizes),
            _judge(f"evaluation.{system}.scores", judge, held_out, m, static, plan.output_tokens),
        ]
    table = pd.DataFrame(row for row in rows if row)
    for name in ("petaflop", "petaflop_unshared"):
        table[name] /= 1e15
    table["hours"] = table["petaflop"] * 1e15 / plan.operations_per_second / 3600
    return table[COLUMNS].round(3)


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
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        else:
            config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the sizes of {model!r} can't be read: {error} State them in plan.policy or plan.judge, "
            "by the names of a model's config.json."
        ) from error
    return config


def _retrieve(n: int, plan: PlanParams) -> dict[str, Any]:
    if plan.profile is None:
        return {}
    own = plan.profile
    operations = retrieval_operations(n=n, **own.model_dump())
    kept = own.tokens * BYTES_PER_TOKEN + 4 * own.embedding_size
    return {
        "stage": "retrieval",
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
    epochs = params.epochs
    if params.max_steps is not None:
        epochs = min(epochs, params.max_steps * params.batch_size / n)
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
