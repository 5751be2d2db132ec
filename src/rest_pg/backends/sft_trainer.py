"""Supervised fine-tuning on TRL's SFTTrainer, with one row per prompt."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import (
    AutoConfig,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rest_pg.backends.checkpoints import Checkpoints
from rest_pg.backends.models import (
    check_free_disk,
    load_model,
    load_tokenizer,
    save_model,
    supports_bfloat16,
)
from rest_pg.backends.prefix_attention import unsupported_reason
from rest_pg.backends.shared_prompt import (
    ATTENTION,
    Row,
    collate,
    collate_row,
    completion_losses,
    preference_loss,
    token_losses,
    weighted_loss,
)
from rest_pg.config import PreferenceParams, TrainingParams
from rest_pg.datasets import policy_fingerprint
from rest_pg.memory import explain_lack_of_memory, release_memory
from rest_pg.progress import track, tracked
from rest_pg.records import PolicyCheckpoint, TrainingExample

logger = logging.getLogger(__name__)

TRIED_BEFORE = 200
"""With more rows than these the longest is tried first: it costs less than one in a hundred."""
# TRL still says gradient_checkpointing where transformers says activation_checkpointing
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated")


class _SharedPromptSFTTrainer(SFTTrainer):
    """TRL's trainer with our row layout: the loss alone differs."""

    preference: PreferenceParams | None = None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the row's part of the step's loss; the logits of a whole row are never built."""
        if self.preference is None:
            return weighted_loss(model, inputs, num_items_in_batch)
        loss = preference_loss(model, inputs, self.preference)
        return loss / self.current_gradient_accumulation_steps


class _Progress(TrainerCallback):
    """One bar with the loss and the time left, where the stock one prints a line per step."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._bar = track("training", state.max_steps, "step", done=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._bar.note(f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._bar.close()


class SharedPromptTrainer:
    """Fine-tunes all weights, or low-rank adapters that are merged when the policy is saved.

    Each prompt is processed once for all of its completions. Architectures whose attention isn't
    plain (sliding windows, …) get one completion per row instead. Weights train in float32, with
    bfloat16 products where the hardware has them.
    """

    def __init__(
        self,
        gradient_checkpointing: bool = False,
        directory: str | None = None,
        checkpoint_steps: int = 50,
    ) -> None:
        """Say how training spares memory, and what an interruption costs.

        Args:
            gradient_checkpointing: compute activations twice, and keep fewer.
            directory: keeps the last checkpoint of the training at hand, from which it goes on when it
                was interrupted; none: it starts anew.
            checkpoint_steps: optimiser steps between checkpoints.

        Raises:
            ValueError: ``checkpoint_steps`` is below 1.
        """
        if checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps={checkpoint_steps} is below 1: raise it")
        self._gradient_checkpointing = gradient_checkpointing
        self._directory, self._checkpoint_steps = directory, checkpoint_steps

    def train(
        self,
        policy: PolicyCheckpoint,
        examples: Sequence[TrainingExample],
        params: TrainingParams,
        seed: int,
    ) -> tuple[PolicyCheckpoint, dict[str, float]]:
        """Train on the completions; see :class:`~rest_pg.backends.protocols.Trainer`.

        Raises:
            ValueError: there are no examples, or one is longer than ``params.max_tokens``.
        """
        started = time.perf_counter()
        if not examples:
            raise ValueError("there are no training examples: none was selected or written")
        tokenizer = load_tokenizer(policy)
        share = unsupported_reason(AutoConfig.from_pretrained(policy.path)) is None
        attention = ATTENTION if share else "sdpa"
        _check_weights(examples, params, share)
        rows = tokenize_rows(tokenizer, examples, params.max_tokens, share)
        checkpoints = self._checkpoints(policy, rows, params, seed)
        torch.manual_seed(seed)
        # frozen weights are only multiplied, so they may be bfloat16; what is trained is float32
        frozen = torch.bfloat16 if params.lora and supports_bfloat16() else torch.float32
        model = load_model(policy, frozen, attention)
        if params.preference:
            _add_start_losses(model, rows)
        if params.lora:
            model = _add_adapters(model, params)
        remedy = (
            "lower max_tokens of sft or maximization, or set gradient_checkpointing of the trainer"
        )
        with (
            explain_lack_of_memory("training", f"{remedy} in catalog.yml"),
            tempfile.TemporaryDirectory(prefix="rest-pg-trainer-") as scratch,
        ):
            if len(rows) > TRIED_BEFORE:
                _try_longest(model, rows, share)
            output = str(checkpoints.directory) if checkpoints else scratch
            trainer = _SharedPromptSFTTrainer(
                model=model,
                args=self._arguments(params, seed, output, len(rows)),
                train_dataset=Dataset.from_list(rows),
                data_collator=partial(collate, plain=not share),
                processing_class=tokenizer,
            )
            trainer.preference = params.preference
            for stock in (ProgressCallback, PrinterCallback):
                trainer.remove_callback(stock)
            trainer.add_callback(_Progress())
            if checkpoints:
                trainer.add_callback(checkpoints)
            trainer.train(resume_from_checkpoint=checkpoints.newest() if checkpoints else None)
            steps = trainer.state.global_step
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained = model
        if params.lora:
            adapters = model.peft_config["default"], get_peft_model_state_dict(model)
            # the optimiser and the model in training go before the float32 weights come
            del trainer, model, trained
            release_memory()
            trained = _merge_adapters(policy, *adapters)
        target = Path(tempfile.mkdtemp(prefix="rest-pg-policy-"))
        try:
            check_free_disk(target, 4 * trained.num_parameters())
            save_model(trained, tokenizer, target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        seconds = time.perf_counter() - started
        n_tokens = sum(len(row["prompt"]) + sum(map(len, row["completions"])) for row in rows)
        return PolicyCheckpoint(target), {
            "examples": len(examples),
            "prompts": len({example.example_id for example in examples}),
            "steps": steps,
            "loss_mean": statistics.fmean(losses),
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "tokens": n_tokens,
            "seconds": seconds,
            "tokens_per_second": n_tokens * params.epochs / seconds,
        }

    def _checkpoints(
        self,
        policy: PolicyCheckpoint,
        rows: Sequence[dict[str, Any]],
        params: TrainingParams,
        seed: int,
    ) -> Checkpoints | None:
        if self._directory is None:
            return None
        depends_on = [policy_fingerprint(policy), rows, params.model_dump(), seed]
        return Checkpoints(self._directory, depends_on)

    def _arguments(self, params: TrainingParams, seed: int, output: str, n_rows: int) -> SFTConfig:
        return SFTConfig(
            output_dir=output,
            # one row per forward: nothing is padded, and rows of one step are accumulated
            per_device_train_batch_size=1,
            gradient_accumulation_steps=params.batch_size,
            num_train_epochs=params.epochs,
            max_steps=_max_steps(params, n_rows),
            learning_rate=params.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=params.warmup_ratio,
            weight_decay=params.weight_decay,
            max_grad_norm=params.max_grad_norm,
            optim=params.optimizer,
            gradient_checkpointing=self._gradient_checkpointing,
            bf16=supports_bfloat16(),
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            logging_steps=1,
            save_strategy="no" if self._directory is None else "steps",
            save_steps=self._checkpoint_steps,
            report_to="none",
        )


def _check_weights(
    examples: Sequence[TrainingExample], params: TrainingParams, share: bool
) -> None:
    """Raise ``ValueError`` if pairs and the loss don't go together."""
    rejected = sum(example.weight < 0 for example in examples)
    if rejected and not params.preference:
        raise ValueError(
            f"{rejected} of {len(examples)} training examples are rejected ones, and likelihood "
            "alone can't learn from them: set maximization.preference, or "
            "selection.rejected_per_prompt=0"
        )
    if params.preference and not rejected:
        raise ValueError(
            f"none of {len(examples)} training examples is a rejected one, and preferences need "
            "pairs: raise selection.rejected_per_prompt, or remove maximization.preference"
        )
    if params.preference and not share:
        raise ValueError(
            "maximization.preference needs a prompt's samples in one row, and this policy's "
            "attention can't share them: remove maximization.preference"
        )


@torch.no_grad()
def _add_start_losses(model: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Note each completion's loss under the policy that training starts from, in its products."""
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=supports_bfloat16()):
        for row in tracked(rows, "reading pairs", "prompt"):
            inputs = collate_row(Row(row["prompt"], row["completions"], row["weights"]))
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            row["start_losses"] = completion_losses(token_losses(model, inputs), inputs).tolist()
    model.train()


def _try_longest(model: Any, rows: Sequence[dict[str, Any]], share: bool) -> None:
    """Work once through the longest row: lack of memory shows before an hour is spent."""
    longest = max(rows, key=lambda row: len(row["prompt"]) + sum(map(len, row["completions"])))
    row = Row(longest["prompt"], longest["completions"], longest["weights"])
    inputs = collate_row(row, plain=not share)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=supports_bfloat16()):
        weighted_loss(model, inputs, None).backward()
    model.zero_grad()


def _max_steps(params: TrainingParams, n_rows: int) -> int:
    """Return the steps that cut the epochs short; -1 if they don't."""
    steps = math.ceil(params.epochs * math.ceil(n_rows / params.batch_size))
    return params.max_steps if params.max_steps and params.max_steps < steps else -1


def _add_adapters(model: Any, params: TrainingParams) -> Any:
    assert params.lora is not None
    config = LoraConfig(
        r=params.lora.r,
        lora_alpha=params.lora.alpha,
        lora_dropout=params.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _merge_adapters(policy: PolicyCheckpoint, config: LoraConfig, weights: dict[str, Any]) -> Any:
    """Add the trained adapters to the policy's own weights, in float32."""
    merged = get_peft_model(load_model(policy, torch.float32), config)
    set_peft_model_state_dict(merged, weights)
    return merged.merge_and_unload()


def tokenize_rows(
    tokenizer: Any, examples: Sequence[TrainingExample], max_tokens: int, share: bool = True
) -> list[dict[str, Any]]:
    """Group examples by prompt, as token ids: every completion ends with the end token.

    Args:
        tokenizer: the policy's.
        examples: completions of one example share its prompt.
        max_tokens: of a prompt with one completion.
        share: whether a row may hold several completions.

    Raises:
        ValueError: an example is longer than ``max_tokens``, or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, so a policy could never stop: set one")
    rows: dict[Any, dict[str, Any]] = {}
    for number, example in enumerate(examples):
        prompt = tokenizer(example.prompt, add_special_tokens=False, verbose=False).input_ids
        completion = tokenizer(example.completion, add_special_tokens=False, verbose=False)
        ids = [*completion.input_ids, tokenizer.eos_token_id]
        if len(prompt) + len(ids) > max_tokens:
            raise ValueError(
                f"example {example.example_id} takes {len(prompt)} + {len(ids)} tokens, above "
                f"max_tokens={max_tokens}: raise it, or lower prompt.max_tokens or "
                "examples.max_reference_words"
            )
        key = example.example_id if share else number
        row = rows.setdefault(key, {"prompt": prompt, "completions": [], "weights": []})
        row["completions"].append(ids)
        row["weights"].append(float(example.weight))
    return list(rows.values())
