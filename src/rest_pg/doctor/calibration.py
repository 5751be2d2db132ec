"""What this machine really does, from about 20 seconds of real work by the configured back-ends.

Real prompts and completions of the data, the real base model: a few tokens, a few training steps, a few
scores. :mod:`rest_pg.doctor.estimate` carries these rates to the run's sizes.
"""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from kedro.utils import load_obj
from transformers import PreTrainedTokenizerBase

from rest_pg.backends.protocols import (
    Generation,
    GenerationRequest,
    Generator,
    Reward,
    Trainer,
)
from rest_pg.config import Decoding, SelectionParams, TrainingParams
from rest_pg.cost import ModelSize, Rates, Step, Trial, fit_rates, training_operations
from rest_pg.pipelines.evaluation.nodes import measure_samples
from rest_pg.pipelines.self_training.nodes import score_samples
from rest_pg.progress import listening
from rest_pg.prompts import count_tokens
from rest_pg.records import PolicyCheckpoint, Profile, Prompt, Sample, TrainingExample

TRIED_PROMPTS = 8
TRIED_ROWS = 16
TRIED_STEPS, FULL_STEPS = 16, 40
"""Decoding steps of few rows, and of a full batch: steps grow dearer with what is written already."""
TRAINED_ROWS = 4
TRIED_SAMPLES = 4
"""Scored for a prompt, at most."""
PATIENCE = 4.0
"""Seconds that the steps of a full batch should take, as far as a prompt's time tells."""


@dataclass(frozen=True, slots=True)
class Batch:
    """How a generator works through its requests, as its arguments say."""

    max_rows: int
    """Samples that are decoded at once."""
    prompts_per_shard: int | None
    """Prompts that are worked through at once; none: all."""

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Batch:
        """Read a back-end's description, and that of the one within it."""
        arguments = dict(description.get("arguments", {}))
        inner = arguments.get("generator")
        rows = cls.of(inner).max_rows if inner else _argument(description, "max_rows", 1)
        return cls(rows, _argument(description, "prompts_per_shard", None))


def _argument(description: Mapping[str, Any], name: str, other: Any) -> Any:
    """Return an argument of a back-end, or its default."""
    if name in description.get("arguments", {}):
        return description["arguments"][name]
    parameter = inspect.signature(load_obj(description["backend"])).parameters.get(name)
    return other if parameter is None else parameter.default


@dataclass(frozen=True, slots=True)
class Linear:
    """Seconds of a loop: what its first call in a process takes beside, and each item's."""

    start: float = 0.0
    each: float = 0.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What the machine was measured to do."""

    sampling: Rates
    training_start: float
    """Seconds to load a model, lay out its adapters, merge and save them."""
    training: float
    """Operations a second."""
    scoring: Linear = field(default_factory=Linear)
    measuring: Linear = field(default_factory=Linear)
    seconds: float = 0.0
    """That measuring all this took."""

    @classmethod
    def stated(cls, operations_per_second: float) -> Speed:
        """Return the speed that a configuration states, where nothing is measured."""
        rates = Rates(
            start_seconds=0.0,
            prefill=operations_per_second,
            step_seconds=0.0,
            decode=operations_per_second,
        )
        return cls(rates, 0.0, operations_per_second)


def typical(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Return the n prompts whose length is nearest to the mean; again from the start if there are fewer."""
    mean = sum(p.n_tokens for p in prompts) / len(prompts)
    nearest = sorted(prompts, key=lambda p: abs(p.n_tokens - mean))
    return [nearest[i % len(nearest)] for i in range(n)]


def measure_sampling(
    generator: Generator,
    policy: PolicyCheckpoint,
    size: ModelSize,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    rows: int,
) -> Rates:
    """Measure a generator's rates in four short runs.

    Args:
        generator: as it is configured; its model isn't loaded yet.
        policy: the base policy.
        size: of its model.
        prompts: of the data.
        decoding: of the run.
        rows: samples that the run decodes at once, at most.
    """
    chosen = typical(prompts, TRIED_PROMPTS)
    length = sum(p.n_tokens for p in chosen) / len(chosen)

    def trial(n: int, m: int, n_tokens: int) -> Trial:
        requests = [
            # other seeds each time: a generator may keep what it drew
            GenerationRequest(
                example_id=f"{i}", prompt=p.text, seeds=tuple(range(n_tokens, n_tokens + m))
            )
            for i, p in enumerate(chosen[:n])
        ]
        short = decoding.model_copy(update={"max_new_tokens": n_tokens})
        marks: list[tuple[float, int]] = []

        def listen(task: str, done: int, n_written: int) -> None:
            marks.append((time.perf_counter(), n_written))

        started = time.perf_counter()
        with listening(listen):
            drawn = generator.generate(policy, requests, short)
        seconds = time.perf_counter() - started
        steps = _steps(marks) or _even_steps(drawn, seconds - n * prefill)
        return Trial(seconds, n, length, steps)

    prefill = 0.0
    first, alone = trial(1, 1, 1), trial(4, 1, 1)
    prefill = alone.seconds / alone.prompts
    full = max(rows // TRIED_PROMPTS, 1)
    few = max(min(TRIED_ROWS, rows // 2) // 4, 1)
    # a step of a full batch takes about as long as so many tokens of a prompt
    expected = prefill * full * TRIED_PROMPTS / length
    share = min(1.0, PATIENCE / max(expected * FULL_STEPS, 1e-6))
    steps = [max(2, round(share * most)) for most in (TRIED_STEPS, FULL_STEPS)]
    trials = trial(4, few, steps[0] + 1), trial(TRIED_PROMPTS, full, steps[1] + 1)
    return fit_rates(size, first, alone, trials)


def _steps(marks: Sequence[tuple[float, int]]) -> list[Step]:
    """Return each step between two marks of a generator that counts its tokens as it goes."""
    # a sample's end is told too, and is no step
    told = [later for earlier, later in pairwise([(0.0, 0), *marks]) if later[1] > earlier[1]]
    return [
        Step(rows=end[1] - start[1], written=number, seconds=end[0] - start[0])
        for number, (start, end) in enumerate(pairwise(told), start=1)
    ]


def _even_steps(drawn: Sequence[Generation], seconds: float) -> list[Step]:
    """Return equal steps, for a generator that says nothing while it works."""
    behind = [max(generation.n_tokens - 1, 0) for generation in drawn]
    n = max(behind, default=0)
    if n == 0:
        return []
    # nothing written before: what grows with it can't be told apart from here
    return [Step(rows=sum(behind) / n, written=0, seconds=max(seconds, 0.0) / n)] * n


def measure_training(
    trainer: Trainer,
    policy: PolicyCheckpoint,
    size: ModelSize,
    examples: Sequence[TrainingExample],
    tokenizer: PreTrainedTokenizerBase,
    params: TrainingParams,
) -> tuple[float, float]:
    """Train a few rows of about the mean length, and listen to its steps.

    Returns:
        Seconds that don't depend on the rows, and operations a second.
    """
    lengths = {e.example_id: count_tokens(tokenizer, e.completion) for e in examples}
    mean = sum(lengths.values()) / len(lengths)
    chosen = sorted(examples, key=lambda e: abs(lengths[e.example_id] - mean))[:TRAINED_ROWS]
    output = sum(lengths[e.example_id] + 1 for e in chosen) / len(chosen)
    prompt = sum(count_tokens(tokenizer, e.prompt) for e in chosen) / len(chosen)
    short = params.model_copy(
        update={"epochs": 1, "batch_size": 1, "max_steps": None, "few_examples": None}
    )
    ends: list[float] = []

    def listen(task: str, done: int, n_tokens: int) -> None:
        if task == "training":
            ends.append(time.perf_counter())

    started = time.perf_counter()
    with listening(listen):
        trained, _ = trainer.train(policy, chosen, short, 0)
    seconds = time.perf_counter() - started
    shutil.rmtree(trained.path, ignore_errors=True)
    row = training_operations(
        size, n=1, k=1, prompt=prompt, output=output, lora=params.lora is not None
    )
    if len(ends) < 2:  # a trainer that says nothing: all of its time counts as work
        return 0.0, len(chosen) * row / seconds
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    return max(seconds - len(ends) * each, 0.0), row / each


def try_longest_batch(
    trainer: Trainer,
    policy: PolicyCheckpoint,
    examples: Sequence[TrainingExample],
    tokenizer: PreTrainedTokenizerBase,
    params: TrainingParams,
    selection: SelectionParams,
    longest: int,
) -> None:
    """Take one step of an M-step's heaviest batch, so that its memory shows.

    Args:
        trainer: as it is configured.
        policy: the base policy.
        examples: of SFT; the longest prompts are taken.
        tokenizer: the policy's.
        params: of the M-step.
        selection: how many samples of a prompt are learnt.
        longest: tokens of a sample, at most: all of them have so many here.
    """
    sizes = {e.example_id: count_tokens(tokenizer, e.prompt) for e in examples}
    chosen = sorted(examples, key=lambda e: -sizes[e.example_id])[: params.batch_size]
    # where a prompt leaves no room for a sample, the trainer says so
    room = params.max_tokens - max(sizes[e.example_id] for e in chosen)
    longest = max(min(longest, room) - 1, 1)
    rows = []
    for example in chosen:
        ids = tokenizer(example.completion * longest, truncation=True, max_length=longest)
        text = str(tokenizer.decode(ids["input_ids"], skip_special_tokens=True))
        for number in range(selection.learnt_per_prompt):
            sign = 1 if number < selection.max_per_prompt else -1
            rows.append(replace(example, completion=text, weight=float(sign), finished=sign > 0))
    short = params.model_copy(update={"epochs": 1, "max_steps": 1, "few_examples": None})
    trained, _ = trainer.train(policy, rows, short, 0)
    shutil.rmtree(trained.path, ignore_errors=True)


def measure_scoring(
    reward: Reward, prompts: Sequence[Prompt], profiles: Sequence[Profile], m: int
) -> tuple[Linear, Linear]:
    """Score and measure a few of the users' own texts, as if a policy had written them.

    Returns:
        Seconds of :func:`score_samples`, and of :func:`measure_samples`, by the number of samples.
    """
    chosen = list({p.example_id: p for p in typical(prompts, TRIED_PROMPTS)}.values())
    n = min(m, TRIED_SAMPLES)
    texts = [prompt.reference for prompt in prompts]
    samples = [
        Sample(
            example_id=prompt.example_id,
            sample_index=i,
            text="",
            reasoning_path="",
            response=texts[(place * n + i) % len(texts)],
            malformed="",
            finished=True,
            n_tokens=1,
        )
        for place, prompt in enumerate(chosen)
        for i in range(n)
    ]
    scoring, scored = _linear(lambda k: score_samples(samples[:k], prompts, reward), len(samples))
    measuring, _ = _linear(lambda k: measure_samples(scored[:k], prompts, profiles), len(samples))
    return scoring, measuring


def _linear(work: Callable[[int], Any], n: int) -> tuple[Linear, Any]:
    """Time a loop of one item, which loads what the next finds loaded, and one of n; return its result."""
    times = []
    for size in (1, n):
        started = time.perf_counter()
        result = work(size)
        times.append(time.perf_counter() - started)
    each = times[1] / n
    return Linear(max(times[0] - each, 0.0), each), result
