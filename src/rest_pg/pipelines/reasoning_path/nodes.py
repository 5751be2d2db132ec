"""Nodes that write prompts, and the reasoning paths of the training examples."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from rest_pg.backends.models import load_tokenizer
from rest_pg.backends.protocols import Teacher
from rest_pg.config import PromptParams, ResponseFormat
from rest_pg.prompts import apply_chat_template, compile_template, fit_documents, markup_escape
from rest_pg.records import Example, PolicyCheckpoint, Profile, Prompt, ReasoningPath, Split
from rest_pg.text import count_words
from rest_pg.tracking import to_metric_history

logger = logging.getLogger(__name__)


def create_prompts(
    examples: Sequence[Example],
    profiles: Sequence[Profile],
    policy: PolicyCheckpoint,
    template: str,
    response_format: ResponseFormat,
    params: PromptParams,
) -> tuple[list[Prompt], dict[str, float]]:
    """Render the generation input of each example (fig. 6) within its token budget.

    The reference is not given to the template, so it can't reach a prompt. The model's own markup is escaped in
    users' texts.

    Returns:
        The prompts, and figures: prompts, their token counts, and what the budget cut.

    Raises:
        ValueError: a prompt doesn't fit the budget even without documents.
    """
    tokenizer = load_tokenizer(policy)
    render, escape = compile_template(template), markup_escape(tokenizer)
    found = {profile.example_id: profile for profile in profiles}
    prompts = []
    for example in examples:
        fitted = fit_documents(
            tokenizer,
            lambda context, example=example: apply_chat_template(  # type: ignore[misc]
                tokenizer,
                params.system,
                render(
                    instruction=escape(example.input),
                    context=context,
                    reasoning=response_format.reasoning,
                ),
            ),
            [escape(d.text) for d in found[example.example_id].documents],
            params.max_tokens,
            example.example_id,
        )
        prompts.append(
            Prompt(
                example_id=example.example_id,
                user_id=example.user_id,
                split=example.split,
                text=fitted.text,
                input=example.input,
                reference=example.reference,
                n_tokens=fitted.n_tokens,
                n_documents=fitted.n_documents,
                n_words_cut=fitted.n_words_cut,
                task=example.task,
            )
        )
    figures = _figures(prompts)
    logger.info(
        "%d prompts of %.0f to %.0f tokens; the budget cut words from %.0f of them",
        *(figures[k] for k in ("prompts", "min_tokens", "max_tokens", "prompts_cut")),
    )
    return prompts, figures


def _figures(prompts: Sequence[Prompt]) -> dict[str, float]:
    tokens = [prompt.n_tokens for prompt in prompts] or [0]
    return {
        "prompts": len(prompts),
        "min_tokens": min(tokens),
        "median_tokens": statistics.median(tokens),
        "max_tokens": max(tokens),
        "prompts_cut": sum(prompt.n_words_cut > 0 for prompt in prompts),
        "words_cut": sum(prompt.n_words_cut for prompt in prompts),
    }


def write_reasoning_paths(
    examples: Sequence[Example],
    profiles: Sequence[Profile],
    teacher: Teacher,
    policy: PolicyCheckpoint,
    *,
    splits: Sequence[Split] = ("train",),
) -> list[ReasoningPath]:
    """Let the teacher write a reasoning path for each training example (§3.1).

    It sees the references: paths of other splits are for experiments, and no policy learns them.
    """
    found = {profile.example_id: profile for profile in profiles}
    paths = teacher.write([e for e in examples if e.split in splits], found, policy)
    logger.info("%d reasoning paths", len(paths))
    return paths


def describe_reasoning_paths(
    reasoning_paths: Sequence[ReasoningPath],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Say how long the teacher's paths are, and how much of the references they give away.

    A path that quotes the reference teaches the policy to copy what it won't have when it writes.

    Returns:
        ``paths``; ``words_median`` of one; ``copied``, the mean share of a path's runs of 8 words that stand
        in its reference, in [0, 1]; ``paths_with_copies``, that have any. And the same for MLflow.
    """
    copied = [path.copied_ngrams for path in reasoning_paths]
    figures = {
        "paths": len(reasoning_paths),
        "words_median": statistics.median([count_words(p.text) for p in reasoning_paths] or [0]),
        "copied": statistics.fmean(copied or [0]),
        "paths_with_copies": sum(share > 0 for share in copied),
    }
    logger.info(
        "reasoning paths of %.0f words; %.1f%% of their runs of 8 words stand in the reference",
        figures["words_median"],
        100 * figures["copied"],
    )
    named = {f"reasoning_{name}": value for name, value in figures.items()}
    return figures, to_metric_history(named, step=0)
