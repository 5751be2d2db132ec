"""How near decoding comes to what the machine's matrix products allow."""

from __future__ import annotations

import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from rest_pg.backends.models import supports_bfloat16
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.bench.common import Comparison, endless_policy, product_rate, read_rate, texts
from rest_pg.config import Decoding

ROWS, PROMPT, SHORT, LONG = 32, 512, 32, 160


def run(repeats: int) -> list[Comparison]:
    """Measure decoding of 32 rows without loading and prefill: the difference of two lengths.

    It is laid beside two bounds: this machine's products (hardware), and its memory, from which each step
    reads all weights.
    """
    (prompt,) = texts(1, PROMPT, offset=20)
    model = AutoModelForCausalLM.from_pretrained(
        endless_policy().path, trust_remote_code=False, use_safetensors=True
    )
    n_weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    dtype = torch.bfloat16 if supports_bfloat16() else torch.float32
    rates: list[float] = []
    bounds: dict[str, list[float]] = {"hardware": [], "memory": []}
    generator = SharedPrefixGenerator(max_rows=ROWS)
    _generate(generator, prompt, SHORT)
    for _ in range(repeats):
        seconds = _generate(generator, prompt, LONG) - _generate(generator, prompt, SHORT)
        rates.append(ROWS * (LONG - SHORT) / seconds)
        bounds["hardware"].append(product_rate(dtype) * 1e9 / (2 * n_weights))
        bounds["memory"].append(ROWS * read_rate() * 1e9 / (dtype.itemsize * n_weights))
    return [_share(name, rates, bound) for name, bound in bounds.items()]


def _share(name: str, rates: list[float], bounds: list[float]) -> Comparison:
    shares = [a / b for a, b in zip(rates, bounds, strict=True)]
    return Comparison(
        "decode",
        f"{ROWS} rows P={PROMPT}",
        name,
        statistics.median(rates),
        statistics.median(bounds),
        "tokens/s",
        statistics.median(shares),
        (min(shares), max(shares)),
    )


def _generate(generator: SharedPrefixGenerator, prompt: str, n_tokens: int) -> float:
    request = GenerationRequest(example_id="0", prompt=prompt, seeds=tuple(range(ROWS)))
    decoding = Decoding(temperature=0.7, top_p=0.95, max_new_tokens=n_tokens)
    started = time.perf_counter()
    generator.generate(endless_policy(), [request], decoding)
    return time.perf_counter() - started
