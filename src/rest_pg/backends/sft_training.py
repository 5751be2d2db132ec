"""One supervised training, as each process that takes part in it runs it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, prepare_model_for_kbit_training
from torch import distributed
from transformers import PrinterCallback, ProgressCallback
from trl.trainer.sft_config import SFTConfig

from rest_pg.backends.adapters import add_adapters, merge_adapters, save_adapters
from rest_pg.backends.checkpoints import Checkpoints
from rest_pg.backends.models import (
    check_free_disk,
    load_in_4_bits,
    load_model,
    load_tokenizer,
    save_model,
)
from rest_pg.backends.sft_loop import LongestFirst, Progress, SharedPromptSFTTrainer
from rest_pg.backends.shared_prompt import (
    ATTENTION,
    collate,
    collate_row,
    completion_losses,
    row_of,
    token_losses,
)
from rest_pg.backends.training_rows import fillers
from rest_pg.backends.workers import from_rank_0, rank, world_size
from rest_pg.config import TrainingParams
from rest_pg.memory import explain_lack_of_memory, release_memory
from rest_pg.progress import tracked
from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import temporary_directory

Strategy = Literal["ddp", "fsdp2"]

# TRL still says gradient_checkpointing where transformers says activation_checkpointing
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a training reports."""

    steps: int
    by_step: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training, ready to be run: by one process, or by each worker of a group at once."""

    policy: PolicyCheckpoint
    rows: list[dict[str, Any]]
    params: TrainingParams
    seed: int
    target: Path
    """An empty directory, which rank 0 writes the trained policy to."""
    checkpoints: Checkpoints | None = None
    checkpoint_steps: int = 50
    share: bool = True
    """Whether a row may hold several completions."""
    bfloat16: bool = False
    gradient_checkpointing: bool = False
    strategy: Strategy = "ddp"

    def run(self) -> Losses:
        """Train, and save the policy; each worker of a group calls this, and takes its part of each step."""
        model = self._load()
        # behind the loading, which draws numbers where it merges adapters
        torch.manual_seed(self.seed)
        rows = self.rows
        if self.params.preference:
            rows = _add_start_losses(model, rows, self.bfloat16)
        if self.params.lora:
            model = add_adapters(model, self.params.lora, autocast=self.bfloat16)
        remedy = (
            "lower max_tokens of sft or maximization, or set gradient_checkpointing of the trainer"
        )
        with (
            explain_lack_of_memory("training", f"{remedy} in catalog.yml"),
            temporary_directory() as scratch,
        ):
            trainer = self._trainer(model, rows, scratch)
            kept = from_rank_0(self.checkpoints.newest) if self.checkpoints else None
            trainer.train(resume_from_checkpoint=kept)
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            done = Losses(steps=trainer.state.global_step, by_step=losses)
            weights = trainer.trained_weights() if self._sharded else None
        # the optimiser goes before anything is merged
        del trainer
        if rank() == 0:
            self._save(model, weights)
        return done

    @property
    def _sharded(self) -> bool:
        return self.strategy == "fsdp2" and world_size() > 1

    def _load(self) -> Any:
        attention = ATTENTION if self.share else "sdpa"
        lora = self.params.lora
        if lora and lora.bits == 4:
            return prepare_model_for_kbit_training(
                load_in_4_bits(self.policy, attention),
                use_gradient_checkpointing=self.gradient_checkpointing,
            )
        # frozen weights are only multiplied, so they may be bfloat16; what is trained is float32
        frozen = torch.bfloat16 if lora and self.bfloat16 and not self._sharded else torch.float32
        return load_model(self.policy, frozen, attention)

    def _trainer(self, model: Any, rows: list[dict[str, Any]], scratch: Path) -> Any:
        filled = fillers(rows, world_size())
        trainer = SharedPromptSFTTrainer(
            model=model,
            args=self._arguments(str(self.checkpoints.directory if self.checkpoints else scratch)),
            train_dataset=Dataset.from_list([*rows, *filled]),
            data_collator=partial(collate, plain=not self.share),
            processing_class=load_tokenizer(self.policy),
        )
        trainer.preference, trainer.n_fillers = self.params.preference, len(filled)
        for stock in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(stock)
        trainer.add_callback(LongestFirst(trainer, max(rows, key=_length)))
        trainer.add_callback(Progress())
        if self.checkpoints:
            trainer.add_callback(self.checkpoints)
        return trainer

    def _arguments(self, output: str) -> SFTConfig:
        params = self.params
        sharding: dict[str, Any] = {}
        if self._sharded:
            own = {"version": 2, "activation_checkpointing": self.gradient_checkpointing}
            sharding = {"fsdp": True, "fsdp_config": own}
        return SFTConfig(
            output_dir=output,
            # one row per forward: nothing is padded, and rows of one step are accumulated
            per_device_train_batch_size=1,
            gradient_accumulation_steps=params.batch_size // world_size(),
            num_train_epochs=params.epochs,
            max_steps=params.n_steps(len(self.rows)),
            learning_rate=params.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=params.warmup_ratio,
            weight_decay=params.weight_decay,
            max_grad_norm=params.max_grad_norm,
            optim=params.optimizer,
            gradient_checkpointing=self.gradient_checkpointing and not self._sharded,
            **sharding,
            bf16=self.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=self.seed,
            data_seed=self.seed,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            logging_steps=1,
            save_strategy="no" if self.checkpoints is None else "steps",
            save_steps=self.checkpoint_steps,
            report_to="none",
        )

    def _save(self, model: Any, weights: dict[str, Any] | None) -> None:
        """Write the policy: whole, or its adapters alone."""
        tokenizer, lora = load_tokenizer(self.policy), self.params.lora
        if lora:
            config = model.peft_config["default"]
            weights = get_peft_model_state_dict(model, state_dict=weights)
            if not lora.merge:
                save_adapters(self.policy, config, weights, self.target)
                tokenizer.save_pretrained(self.target)
                return
            # the model in training goes before the float32 weights come
            del model
            release_memory()
            whole = load_model(self.policy, torch.float32)
            model, weights = merge_adapters(whole, config, weights), None
        elif weights is not None:
            # a sharded model is of a class of its own
            model = load_model(self.policy, torch.float32)
        check_free_disk(self.target, 4 * model.num_parameters())
        save_model(model, tokenizer, self.target, weights)


@torch.no_grad()
def _add_start_losses(
    model: Any, rows: Sequence[dict[str, Any]], bfloat16: bool
) -> list[dict[str, Any]]:
    """Note each completion's loss under the policy that training starts from, in its products.

    Each worker reads its part of the rows, the longest first, so that lack of memory shows at once.
    """
    model.eval()
    own = rows[rank() :: world_size()]
    order = sorted(range(len(own)), key=lambda i: -_length(own[i]))
    found: dict[int, list[float]] = {}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        for i in tracked(order, "reading pairs", "prompt"):
            inputs = collate_row(row_of(own[i]))
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            found[i] = completion_losses(token_losses(model, inputs), inputs).tolist()
    model.train()
    mine = [found[i] for i in range(len(own))]
    parts = [mine]
    if distributed.is_initialized():
        parts = [[] for _ in range(world_size())]
        distributed.all_gather_object(parts, mine)
    n = len(parts)
    return [{**row, "start_losses": parts[i % n][i // n]} for i, row in enumerate(rows)]


def _length(row: dict[str, Any]) -> int:
    return len(row["prompt"]) + sum(map(len, row["completions"]))
