"""Nodes of one EM iteration (Alg. 1)."""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rest_pg.backends.protocols import GenerationRequest, Generator, Reward, Target, Trainer
from rest_pg.config import (
    Decoding,
    ExpectationParams,
    MaximizationParams,
    ResponseFormat,
    RetrievalParams,
    SelectionParams,
)
from rest_pg.pipelines.self_training.selection import keep_any, keep_best
from rest_pg.records import (
    PolicyCheckpoint,
    Prompt,
    Sample,
    ScoredSample,
    SelectedSample,
    TrainingExample,
)
from rest_pg.responses import fixed_parts, format_completion, parse_generation
from rest_pg.text import count_words
from rest_pg.tracking import to_metric_history

logger = logging.getLogger(__name__)


JUDGED = 16
"""Samples that :func:`check_format` needs."""


def sample_seed(seed: int, stage: str, example_id: str, sample_index: int) -> int:
    """Derive a sample's seed from what it is, so that it doesn't depend on what is drawn beside it."""
    key = f"{seed}\0{stage}\0{example_id}\0{sample_index}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def sample_responses(
    policy: PolicyCheckpoint,
    prompts: Sequence[Prompt],
    generator: Generator,
    response_format: ResponseFormat,
    params: ExpectationParams,
    seed: int,
    *,
    iteration: int,
    samples_per_prompt: int | None = None,
) -> tuple[list[Sample], dict[str, float]]:
    """Expectation step, part 1: draw samples for each training prompt (Alg. 1), and parse them.

    Args and return value are those of :func:`draw_samples`; the iteration enters the seeds, and
    ``samples_per_prompt`` takes the parameter's place where budgets are compared.

    Raises:
        ValueError: the first iteration's policy does not keep the format (:func:`check_format`).
    """
    samples, figures = draw_samples(
        policy,
        [prompt for prompt in prompts if prompt.split == "train"],
        generator,
        response_format,
        samples_per_prompt or params.samples_per_prompt,
        params.decoding,
        seed,
        stage=f"iteration_{iteration}",
    )
    if iteration == 1:
        check_format(samples, response_format)
    return samples, figures


def check_format(samples: Sequence[Sample], response_format: ResponseFormat) -> None:
    """Check that the fine-tuned policy keeps the response format, before its samples are scored and learnt from.

    Fewer than :data:`JUDGED` samples are not judged: a few draws say too little.

    Raises:
        ValueError: more samples than ``max_malformed`` allows are malformed.
    """
    if len(samples) < JUDGED:
        return
    reasons = Counter(sample.malformed for sample in samples if sample.malformed)
    n_malformed = reasons.total()
    if n_malformed > response_format.max_malformed * len(samples):
        raise ValueError(
            f"{n_malformed} of {len(samples)} samples of the fine-tuned policy are malformed "
            f"({', '.join(f'{reason} {n}' for reason, n in reasons.most_common())}), and "
            f"response_format.max_malformed={response_format.max_malformed} allows "
            f"{response_format.max_malformed:.0%}: fine-tuning was too short to teach the format. Raise "
            "sft.epochs until it takes more steps than its log line names."
        )


def draw_samples(
    policy: PolicyCheckpoint,
    prompts: Sequence[Prompt],
    generator: Generator,
    response_format: ResponseFormat,
    samples_per_prompt: int,
    decoding: Decoding,
    seed: int,
    *,
    stage: str,
) -> tuple[list[Sample], dict[str, float]]:
    """Draw samples for each prompt, and parse them.

    Args:
        policy: what is sampled from.
        prompts: what to sample from.
        generator: the engine.
        response_format: how samples are parsed.
        samples_per_prompt: m.
        decoding: how they are drawn.
        seed: of the run.
        stage: enters the seeds: ``iteration_t`` or ``evaluation``.

    Returns:
        The samples, by prompt and index; and tokens, this run's seconds, and tokens per second, of those that
        no earlier run had drawn.
    """
    started = time.perf_counter()
    requests = [
        GenerationRequest(
            example_id=prompt.example_id,
            prompt=prompt.text,
            seeds=tuple(
                sample_seed(seed, stage, prompt.example_id, i) for i in range(samples_per_prompt)
            ),
        )
        for prompt in prompts
    ]
    generations = generator.generate(policy, requests, decoding)
    samples = [parse_generation(generation, response_format) for generation in generations]
    seconds = time.perf_counter() - started
    n_tokens = sum(sample.n_tokens for sample in samples)
    drawn = n_tokens - getattr(generator, "reused_tokens", 0)
    malformed = sum(bool(sample.malformed) for sample in samples)
    logger.info(
        "drew %d samples from %d prompts: %d tokens in %.0f s; %d malformed, %d not ended",
        len(samples),
        len(requests),
        n_tokens,
        seconds,
        malformed,
        sum(not sample.finished for sample in samples),
    )
    return samples, {
        "samples": len(samples),
        "tokens": n_tokens,
        "seconds": seconds,
        "tokens_per_second": drawn / seconds,
    }


def score_samples(
    samples: Sequence[Sample], prompts: Sequence[Prompt], reward: Reward
) -> list[ScoredSample]:
    """Expectation step, part 2: reward each sample's response (§3.2).

    The reasoning path is never shown to the reward: it counts only through the response it leads to.
    """
    targets = {p.example_id: Target(input=p.input, reference=p.reference) for p in prompts}
    scores = reward.score(samples, targets)
    scored = [
        ScoredSample(sample=sample, score=score)
        for sample, score in zip(samples, scores, strict=True)
    ]
    mean = statistics.fmean(s.score.reward for s in scored) if scored else 0.0
    logger.info("mean reward of %d samples: %.4f", len(scored), mean)
    return scored


def select_samples(
    scored_samples: Sequence[ScoredSample], params: SelectionParams, seed: int
) -> list[SelectedSample]:
    """Expectation step, part 3: keep the best samples of each prompt.

    Raises:
        ValueError: no sample of any prompt is kept.
    """
    by_example: defaultdict[str, list[ScoredSample]] = defaultdict(list)
    for scored in scored_samples:
        by_example[scored.sample.example_id].append(scored)
    kept = [s for group in by_example.values() for s in keep_best(group, params, seed)]
    if not kept:
        best = max((s.score.reward for s in scored_samples), default=0.0)
        malformed = sum(bool(s.sample.malformed) for s in scored_samples)
        raise ValueError(
            f"no sample reached selection.threshold={params.threshold} (relative to "
            f"{params.relative_to}): the best of {len(scored_samples)} scored {best:.3f}, and "
            f"{malformed} were malformed. Lower the threshold, draw more samples per prompt, or "
            "raise sft.epochs."
        )
    n_rejected = sum(s.weight < 0 for s in kept)
    logger.info(
        "kept %d of %d samples, for %d of %d prompts%s",
        len(kept) - n_rejected,
        len(scored_samples),
        len({s.sample.example_id for s in kept}),
        len(by_example),
        f", and rejected {n_rejected}" if n_rejected else "",
    )
    return kept


def select_matched(
    scored_samples: Sequence[ScoredSample],
    matched_samples: Sequence[SelectedSample],
    params: SelectionParams,
    seed: int,
) -> list[SelectedSample]:
    """Select at random, per prompt, as many samples as another selection kept: its control.

    Only the ranking differs: drawn are samples that could be learnt, as in :func:`select_samples`. Where
    a prompt has fewer of them, all are kept.

    Args:
        scored_samples: of all prompts.
        matched_samples: what the other selection kept.
        params: as the other's; of them, what can't be kept.
        seed: of the draw.
    """
    by_example: defaultdict[str, list[ScoredSample]] = defaultdict(list)
    for scored in scored_samples:
        by_example[scored.sample.example_id].append(scored)
    wanted = Counter(kept.sample.example_id for kept in matched_samples if kept.weight > 0)
    rejected = Counter(kept.sample.example_id for kept in matched_samples if kept.weight < 0)
    selected = [
        s
        for example_id, n in wanted.items()
        for s in keep_any(by_example[example_id], n, params, seed, rejected[example_id])
    ]
    logger.info(
        "kept %d samples at random, to match %d kept elsewhere",
        len(selected),
        len(matched_samples),
    )
    return selected


def create_training_examples(
    selected_samples: Sequence[SelectedSample],
    prompts: Sequence[Prompt],
    response_format: ResponseFormat,
) -> list[TrainingExample]:
    """Pair each kept sample with its prompt: reasoning path and response are learnt together.

    A rejected sample that can't be parsed, or was cut off, goes along as it was written.
    """
    texts = {prompt.example_id: prompt.text for prompt in prompts}
    examples = []
    for kept in selected_samples:
        sample = kept.sample
        completion = (
            sample.text.strip()
            if sample.malformed or not sample.finished
            else format_completion(sample.reasoning_path, sample.response, response_format)
        )
        examples.append(
            TrainingExample(
                example_id=sample.example_id,
                prompt=texts[sample.example_id],
                completion=completion,
                weight=kept.weight,
                finished=sample.finished,
                fixed=fixed_parts(response_format),
            )
        )
    return examples


def maximize(
    base_policy: PolicyCheckpoint,
    sft_policy: PolicyCheckpoint,
    policy: PolicyCheckpoint,
    training_examples: Sequence[TrainingExample],
    trainer: Trainer,
    params: MaximizationParams,
    seed: int,
    retrieval: RetrievalParams,
    *,
    start: str | None = None,
) -> tuple[PolicyCheckpoint, dict[str, float]]:
    """Maximization step: train on the kept samples, weighted (§3.3).

    The paper starts from the base model each time; ``params.start`` also offers policy_0 and the
    previous iteration's policy, and ``start`` takes its place where the starts are compared.
    """
    starts = {"base": base_policy, "sft": sft_policy, "previous": policy}
    start = start or params.start
    next_policy, figures = trainer.train(starts[start], training_examples, params, seed)
    logger.info(
        "trained from %s on %d samples of %d prompts: loss %.3f at first, %.3f at last",
        start,
        *(figures[k] for k in ("examples", "prompts", "loss_first", "loss_last")),
    )
    return replace(next_policy, query=retrieval.query), figures


def summarize_iteration(
    scored_samples: Sequence[ScoredSample],
    selected_samples: Sequence[SelectedSample],
    sampling_figures: dict[str, float],
    training_figures: dict[str, float],
) -> dict[str, float]:
    """Count what one iteration drew, kept and cost, over the training prompts."""
    n = len(scored_samples)
    samples = [scored.sample for scored in scored_samples]
    distinct = {(s.example_id, " ".join(s.response.split())) for s in samples}
    prompts = {s.example_id for s in samples}
    kept = [selected for selected in selected_samples if selected.weight > 0]
    kept_prompts = {selected.sample.example_id for selected in kept}
    return {
        "train_reward_mean": statistics.fmean(s.score.reward for s in scored_samples),
        "train_reward_kept_mean": statistics.fmean(s.reward for s in kept),
        "kept_fraction": len(kept) / n,
        "prompts_without_kept": len(prompts - kept_prompts),
        "malformed": sum(bool(s.malformed) for s in samples) / n,
        "unfinished": sum(not s.finished for s in samples) / n,
        "duplicates": 1 - len(distinct) / n,
        "mean_words": statistics.fmean(count_words(s.response) for s in samples),
        "sampling_seconds": sampling_figures["seconds"],
        "sampling_tokens_per_second": sampling_figures["tokens_per_second"],
        "training_seconds": training_figures["seconds"],
        "training_tokens_per_second": training_figures["tokens_per_second"],
        "training_loss_last": training_figures["loss_last"],
        "seconds": sampling_figures["seconds"] + training_figures["seconds"],
    }


def log_iteration(figures: dict[str, float], *, iteration: int) -> dict[str, dict[str, float]]:
    """Put an iteration's figures on the curves, at its step."""
    return to_metric_history(figures, step=iteration)
