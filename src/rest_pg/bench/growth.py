"""Does time grow as the formula of :mod:`rest_pg.cost` says? Three sizes of each quantity."""

from __future__ import annotations

import statistics
import time

from transformers import AutoConfig

from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.bench.common import Comparison, base_policy, endless_policy, texts
from rest_pg.config import Decoding, TrainingParams
from rest_pg.cost import (
    ModelSize,
    Rates,
    Step,
    Trial,
    fit_rates,
    sampling_seconds,
    training_operations,
)
from rest_pg.records import TrainingExample

MAX_ROWS = 64
SAMPLING = {"n": 4, "m": 8, "prompt": 256, "output": 64}
SAMPLING_SIZES = {"n": (2, 8), "m": (4, 16), "prompt": (128, 512), "output": (32, 128)}
TRAINING = {"n": 4, "k": 2, "prompt": 256, "output": 150}
TRAINING_SIZES = {"n": (2, 8), "k": (1, 4), "prompt": (128, 512), "output": (75, 300)}
ITERATIONS = (1, 2, 3)
LORA = TrainingParams.model_validate(
    {
        "epochs": 1,
        "batch_size": 1,
        "learning_rate": 1e-5,
        "max_tokens": 4096,
        "lora": {"r": 16, "alpha": 32},
    }
)


def run(repeats: int) -> list[Comparison]:
    """Lay measured seconds beside estimated ones; the ratio is estimate by measurement."""
    size = ModelSize.of(AutoConfig.from_pretrained(base_policy().path, trust_remote_code=False))
    rates = calibrate(size)
    rows = []
    for case in _variations(SAMPLING, SAMPLING_SIZES):
        measured = statistics.median(_sample(*_sizes(case)) for _ in range(repeats))
        n, m, prompt_tokens, output = _sizes(case)
        estimate = sampling_seconds(
            size, rates, n=n, prompt=prompt_tokens, shards=[[output] * n * m], max_rows=MAX_ROWS
        )
        rows.append(_row("sampling", case, measured, estimate))
    # training has one rate: two sizes give it and the time that no example costs
    small, large = {**TRAINING, "n": 2}, {**TRAINING, "n": 6}
    _train(**small)  # the first of a process loads what the others find
    operations = [_training_operations(size, c) for c in (small, large)]
    seconds = [_train(**c) for c in (small, large)]
    rate = (operations[1] - operations[0]) / (seconds[1] - seconds[0])
    start = seconds[0] - operations[0] / rate
    for case in _variations(TRAINING, TRAINING_SIZES):
        measured = statistics.median(_train(**case) for _ in range(repeats))
        estimate = start + _training_operations(size, case) / rate
        rows.append(_row("training", case, measured, estimate))
    # an EM iteration loads its models anew, so T of them are T times one
    n, m, prompt_tokens, output = _sizes(SAMPLING)
    shards = [[output] * n * m]
    once = start + _training_operations(size, TRAINING) / rate
    once += sampling_seconds(
        size, rates, n=n, prompt=prompt_tokens, shards=shards, max_rows=MAX_ROWS
    )
    for t in ITERATIONS:
        measured = statistics.median(_iterate(t) for _ in range(repeats))
        rows.append(_row("iterations", {"T": t}, measured, t * once))
    return rows


def _iterate(t: int) -> float:
    return sum((_sample(*_sizes(SAMPLING)) + _train(**TRAINING) for _ in range(t)), 0.0)


def calibrate(size: ModelSize, prompt: int = 384, output: int = 33) -> Rates:
    """Measure this machine's rates with four short runs of the generator."""
    _sample(n=1, m=1, prompt=prompt, output=2)  # the first of a process loads what the others find
    generator = SharedPrefixGenerator(max_rows=MAX_ROWS)

    def trial(n: int, m: int, output: int) -> Trial:
        seconds = _sample(n=n, m=m, prompt=prompt, output=output, generator=generator)
        steps = output - 1
        each = Step(n * m, 0, max(seconds - n * prefill, 0.0) / steps) if steps else None
        return Trial(seconds, n, prompt, [each] * steps if each else [])

    prefill = 0.0
    first, prompts = trial(1, 1, 1), trial(4, 1, 1)
    prefill = prompts.seconds / prompts.prompts
    return fit_rates(size, first, prompts, [trial(1, 1, output), trial(1, MAX_ROWS, output)])


def _variations(middle: dict[str, int], sizes: dict[str, tuple[int, int]]) -> list[dict[str, int]]:
    others = [middle | {name: value} for name, values in sizes.items() for value in values]
    return [middle, *others]


def _row(loop: str, case: dict[str, int], measured: float, estimate: float) -> Comparison:
    name = f"{loop} " + " ".join(f"{k}={v}" for k, v in case.items())
    ratio = estimate / measured
    return Comparison("growth", name, "formula", measured, estimate, "s", ratio, (ratio, ratio))


def _training_operations(size: ModelSize, case: dict[str, int]) -> float:
    n, k, prompt, output = (case[name] for name in ("n", "k", "prompt", "output"))
    return training_operations(size, n=n, k=k, prompt=prompt, output=output, lora=True)


def _sizes(case: dict[str, int]) -> tuple[int, int, int, int]:
    return case["n"], case["m"], case["prompt"], case["output"]


def _sample(
    n: int, m: int, prompt: int, output: int, generator: SharedPrefixGenerator | None = None
) -> float:
    """Draw samples, and return the seconds; without a generator a new one loads its model first."""
    generator = generator or SharedPrefixGenerator(max_rows=MAX_ROWS)
    requests = [
        GenerationRequest(example_id=str(i), prompt=text, seeds=tuple(range(m)))
        for i, text in enumerate(texts(n, prompt, offset=20))
    ]
    decoding = Decoding(temperature=0.7, top_p=0.95, max_new_tokens=output)
    started = time.perf_counter()
    generator.generate(endless_policy(), requests, decoding)
    return time.perf_counter() - started


def _train(n: int, k: int, prompt: int, output: int) -> float:
    examples = [
        TrainingExample(example_id=str(i), prompt=text, completion=completion)
        for i, text in enumerate(texts(n, prompt, offset=60))
        for completion in texts(k, output, offset=100 + i)
    ]
    started = time.perf_counter()
    SharedPromptTrainer().train(base_policy(), examples, LORA, seed=7)
    return time.perf_counter() - started
