"""What each loop costs: the operations that the method needs, and the time they take here.

N prompts of P tokens, m samples of D tokens each, k of them kept, E epochs. A token costs
``F = 2 * body`` operations in the layers, ``H = 2 * d * V`` in the head where its logits are needed,
and ``A(c) = 4 * layers * heads * head size * c`` in the attention to c tokens before it. Everything
is linear in N, m, k, D and E, and quadratic in P only through A.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a decoder that its cost depends on."""

    body: int
    """Weights of the layers' products, N_body."""
    hidden: int
    vocabulary: int
    layers: int
    query_size: int
    """Heads times the size of a head."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelSize:
        """Read the sizes from a configuration of a model with gated feed-forward layers."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads * head
        keys = config.num_key_value_heads * head
        attention = config.hidden_size * (2 * queries + 2 * keys)
        feed_forward = 3 * config.hidden_size * config.intermediate_size
        return cls(
            body=config.num_hidden_layers * (attention + feed_forward),
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            layers=config.num_hidden_layers,
            query_size=queries,
        )

    @property
    def attention(self) -> int:
        """Operations of a token's attention to one other token."""
        return 4 * self.layers * self.query_size

    @property
    def head(self) -> int:
        """Operations of the head for one token, H."""
        return 2 * self.hidden * self.vocabulary

    def token(self, context: float, *, head: bool) -> float:
        """Operations of one token that attends to ``context`` tokens: F + A (+ H)."""
        return 2 * self.body + self.attention * context + (self.head if head else 0)


def retrieval_operations(
    *, n: int, documents: int, tokens: float, embedder_weights: int, embedding_size: int
) -> float:
    """Operations to embed the documents of n users, and to compare each with a query of its user.

    Attention is left out: at 256 tokens of a small encoder it is a twentieth.
    """
    return n * documents * (2 * embedder_weights * tokens + 2 * embedding_size)


def sampling_operations(
    size: ModelSize, *, n: int, m: int, prompt: float, output: float, shared: bool = True
) -> float:
    """Operations to draw m samples from each of n prompts; not shared, each prompt runs m times."""
    prefill = prompt * size.token(prompt / 2, head=False) + size.head
    written = m * output * size.token(prompt + output / 2, head=True)
    return n * ((1 if shared else m) * prefill + written)


def judging_operations(
    size: ModelSize, *, n: int, m: int, static: float, output: float, shared: bool = True
) -> float:
    """Operations to score m candidates behind each of n texts of ``static`` tokens."""
    text = static * size.token(static / 2, head=False)
    scored = m * output * size.token(static + output / 2, head=True)
    return n * ((1 if shared else m) * text + scored)


def training_operations(
    size: ModelSize,
    *,
    n: int,
    k: int,
    prompt: float,
    output: float,
    epochs: float = 1,
    lora: bool = False,
    pairs: bool = False,
    shared: bool = True,
) -> float:
    """Operations to train on k samples of each of n prompts: forward, and two times that backward.

    With adapters the products for the gradients of the frozen weights fall away. Pairs are read once
    beforehand, by the policy that training starts from.
    """
    text = prompt * size.token(prompt / 2, head=False)
    learnt = k * output * size.token(prompt + output / 2, head=True)
    passes = 2 if lora else 3
    return (passes * epochs + pairs) * n * ((1 if shared else k) * text + learnt)


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine was measured to do, in a few seconds each."""

    start_seconds: float
    """To load a model and lay its weights out."""
    prefill: float
    """Operations a second while prompts are processed."""
    step_seconds: float
    """The part of a decoding step that doesn't depend on its rows."""
    decode: float
    """Operations a second that further rows of a step are worked through at."""
    attention: float = math.inf
    """Operations a second of a row's attention to what it has written: memory bounds it, not arithmetic."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step: so many rows, each with so many tokens written before, took so long."""

    rows: float
    written: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One short run of a generator."""

    seconds: float
    prompts: int
    prompt: float
    """Tokens of a prompt."""
    steps: Sequence[Step] = ()
    """A sample's first token comes from its prompt, and is no step."""


def fit_rates(size: ModelSize, first: Trial, prompts: Trial, decoding: Sequence[Trial]) -> Rates:
    """Work out a generator's rates from short runs.

    Args:
        size: of its model.
        first: one prompt and one token, the model's loading included.
        prompts: several prompts and no step, by the loaded model.
        decoding: runs with steps, of few rows and of many.
    """
    prefill = prompts.seconds / prompts.prompts
    rows = [
        (1.0, s.rows * size.token(t.prompt, head=True), s.rows * s.written * size.attention)
        for t in decoding
        for s in t.steps
    ]
    taken = [s.seconds for t in decoding for s in t.steps]
    step, row, attention = _least_squares(np.array(rows), np.array(taken))
    return Rates(
        start_seconds=max(first.seconds - prefill, 0.0),
        prefill=sampling_operations(size, n=1, m=0, prompt=prompts.prompt, output=0) / prefill,
        step_seconds=step,
        decode=1 / row if row else math.inf,
        attention=1 / attention if attention else math.inf,
    )


def _least_squares(columns: NDArray[np.float64], values: NDArray[np.float64]) -> list[float]:
    """Fit values as a sum of columns, each at least 0 times: nothing takes less than no time."""
    kept = list(range(columns.shape[1]))
    found = [0.0] * columns.shape[1]
    while kept:
        scale = np.maximum(np.abs(columns[:, kept]).max(axis=0), 1e-300)
        fitted = np.linalg.lstsq(columns[:, kept] / scale, values, rcond=None)[0] / scale
        worst = int(fitted.argmin())
        if fitted[worst] >= 0:
            for place, value in zip(kept, fitted, strict=True):
                found[place] = float(value)
            break
        kept.pop(worst)
    return found


def decoding_steps(lengths: Sequence[int], max_rows: int) -> int:
    """Count the steps in which samples of these lengths are written, a free row taking the next one."""
    rows = [0] * min(max_rows, len(lengths))
    for length in lengths:
        heapq.heappush(rows, heapq.heappop(rows) + max(length - 1, 0))
    return max(rows, default=0)


def sampling_seconds(
    size: ModelSize,
    rates: Rates,
    *,
    n: int,
    prompt: float,
    shards: Sequence[Sequence[int]],
    max_rows: int,
) -> float:
    """Estimate the time of :func:`sampling_operations`.

    Args:
        size: of the model.
        rates: of the machine.
        n: prompts.
        prompt: tokens of one.
        shards: the samples' lengths, in the order in which they are drawn; a shard begins when the one
            before has ended.
        max_rows: samples decoded at once, at most.
    """
    lengths = [max(length - 1, 0) for shard in shards for length in shard]
    prefill = sampling_operations(size, n=n, m=0, prompt=prompt, output=0)
    steps = sum(decoding_steps(shard, max_rows) for shard in shards)
    written = sum(lengths) * size.token(prompt, head=True)
    # a row that writes l tokens attends to 1 + 2 + … + l of them
    behind = sum(length * (length + 1) / 2 for length in lengths) * size.attention
    start = rates.start_seconds + prefill / rates.prefill
    return start + steps * rates.step_seconds + written / rates.decode + behind / rates.attention
