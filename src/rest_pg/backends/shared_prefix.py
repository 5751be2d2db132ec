"""The default generator: every prompt is processed once, however many samples share it.

Continuous batching over :class:`~rest_pg.backends.prefix_attention.PrefixMemory`: a sample that ends
leaves, and a waiting one takes its place, so that the batch stays full to the end.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from rest_pg.backends.decoders import Decoder, ModelDecoder
from rest_pg.backends.models import (
    load_model,
    load_tokenizer,
    stop_tokens,
    supports_bfloat16,
)
from rest_pg.backends.native import (
    NativeDecoder,
    NativeWeights,
    load_library,
)
from rest_pg.backends.native import (
    unsupported_reason as native_unsupported_reason,
)
from rest_pg.backends.packed_linear import pack_linear_layers
from rest_pg.backends.prefix_attention import ATTENTION, unsupported_reason
from rest_pg.backends.protocols import Generation, GenerationRequest
from rest_pg.backends.repeated_cache import RepeatedCacheGenerator
from rest_pg.backends.sampling import draw_tokens
from rest_pg.config import Decoding
from rest_pg.memory import explain_lack_of_memory, reuse_freed_memory
from rest_pg.progress import Track, track
from rest_pg.records import PolicyCheckpoint

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Row:
    """A sample being written."""

    request: int
    sample_index: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """A prompt in memory, and the samples that still wait to be drawn from it."""

    request: int
    first_logits: Tensor
    waiting: deque[int]
    n_open: int = 0


class SharedPrefixGenerator:
    """Draws samples in process with a transformers model, on the CPU or one GPU.

    Weights are bfloat16 where the hardware multiplies it natively, else float32. Architectures that
    :mod:`~rest_pg.backends.prefix_attention` doesn't cover (such as those with sinks) fall back to
    :class:`~rest_pg.backends.repeated_cache.RepeatedCacheGenerator`, with a warning.
    """

    def __init__(
        self,
        max_rows: int = 32,
        max_cache_tokens: int = 65_536,
        dtype: str = "auto",
        pack: bool = True,
        native: bool = True,
    ) -> None:
        """Bound the batch.

        Args:
            max_rows: samples decoded at once, at most.
            max_cache_tokens: tokens whose keys and values are kept at once, at most, however many
                prompts there are: a prompt counts once for all of its samples. (SmolLM2-135M in
                bfloat16: 23 kB a token.)
            dtype: auto, bfloat16 or float32; int8 weights with float32 activations, on the CPU
                (the same reward in docs/experiments.md).
            pack: lay linear layers out for the CPU's kernels.
            native: decode in machine code (:mod:`rest_pg.backends.native`) where bfloat16 is
                multiplied by a CPU that it knows, and a C++ compiler is installed.

        Raises:
            ValueError: ``max_rows`` is below 1, or ``dtype`` is none of these.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} is below 1: raise it")
        choices = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.float32}
        choices["auto"] = choices["bfloat16" if supports_bfloat16() else "float32"]
        if dtype not in choices:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(choices)}: name one")
        self._max_rows, self._max_cache_tokens = max_rows, max_cache_tokens
        self._dtype, self._pack, self._int8 = choices[dtype], pack, dtype == "int8"
        self._native = native and self._dtype == torch.bfloat16
        self._loaded: tuple[Path, Callable[..., Decoder], set[int]] | None = None

    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Draw every sample of every request; see :class:`~rest_pg.backends.protocols.Generator`.

        Raises:
            ValueError: the longest prompt and one sample are above ``max_cache_tokens``.
        """
        config = AutoConfig.from_pretrained(policy.path, trust_remote_code=False)
        if reason := unsupported_reason(config):
            logger.warning("no shared prefix for %s (%s): repeating its cache", policy.path, reason)
            return RepeatedCacheGenerator(self._dtype).generate(policy, requests, decoding)
        remedy = "lower max_rows or max_cache_tokens of the generator in catalog.yml"
        with (
            torch.inference_mode(),
            reuse_freed_memory(),
            explain_lack_of_memory("sampling", remedy),
        ):
            run = self._start(policy, requests, decoding)
            done = {(g.example_id, g.sample_index): g for g in run.generations()}
            del run  # its memory is given back here
        return [done[r.example_id, i] for r in requests for i in range(len(r.seeds))]

    @torch.inference_mode()
    def stream(
        self, policy: PolicyCheckpoint, request: GenerationRequest, decoding: Decoding
    ) -> Iterator[str | Generation]:
        """Draw one sample, and yield its text as it is written, then the whole of it.

        The pieces join to the sample's text, which is the one that :meth:`generate` draws. Where the policy's
        attention isn't covered, they come in one piece.

        Raises:
            ValueError: the request asks for more than one sample.
        """
        if len(request.seeds) != 1:
            raise ValueError(f"{len(request.seeds)} samples can't be streamed: ask for one")
        if unsupported_reason(AutoConfig.from_pretrained(policy.path, trust_remote_code=False)):
            (whole,) = self.generate(policy, [request], decoding)
            yield from (whole.text, whole)
            return
        run = self._start(policy, [request], decoding)
        shown = ""
        for event in run.events():
            if event is not None:
                yield event.text.removeprefix(shown)
                yield event
            elif run.rows:
                text: str = run.tokenizer.decode(run.rows[0].tokens, skip_special_tokens=True)
                # the bytes of a character may be spread over tokens
                if not text.endswith("\ufffd") and text.startswith(shown) and text != shown:
                    yield text.removeprefix(shown)
                    shown = text

    def _start(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> _Run:
        """Load a policy, once for all calls in a row that ask for it, and queue the requests."""
        if self._loaded is None or self._loaded[0] != policy.path:
            self._loaded = None  # never two of them in memory
            self._loaded = (policy.path, *self._load(policy))
        _, start, stop = self._loaded
        limits = (self._max_rows, self._max_cache_tokens)
        return _Run(start, load_tokenizer(policy), stop, requests, decoding, *limits)

    def _load(self, policy: PolicyCheckpoint) -> tuple[Callable[..., Decoder], set[int]]:
        """Load a policy; return what starts a decoder of it, and its stop tokens."""
        model = load_model(policy, self._dtype, ATTENTION).eval()
        stop = stop_tokens(model, load_tokenizer(policy))
        if self._native and native_unsupported_reason(model.config) is None:
            library = load_library()
            if library is not None:
                return partial(NativeDecoder, library, NativeWeights(model)), stop
        if (self._pack or self._int8) and model.device.type == "cpu":
            pack_linear_layers(model, self._max_rows, int8=self._int8)
        return partial(ModelDecoder, model), stop


class _Run:
    """One call of ``generate``: the queue of requests, and the batch that works through it."""

    def __init__(
        self,
        start: Callable[..., Decoder],
        tokenizer: Any,
        stop: set[int],
        requests: Sequence[GenerationRequest],
        decoding: Decoding,
        max_rows: int,
        max_cache_tokens: int,
    ) -> None:
        self.tokenizer, self.requests = tokenizer, requests
        self.decoding, self.stop = decoding, stop
        self.prompts = [
            tokenizer(r.prompt, add_special_tokens=False, return_tensors="pt").input_ids
            for r in requests
        ]
        # the longest first: lack of memory shows at once, and the batch ends on short work
        by_length = sorted(range(len(requests)), key=lambda i: -self.prompts[i].shape[1])
        self.queue = deque(i for i in by_length if requests[i].seeds)
        self.n_samples = sum(len(r.seeds) for r in requests)
        prefix_tokens = max((p.shape[1] for p in self.prompts), default=1)
        rows, groups = fit_cache(
            [len(requests[i].seeds) for i in self.queue],
            prefix_tokens,
            decoding.max_new_tokens,
            max_rows,
            max_cache_tokens,
        )
        self.decoder = start(
            groups=groups,
            rows=rows,
            prefix_tokens=prefix_tokens,
            suffix_tokens=decoding.max_new_tokens,
        )
        self.groups: list[_Group] = []
        self.rows: list[_Row] = []

    def generations(self) -> Iterator[Generation]:
        """Yield samples as they end."""
        return (event for event in self.events() if event is not None)

    def events(self) -> Iterator[Generation | None]:
        """Yield samples as they end, and None after each step of all rows."""
        bar = track("sampling", self.n_samples, "sample")
        while self.queue or self.groups:
            yield from self._admit(bar)
            if not self.rows:
                continue
            logits = self.decoder.step([row.tokens[-1] for row in self.rows])
            bar.count_tokens(len(self.rows))
            yield from self._extend(logits, bar)
            yield None
        bar.close()

    def _admit(self, bar: Track) -> Iterator[Generation]:
        """Fill free rows: first from prompts in memory, then from new ones."""
        while not self.decoder.full[1]:
            group = next((i for i, g in enumerate(self.groups) if g.waiting), None)
            if group is None:
                if not self.queue or self.decoder.full[0]:
                    return
                group = self._prefill(self.queue.popleft())
            state = self.groups[group]
            index = state.waiting.popleft()
            seed = self.requests[state.request].seeds[index]
            row = _Row(state.request, index, torch.Generator().manual_seed(seed))
            self.decoder.open_row(group)
            state.n_open += 1
            self.rows.append(row)
            token = int(draw_tokens(state.first_logits, *self._how(), [row.generator])[0])
            yield from self._write(len(self.rows) - 1, token, bar)

    def _prefill(self, request: int) -> int:
        """Process a prompt, once; return its group."""
        logits = self.decoder.open_group(self.prompts[request])
        waiting = deque(range(len(self.requests[request].seeds)))
        self.groups.append(_Group(request, logits, waiting))
        return len(self.groups) - 1

    def _extend(self, logits: Tensor, bar: Track) -> Iterator[Generation]:
        """Draw the next token of every row; rows are visited backwards, as closing one moves one."""
        tokens = draw_tokens(logits, *self._how(), [row.generator for row in self.rows]).tolist()
        for position in reversed(range(len(self.rows))):
            yield from self._write(position, tokens[position], bar)

    def _write(self, position: int, token: int, bar: Track) -> Iterator[Generation]:
        """Append a token to a row; yield the sample if that ends it."""
        row = self.rows[position]
        finished = token in self.stop
        if not finished:
            row.tokens.append(token)
        if not finished and len(row.tokens) < self.decoding.max_new_tokens:
            return
        group = self.decoder.group_of(position)
        self.decoder.close_row(position)
        self.rows[position] = self.rows[-1]
        self.rows.pop()
        self._release(group)
        bar.update()
        yield Generation(
            example_id=self.requests[row.request].example_id,
            sample_index=row.sample_index,
            text=self.tokenizer.decode(row.tokens, skip_special_tokens=True),
            finished=finished,
            n_tokens=len(row.tokens) + finished,
        )

    def _release(self, group: int) -> None:
        """Forget a prompt when its last sample has ended."""
        state = self.groups[group]
        state.n_open -= 1
        if state.n_open == 0 and not state.waiting:
            self.decoder.close_group(group)
            self.groups[group] = self.groups[-1]
            self.groups.pop()

    def _how(self) -> tuple[float, float]:
        return self.decoding.temperature, self.decoding.top_p


def fit_cache(
    samples: Sequence[int],
    prefix_tokens: int,
    suffix_tokens: int,
    max_rows: int,
    max_tokens: int,
) -> tuple[int, int]:
    """Work out how many samples and how many prompts are in memory at once.

    Args:
        samples: of each prompt.
        prefix_tokens: of the longest prompt.
        suffix_tokens: that a sample may get.
        max_rows: samples at once, at most.
        max_tokens: of all prompts and samples in memory, at most.

    Returns:
        Rows and groups, both at least 1.

    Raises:
        ValueError: one prompt with one sample is above ``max_tokens``.
    """
    fewest = min(samples, default=1)
    for rows in range(min(max_rows, max(sum(samples), 1)), 0, -1):
        # one prompt more than fills the batch, so that freed rows find work
        most = min(rows // fewest + 2, max(len(samples), 1), rows)
        needed = min(-(-rows // fewest), most)
        for groups in range(most, needed - 1, -1):
            if groups * prefix_tokens + rows * suffix_tokens <= max_tokens:
                return rows, groups
    raise ValueError(
        f"a prompt of {prefix_tokens} tokens with a sample of {suffix_tokens} is above the "
        f"generator's max_cache_tokens={max_tokens}: raise it, or lower prompt.max_tokens or "
        "decoding.max_new_tokens"
    )
