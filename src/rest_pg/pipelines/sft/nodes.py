"""Nodes of supervised fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rest_pg.backends.protocols import Trainer
from rest_pg.config import ResponseFormat, RetrievalParams, TrainingParams
from rest_pg.records import PolicyCheckpoint, Prompt, ReasoningPath, TrainingExample
from rest_pg.responses import format_completion
from rest_pg.tracking import to_metric_history

logger = logging.getLogger(__name__)


def create_sft_examples(
    prompts: Sequence[Prompt],
    response_format: ResponseFormat,
    reasoning_paths: Sequence[ReasoningPath] = (),
) -> list[TrainingExample]:
    """Join each training prompt with its reasoning path, if the format has one, and its
    reference (§3.1)."""
    paths = {path.example_id: path.text for path in reasoning_paths}
    examples = [
        TrainingExample(
            example_id=prompt.example_id,
            prompt=prompt.text,
            completion=format_completion(
                paths[prompt.example_id] if response_format.reasoning else "",
                prompt.reference,
                response_format,
            ),
        )
        for prompt in prompts
        if prompt.split == "train"
    ]
    logger.info("%d examples to fine-tune on", len(examples))
    return examples


def finetune(
    base_policy: PolicyCheckpoint,
    sft_examples: Sequence[TrainingExample],
    trainer: Trainer,
    params: TrainingParams,
    seed: int,
    retrieval: RetrievalParams,
) -> tuple[PolicyCheckpoint, dict[str, float]]:
    """Teach the base policy to reason first, then to write: it becomes policy_0 (§3.1).

    The policy keeps the kind of query that its prompts were retrieved with.
    """
    policy, figures = trainer.train(base_policy, sft_examples, params, seed)
    logger.info(
        "fine-tuned on %d examples in %d steps: loss %.3f at first, %.3f at last",
        *(figures[k] for k in ("examples", "steps", "loss_first", "loss_last")),
    )
    return replace(policy, query=retrieval.query), figures


def log_training(figures: dict[str, float]) -> dict[str, dict[str, float]]:
    """Put the fine-tuning's figures at step 0 of the curves."""
    return to_metric_history({f"training_{k}": v for k, v in figures.items()}, step=0)
