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
    def head(self) -> int:
        """Operations of the head for one token, H."""
        return 2 * self.hidden * self.vocabulary

    def token(self, context: float, *, head: bool) -> float:
        """Operations of one token that attends to ``context`` tokens: F + A (+ H)."""
        attention = 4 * self.layers * self.query_size * context
        return 2 * self.body + attention + (self.head if head else 0)


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
    shared: bool = True,
) -> float:
    """Operations to train on k samples of each of n prompts: forward, and two times that backward.

    With adapters the products for the gradients of the frozen weights fall away.
    """
    text = prompt * size.token(prompt / 2, head=False)
    learnt = k * output * size.token(prompt + output / 2, head=True)
    passes = 2 if lora else 3
    return passes * epochs * n * ((1 if shared else k) * text + learnt)


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


@dataclass(frozen=True, slots=True)
class Trial:
    """One short run of a generator: what it did, and how long it took."""

    seconds: float
    prompts: int
    prompt: float
    """Tokens of a prompt."""
    steps: int = 0
    """Decoding steps; a sample's first token comes from its prompt, and isn't one."""
    tokens: int = 0
    """Tokens of all samples, but their first ones."""


def fit_rates(size: ModelSize, first: Trial, prompts: Trial, few: Trial, full: Trial) -> Rates:
    """Work out a generator's rates from four short runs.

    Args:
        size: of its model.
        first: one prompt and one token, the model's loading included.
        prompts: several prompts and no step, by the loaded model.
        few: some rows and a few steps.
        full: as many rows as are decoded at once.
    """
    prefill = prompts.seconds / prompts.prompts
    work = prompts.prompt * size.token(prompts.prompt / 2, head=False) + size.head
    a, b = (max(t.seconds - t.prompts * prefill, 0.0) for t in (few, full))
    # a = few.steps * step + few.tokens * row, and the same for full
    determinant = few.steps * full.tokens - full.steps * few.tokens
    row = (few.steps * b - full.steps * a) / determinant if determinant else 0.0
    # where the clock was disturbed, time can't fall with the rows, and no step takes less than nothing
    row = min(max(row, 1e-3 * b / full.tokens), b / full.tokens)
    step = (b - full.tokens * row) / full.steps
    token = size.token(full.prompt + full.steps / 2, head=True)
    return Rates(
        start_seconds=max(first.seconds - prefill, 0.0),
        prefill=work / prefill,
        step_seconds=step,
        decode=token / row if row else math.inf,
    )


def decoding_steps(lengths: Sequence[int], max_rows: int) -> int:
    """Count the steps in which samples of these lengths are written, a free row taking the next one.

    A sample's first token comes from its prompt.
    """
    rows = [0] * min(max_rows, len(lengths))
    for length in lengths:
        heapq.heappush(rows, heapq.heappop(rows) + max(length - 1, 0))
    return max(rows, default=0)


def sampling_seconds(
    size: ModelSize,
    rates: Rates,
    *,
    n: int,
    m: int,
    prompt: float,
    output: float,
    max_rows: int,
    steps: int | None = None,
) -> float:
    """Estimate the time of :func:`sampling_operations`: prefill, and steps of up to max_rows rows.

    ``steps`` are those of all rows together, where samples differ in length; none: all have ``output``
    tokens.
    """
    prefill = sampling_operations(size, n=n, m=0, prompt=prompt, output=0)
    written = n * m * output * size.token(prompt + output / 2, head=True)
    if steps is None:
        steps = math.ceil(-(-n * m // max_rows) * output)
    start = rates.start_seconds + prefill / rates.prefill
    return start + steps * rates.step_seconds + written / rates.decode
