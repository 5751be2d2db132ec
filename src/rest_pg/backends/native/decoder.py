"""Prompts and rows in memory, and steps of all rows by decode.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rest_pg.backends.native.library import Prompt, Step
from rest_pg.backends.native.weights import PANEL, NativeWeights

MAX_THREADS = 16
"""More would have too few panels of a small model each; not measured."""


@dataclass(slots=True)
class _Prompt:
    slot: int
    length: int


@dataclass(slots=True)
class _Row:
    slot: int
    prompt: _Prompt
    written: int = 0


class NativeDecoder:
    """A :class:`~rest_pg.backends.decoders.Decoder` whose steps are one call into decode.cpp.

    Weights, keys and values are bfloat16; sums and the residual stream are float32, so that logits
    are nearer to float32 than those of PyTorch's bfloat16.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        weights: NativeWeights,
        *,
        groups: int,
        rows: int,
        prefix_tokens: int,
        suffix_tokens: int,
    ) -> None:
        """Allocate room for ``groups`` prompts and ``rows`` samples.

        Args:
            library: the compiled code.
            weights: the policy's, in panels.
            groups: prompts in memory at once.
            rows: samples in memory at once.
            prefix_tokens: of the longest prompt.
            suffix_tokens: that a sample may get.
        """
        config, size = weights.config, weights.head_size
        wide = size + -size % PANEL
        prefix, suffix = (n + -n % PANEL for n in (prefix_tokens, suffix_tokens))
        shape = (config.num_hidden_layers, -1, config.num_key_value_heads)
        # pairs of numbers side by side, 64 columns of them; zeros, as unused ones are multiplied by 0
        self._prefix_keys = _zeros(shape, groups, prefix // PANEL, size // 2)
        self._prefix_values = _zeros(shape, groups, wide // PANEL, prefix // 2)
        self._suffix_keys = _zeros(shape, rows, suffix // PANEL, size // 2)
        self._suffix_values = _zeros(shape, rows, wide // PANEL, suffix // 2)
        self._library, self._weights = library, weights
        self._capacities = prefix_tokens, suffix_tokens
        self._free_groups, self._free_rows = list(range(groups)), list(range(rows))
        self._prompts: list[_Prompt] = []
        self._rows: list[_Row] = []
        positions = torch.arange(prefix_tokens + suffix_tokens)[None]
        self._cosine, self._sine = (x[0] for x in weights.rotary(torch.empty(0), positions))
        self._logits = torch.empty(rows, config.vocab_size)
        described = weights.describe()
        described.prefix_keys = self._prefix_keys.data_ptr()
        described.prefix_values = self._prefix_values.data_ptr()
        described.suffix_keys = self._suffix_keys.data_ptr()
        described.suffix_values = self._suffix_values.data_ptr()
        described.groups, described.rows = groups, rows
        described.prefix_tokens, described.suffix_tokens = prefix, suffix
        threads = min(torch.get_num_threads(), MAX_THREADS)
        self._handle = library.rest_pg_decoder(ctypes.byref(described), threads)

    def __del__(self) -> None:
        """Free what the compiled code holds."""
        if hasattr(self, "_handle"):
            self._library.rest_pg_close(self._handle)

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether there is no room for another prompt, and for another row."""
        return not self._free_groups, not self._free_rows

    def open_group(self, prompt: Tensor) -> Tensor:
        """Read a prompt, [1, tokens], into the next group; return its last logits, [1, vocabulary].

        Raises:
            ValueError: it is empty, longer than there is room for, or holds a token without a row in the
                embedding, where the compiled code would read beyond it.
        """
        length = prompt.shape[1]
        if not 1 <= length <= self._capacities[0]:
            raise ValueError(
                f"a prompt of {length} tokens, and room for 1 to {self._capacities[0]}"
            )
        if not 0 <= int(prompt.min()) <= int(prompt.max()) < self._logits.shape[1]:
            raise ValueError(
                f"a prompt holds the token {int(prompt.max())}, and the model has {self._logits.shape[1]}: "
                "take the tokenizer that was saved with it"
            )
        group = _Prompt(self._free_groups.pop(), length)
        self._prompts.append(group)
        tokens, logits = prompt[0].int(), torch.empty(1, self._logits.shape[1])
        told = Prompt(
            tokens=length,
            slot=group.slot,
            token=tokens.data_ptr(),
            cosine=self._cosine.data_ptr(),
            sine=self._sine.data_ptr(),
            logits=logits.data_ptr(),
        )
        self._library.rest_pg_read(self._handle, ctypes.byref(told))
        return logits

    def open_row(self, group: int) -> None:
        """Add a row behind a group."""
        self._rows.append(_Row(self._free_rows.pop(), self._prompts[group]))

    def group_of(self, row: int) -> int:
        """The group that a row stands behind."""
        return next(i for i, p in enumerate(self._prompts) if p is self._rows[row].prompt)

    def close_row(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self._free_rows.append(self._rows[row].slot)
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def close_group(self, group: int) -> None:
        """Remove a group without rows; the last one takes its place."""
        self._free_groups.append(self._prompts[group].slot)
        self._prompts[group] = self._prompts[-1]
        self._prompts.pop()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; return the logits behind it, [rows, vocabulary], float32.

        They are overwritten by the next step.

        Raises:
            ValueError: a row is full.
        """
        rows = self._rows
        if any(row.written == self._capacities[1] for row in rows):
            raise ValueError(f"a row has {self._capacities[1]} tokens, and room for no more")
        told = {
            "token": list(tokens),
            "slot": [row.slot for row in rows],
            "at": [row.written for row in rows],
            "group": [row.prompt.slot for row in rows],
            "prefix_length": [row.prompt.length for row in rows],
        }
        numbers = {name: torch.tensor(values, dtype=torch.int32) for name, values in told.items()}
        positions = numbers["prefix_length"] + numbers["at"]
        numbers["cosine"], numbers["sine"] = self._cosine[positions], self._sine[positions]
        numbers["logits"] = self._logits
        addresses = {name: tensor.data_ptr() for name, tensor in numbers.items()}
        self._library.rest_pg_step(self._handle, ctypes.byref(Step(rows=len(rows), **addresses)))
        for row in rows:
            row.written += 1
        return self._logits[: len(rows)]


def _zeros(shape: tuple[int, int, int], slots: int, panels: int, pairs: int) -> Tensor:
    layers, _, heads = shape
    return torch.zeros(layers, slots, heads, panels, pairs, PANEL, 2, dtype=torch.bfloat16)
