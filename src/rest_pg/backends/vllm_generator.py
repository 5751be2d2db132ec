"""vLLM in process behind the protocols: a generator, and the language model of a judge."""

from __future__ import annotations

import atexit
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from rest_pg.backends.engine_generator import EngineGenerator, EngineLevelScorer
from rest_pg.backends.model_files import check_model, local_directory
from rest_pg.backends.models import EMBEDDED, import_model
from rest_pg.backends.vllm_engine import VllmEngine
from rest_pg.records import PolicyCheckpoint

STALL_SECONDS = 600.0
"""Enough for a first compilation of a large model; a token takes milliseconds."""

NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Of a repository on the hub."""


class VllmGenerator(EngineGenerator):
    """Draws samples with vLLM: prefix caching, several GPUs by its arguments, LoRA adapters as policies."""

    def __init__(
        self, engine: dict[str, Any] | None = None, stall_seconds: float = STALL_SECONDS
    ) -> None:
        """Say how vLLM is started; it starts at the first prompt.

        Args:
            engine: vLLM's engine arguments by name, such as ``tensor_parallel_size``,
                ``data_parallel_size``, ``max_model_len`` or ``gpu_memory_utilization``.
            stall_seconds: without any token, after which it is ended and tried once more.

        Raises:
            ValueError: ``stall_seconds`` isn't positive, or vLLM isn't installed.
        """
        super().__init__(VllmEngine(engine or {}, stall_seconds))


class VllmLevelScorer(EngineLevelScorer):
    """The judge's language model in vLLM: ``scorer`` of :class:`~rest_pg.backends.judges.RubricJudge`."""

    def __init__(
        self,
        model: str = EMBEDDED,
        engine: dict[str, Any] | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """Name the judge (``embedded``, a hub id or a directory); the rest as in :class:`VllmGenerator`."""
        super().__init__(VllmEngine(engine or {}, stall_seconds), partial(_find, model))


def _find(model: str) -> PolicyCheckpoint:
    """Return where a model lies; the embedded one is written out for as long as this process runs."""
    if model == EMBEDDED:
        judge = import_model(EMBEDDED)
        atexit.register(shutil.rmtree, judge.path, ignore_errors=True)
        return judge
    check_model(model)
    if (directory := local_directory(model)) is not None:
        return PolicyCheckpoint(directory)
    return PolicyCheckpoint(Path(snapshot_download(model, allow_patterns=NEEDED_FILES)))
