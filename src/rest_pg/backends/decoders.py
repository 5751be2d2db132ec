"""What samples are written with: prompts in memory, rows behind them, and steps of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rest_pg.backends.prefix_attention import PrefixMemory


class Decoder(Protocol):
    """Groups (prompts) and rows (samples) lie densely: the last one takes a closed one's place."""

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether there is no room for another group, and for another row."""

    def open_group(self, prompt: Tensor) -> Tensor:
        """Read a prompt, [1, tokens], into the next group; return its last logits, [1, vocabulary]."""

    def close_group(self, group: int) -> None:
        """Remove a group without rows."""

    def open_row(self, group: int) -> None:
        """Add a row behind a group."""

    def group_of(self, row: int) -> int:
        """The group that a row stands behind."""

    def close_row(self, row: int) -> None:
        """Remove a row."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; return the logits behind it, [rows, vocabulary].

        They may be overwritten by the next step.
        """


class ModelDecoder:
    """A :class:`Decoder` by the model's own forward, in PyTorch: any covered model, any device."""

    def __init__(
        self, model: Any, *, groups: int, rows: int, prefix_tokens: int, suffix_tokens: int
    ) -> None:
        """Allocate room for ``groups`` prompts and ``rows`` samples."""
        self._model = model
        self._memory = PrefixMemory(
            model.config,
            groups=groups,
            rows=rows,
            prefix_tokens=prefix_tokens,
            suffix_tokens=suffix_tokens,
            like=next(model.parameters()),
        )

    @property
    def full(self) -> tuple[bool, bool]:
        """Whether there is no room for another group, and for another row."""
        return self._memory.full

    def open_group(self, prompt: Tensor) -> Tensor:
        """Read a prompt, [1, tokens], into the next group; return its last logits, [1, vocabulary]."""
        prompt = prompt.to(self._model.device)
        self._memory.open_group(prompt.shape[1])
        logits: Tensor = self._model(
            input_ids=prompt,
            position_ids=torch.arange(prompt.shape[1], device=prompt.device)[None],
            use_cache=False,
            logits_to_keep=1,
            prefix_memory=self._memory,
        ).logits[:, -1]
        return logits

    def close_group(self, group: int) -> None:
        """Remove a group without rows."""
        self._memory.close_group(group)

    def open_row(self, group: int) -> None:
        """Add a row behind a group."""
        self._memory.open_row(group)

    def group_of(self, row: int) -> int:
        """The group that a row stands behind."""
        return int(self._memory.row_group[row])

    def close_row(self, row: int) -> None:
        """Remove a row."""
        self._memory.close_row(row)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; return the logits behind it, [rows, vocabulary]."""
        logits: Tensor = self._model(
            input_ids=torch.tensor(tokens, device=self._model.device)[:, None],
            position_ids=self._memory.plan_step(),
            use_cache=False,
            prefix_memory=self._memory,
        ).logits[:, -1]
        return logits
