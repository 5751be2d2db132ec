"""Supervised fine-tuning on TRL's SFTTrainer, with one row per prompt, in one process or several."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from rest_pg.backends.checkpoints import Checkpoints
from rest_pg.backends.models import load_tokenizer, supports_bfloat16
from rest_pg.backends.prefix_attention import unsupported_reason
from rest_pg.backends.sft_training import Losses, Strategy, Training
from rest_pg.backends.training_rows import check_weights, tokenize_rows
from rest_pg.backends.workers import run_in_workers
from rest_pg.checksums import policy_fingerprint
from rest_pg.config import TrainingParams
from rest_pg.records import PolicyCheckpoint, TrainingExample
from rest_pg.storage.unfinished import note_finished
from rest_pg.temporary import make_temporary_directory


class SharedPromptTrainer:
    """Fine-tunes all weights, or low-rank adapters beside them.

    Each prompt is processed once for all of its completions. Architectures whose attention isn't
    plain (sliding windows, …) get one completion per row instead. Weights train in float32, with
    bfloat16 products where the hardware has them.
    """

    def __init__(
        self,
        gradient_checkpointing: bool = False,
        directory: str | None = None,
        checkpoint_steps: int = 50,
        world_size: int = 1,
        strategy: Strategy = "ddp",
        dtype: Literal["auto", "float32"] = "auto",
    ) -> None:
        """Say how training spares memory, who takes part in it, and what an interruption costs.

        Args:
            gradient_checkpointing: compute activations twice, and keep fewer.
            directory: keeps the last checkpoint of the training at hand, from which it goes on when it
                was interrupted; none: it starts anew.
            checkpoint_steps: optimiser steps between checkpoints.
            world_size: processes on this machine, one per GPU; above 1 they are started for each
                training, and share each step's ``batch_size`` prompts evenly.
            strategy: of several processes: ``ddp``, all have the whole model; ``fsdp2``, each keeps its
                share of weights, gradients and optimiser state.
            dtype: of products: ``auto``, bfloat16 where the hardware has it.

        Raises:
            ValueError: a number is below 1, or a name isn't one of these.
        """
        for name, value in (("checkpoint_steps", checkpoint_steps), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name}={value} is below 1: raise it")
        if strategy not in ("ddp", "fsdp2"):
            raise ValueError(f"strategy={strategy!r} is neither ddp nor fsdp2: name one")
        if dtype not in ("auto", "float32"):
            raise ValueError(f"dtype={dtype!r} is neither auto nor float32: name one")
        self._gradient_checkpointing = gradient_checkpointing
        self._directory, self._checkpoint_steps = directory, checkpoint_steps
        self._world_size, self._strategy, self._dtype = world_size, strategy, dtype

    def train(
        self,
        policy: PolicyCheckpoint,
        examples: Sequence[TrainingExample],
        params: TrainingParams,
        seed: int,
    ) -> tuple[PolicyCheckpoint, dict[str, float]]:
        """Train on the completions; see :class:`~rest_pg.backends.protocols.Trainer`.

        Raises:
            RuntimeError: one of several workers ended before its time.
            ValueError: there are no examples, or one is longer than ``params.max_tokens``, or the
                workers can't share a step evenly.
        """
        started = time.perf_counter()
        if not examples:
            raise ValueError("there are no training examples: none was selected or written")
        self._check_workers(params)
        share = (
            unsupported_reason(AutoConfig.from_pretrained(policy.path, trust_remote_code=False))
            is None
        )
        check_weights(examples, params, share)
        rows = tokenize_rows(
            load_tokenizer(policy),
            examples,
            params.max_tokens,
            share,
            preference=params.preference,
        )
        target = self._make_target()
        checkpoints = self._checkpoints(policy, rows, params, seed)
        if checkpoints is not None:
            checkpoints.note_examples(examples)
        training = Training(
            policy=policy,
            rows=rows,
            params=params,
            seed=seed,
            target=target,
            checkpoints=checkpoints,
            checkpoint_steps=self._checkpoint_steps,
            share=share,
            bfloat16=self._dtype == "auto" and supports_bfloat16(),
            gradient_checkpointing=self._gradient_checkpointing,
            strategy=self._strategy,
        )
        try:
            done = self._run(training)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        if training.checkpoints:
            note_finished(training.checkpoints.directory)
        seconds = time.perf_counter() - started
        n_tokens = sum(len(row["prompt"]) + sum(map(len, row["completions"])) for row in rows)
        return PolicyCheckpoint(target), {
            "examples": len(examples),
            "prompts": len({example.example_id for example in examples}),
            "steps": done.steps,
            "loss_mean": statistics.fmean(done.by_step),
            "loss_first": done.by_step[0],
            "loss_last": done.by_step[-1],
            "tokens": n_tokens,
            "seconds": seconds,
            "tokens_per_second": n_tokens * params.n_epochs(len(rows)) / seconds,
        }

    def _run(self, training: Training) -> Losses:
        if self._world_size == 1:
            return training.run()
        steps = training.params.n_steps(len(training.rows))
        return run_in_workers(self._world_size, training.run, "training", steps, "step")

    def _make_target(self) -> Path:
        """Make the temporary directory that the policy is written to."""
        return make_temporary_directory()

    def _check_workers(self, params: TrainingParams) -> None:
        if params.batch_size % self._world_size:
            raise ValueError(
                f"batch_size={params.batch_size} of sft or maximization can't be shared evenly by "
                f"world_size={self._world_size} workers: make it a multiple"
            )
        sharded = self._world_size > 1 and self._strategy == "fsdp2"
        if sharded and params.lora and params.lora.bits:
            raise ValueError("strategy='fsdp2' can't shard lora.bits=4: use strategy: ddp")

    def _checkpoints(
        self,
        policy: PolicyCheckpoint,
        rows: Sequence[dict[str, Any]],
        params: TrainingParams,
        seed: int,
    ) -> Checkpoints | None:
        if self._directory is None:
            return None
        depends_on: list[Any] = [policy_fingerprint(policy), rows, params.model_dump(), seed]
        if self._world_size > 1:  # what one number of workers wrote another can't go on from
            depends_on += [self._world_size, self._strategy]
        return Checkpoints(self._directory, depends_on)
