"""TRL's trainer with our rows: the loss, the order of the rows over workers, and one bar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState
from trl.trainer.sft_trainer import SFTTrainer

from rest_pg.backends.shared_prompt import IGNORED, preference_loss, weighted_loss
from rest_pg.backends.workers import world_size
from rest_pg.config import PreferenceParams
from rest_pg.progress import track


class SharedPromptSFTTrainer(SFTTrainer):
    """TRL's trainer with our row layout, in one process or several that share each step's rows.

    A step's loss is over all of its rows, whoever has them: each worker's part is divided by what all of
    them learn from, and multiplied by their number, because gradients are averaged.
    """

    preference: PreferenceParams | None = None
    n_fillers: int = 0
    """Rows at the dataset's end that only make the workers' shares equal."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the row's part of the step's loss; the logits of a whole row are never built."""
        preference = self.preference
        if preference is None or not _is_learnt(inputs):
            return weighted_loss(model, inputs, num_items_in_batch) * world_size()
        loss = preference_loss(model, inputs, preference)
        return loss / num_items_in_batch * world_size()

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Any:
        """Count what the step's loss is divided by, over all workers: tokens; for pairs, prompts."""
        if self.preference is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        n_prompts = torch.tensor(sum(map(_is_learnt, batch_samples)), device=device)
        return self.accelerator.gather(n_prompts).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of one process, for any number of them; fillers come last."""
        if world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        return _FilledSampler(len(train_dataset) - self.n_fillers, self.n_fillers, self.args.seed)

    def create_accelerator_and_postprocess(self) -> None:
        """Have accelerate shard models on CPUs too, which it offers for GPUs: so it can be tested."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.args.use_cpu:
            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def trained_weights(self) -> dict[str, Tensor]:
        """Return all weights, gathered where they are sharded; only rank 0 can rely on them."""
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        return weights


class _FilledSampler(Sampler[int]):
    """What accelerate makes of a random sampler in one process, with fillers behind it."""

    def __init__(self, n_rows: int, n_fillers: int, seed: int) -> None:
        self._order = SeedableRandomSampler(range(n_rows), data_seed=seed)
        self._fillers = range(n_rows, n_rows + n_fillers)

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        yield from self._fillers

    def __len__(self) -> int:
        return len(self._order) + len(self._fillers)

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)


class LongestFirst(TrainerCallback):
    """Works through the longest row before the first step: lack of memory shows before an hour is spent.

    By the trainer's own loss, over the workers it has, and without a trace: gradients go, random numbers
    stay. The optimiser's state isn't there yet, and comes on top with the first step.
    """

    def __init__(self, trainer: SharedPromptSFTTrainer, longest: dict[str, Any]) -> None:
        self._trainer, self._longest = trainer, longest

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Go forward and back once."""
        trainer, model = self._trainer, kwargs["model"]
        inputs = trainer._prepare_inputs(trainer.data_collator([self._longest]))
        one = torch.ones((), device=args.device)
        with torch.random.fork_rng(enabled=True):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=one)
            trainer.accelerator.backward(loss)
        model.zero_grad()


class Progress(TrainerCallback):
    """One bar with the loss and the time left, where the stock one prints a line per step."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self._bar = track("training", state.max_steps, "step", done=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move it."""
        self._bar.update()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self._bar.note(f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self._bar.close()


def _is_learnt(inputs: dict[str, Tensor]) -> bool:
    return bool((inputs["labels"] != IGNORED).any())
