"""Where a training that was interrupted goes on: checkpoints that are whole, or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kedro.io.core import DatasetError
from torch import distributed
from transformers import TrainerCallback, TrainerState, TrainingArguments

from rest_pg.checksums import ROWS, check_policy, example_digest, mark_complete
from rest_pg.records import TrainingExample

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
"""How transformers' trainer names a checkpoint, with its step behind."""


class Checkpoints(TrainerCallback):
    """The checkpoints of one training, in a directory named for all that its result depends on.

    Each gets its files' checksums, written last (``complete.json``), and only then the one before it
    goes: a machine that is lost while one is written costs the steps since the last whole one.
    """

    def __init__(self, root: str | Path, depends_on: list[Any]) -> None:
        """Name the place; what other trainings keep beside it stays."""
        key = json.dumps(depends_on, sort_keys=True, default=str)
        self.directory = Path(root) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.directory.mkdir(parents=True, exist_ok=True)

    def note_examples(self, examples: Sequence[TrainingExample]) -> None:
        """Keep what tells whose examples the training is of; no text stands in it."""
        digests = sorted({example_digest(asdict(example)) for example in examples})
        (self.directory / ROWS).write_text(json.dumps(digests), encoding="utf-8")

    def newest(self) -> str | None:
        """Return the last whole checkpoint; those that are not whole are removed."""
        found = None
        for path in sorted(self.directory.glob(f"{PREFIX}*"), key=_step):
            try:
                check_policy(path)
            except DatasetError as error:
                logger.warning("a checkpoint is left out: %s", error)
                shutil.rmtree(path)
            else:
                found = path
        if found is not None:
            logger.info("the training goes on behind step %d", _step(found))
        return None if found is None else str(found)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        """Mark what was just written as whole; then remove those before it. Rank 0 does it for all."""
        if distributed.is_initialized():
            distributed.barrier()  # each rank writes the state of its own random numbers
        if not state.is_world_process_zero:
            return
        newest = self.directory / f"{PREFIX}{state.global_step}"
        mark_complete(newest)
        for path in self.directory.glob(f"{PREFIX}*"):
            if path != newest:
                shutil.rmtree(path)


def _step(path: Path) -> int:
    number = path.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1
