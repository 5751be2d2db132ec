"""Several processes train as one does: the same losses, the same policy, and nothing left running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from rest_pg.backends.checkpoints import Checkpoints
from rest_pg.backends.models import load_model, load_tokenizer
from rest_pg.backends.sft_loop import Progress, SharedPromptSFTTrainer
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.sft_training import Training
from rest_pg.backends.training_rows import tokenize_rows
from rest_pg.backends.workers import rank, run_in_workers
from rest_pg.config import TrainingParams
from rest_pg.records import PolicyCheckpoint, TrainingExample

# five prompts in steps of four: the last step of each epoch is one row, and one worker has a filler;
# unequal lengths and weights: a mean of the workers' means would be another loss
EXAMPLES = [
    TrainingExample(
        example_id=str(i), prompt=f"<s>about {word}", completion=f"We {word}{'!' * i}.", weight=w
    )
    for i, (word, w) in enumerate(
        [("sail", 1.0), ("row", 0.9), ("walk", 0.5), ("ride", 0.7), ("run", 0.3)]
    )
] + [TrainingExample(example_id="0", prompt="<s>about sail", completion="No.", weight=0.5)]
PAIRS = [
    TrainingExample(example_id=e.example_id, prompt=e.prompt, completion="No.", weight=-1.0)
    for e in EXAMPLES[1:4]
]
PARAMS = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "max_tokens": 64}
LORA = {"r": 4, "alpha": 8}
CASES: dict[str, dict[str, Any]] = {
    "all_weights": {},
    "merged_adapters": {"lora": LORA},
    "adapters": {"lora": LORA | {"merge": False}},
    "pairs": {"preference": {"beta": 0.5, "likelihood": 0.5}},
}
STRATEGIES = ("ddp", "fsdp2")

pytestmark = pytest.mark.slow


class InterruptionError(Exception):
    """What stands for a lost machine."""


def training(
    policy: PolicyCheckpoint, root: Path, name: str, case: str = "all_weights", **own: Any
) -> Training:
    target = root / name
    target.mkdir(parents=True)
    params = TrainingParams.model_validate(PARAMS | CASES[case])
    examples = EXAMPLES + (PAIRS if params.preference else [])
    rows = tokenize_rows(load_tokenizer(policy), examples, params.max_tokens)
    return Training(policy=policy, rows=rows, params=params, seed=3, target=target, **own)


def run_each(trainings: list[Training]) -> list[tuple[list[float], bool]]:
    """In every worker: run one after the other; return losses, and whether the model was sharded."""
    sharded: list[bool] = []
    weights = SharedPromptSFTTrainer.trained_weights

    def noted(self: Any) -> Any:
        sharded[-1] = isinstance(self.model, FSDPModule)
        return weights(self)

    SharedPromptSFTTrainer.trained_weights = noted  # type: ignore[method-assign]
    found = []
    for own in trainings:
        AcceleratorState._reset_state(reset_partial_state=True)
        sharded.append(False)
        found.append((own.run().by_step, sharded[-1]))
    return found


def straight_and_resumed(straight: list[Training], kept: list[Training], step: int) -> Any:
    """In every worker: run the first; stop the second behind a step, its checkpoint written, and go on."""
    expected = run_each(straight)
    on_save = Checkpoints.on_save

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_save(self, args, state, control, **kwargs)
        distributed.barrier()
        if state.global_step == step:
            raise InterruptionError

    Checkpoints.on_save = stop  # type: ignore[method-assign]
    for own in kept:
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(InterruptionError):
            own.run()
    Checkpoints.on_save = on_save  # type: ignore[method-assign]
    return expected, run_each(kept)


def die(own: Training, place: int, step: int) -> Any:
    """In every worker: run, and in one rank be killed at a step."""
    on_step_end = Progress.on_step_end

    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        if rank() == place and state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Progress.on_step_end = kill  # type: ignore[method-assign]
    return own.run()


def in_two(work: Callable[[], Any]) -> Any:
    return run_in_workers(2, work, "training", 6, "step")


def weights(directory: Path) -> dict[str, Any]:
    (file,) = directory.glob("*.safetensors")
    return load_file(file)


def test_the_losses_of_each_step_and_the_policy_are_those_of_one_process(
    policy: PolicyCheckpoint, tmp_path: Path
) -> None:
    many = [(s, c) for s in STRATEGIES for c in CASES]
    alone = {c: training(policy, tmp_path, f"one/{c}", c).run() for c in CASES}
    trainings = [training(policy, tmp_path, f"{s}/{c}", c, strategy=s) for s, c in many]
    for (strategy, case), (losses, sharded) in zip(
        many, in_two(partial(run_each, trainings)), strict=True
    ):
        assert sharded == (strategy == "fsdp2")
        assert losses == pytest.approx(alone[case].by_step, rel=1e-5), (strategy, case)
        expected, found = weights(tmp_path / "one" / case), weights(tmp_path / strategy / case)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert (tensor - found[name]).abs().max() < 1e-4, (strategy, case, name)
        saved = PolicyCheckpoint(tmp_path / strategy / case)
        assert type(load_model(saved, torch.float32)).__name__ == "LlamaForCausalLM"


def test_a_training_of_several_goes_on_where_it_was(
    policy: PolicyCheckpoint, tmp_path: Path
) -> None:
    def kept(name: str, strategy: str) -> Training:
        checkpoints = Checkpoints(tmp_path / "kept" / strategy, [strategy])
        own: dict[str, Any] = {"checkpoints": checkpoints, "checkpoint_steps": 2}
        return training(policy, tmp_path, f"{name}/{strategy}", strategy=strategy, **own)

    plain = [training(policy, tmp_path, f"straight/{s}", strategy=s) for s in STRATEGIES]
    stopped = [kept("resumed", s) for s in STRATEGIES]
    expected, resumed = in_two(partial(straight_and_resumed, plain, stopped, step=2))
    assert resumed == expected
    for strategy in STRATEGIES:
        straight, found = (weights(tmp_path / n / strategy) for n in ("straight", "resumed"))
        assert all((tensor == found[name]).all() for name, tensor in straight.items())


class Dying(SharedPromptTrainer):
    """A trainer of two, whose second worker is killed at step 3."""

    def _run(self, training: Training) -> Any:
        return in_two(partial(die, training, place=1, step=3))


def test_a_worker_that_dies_is_named_the_others_end_and_the_next_try_goes_on(
    policy: PolicyCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = TrainingParams.model_validate(PARAMS)
    own: dict[str, Any] = {
        "directory": str(tmp_path / "kept"),
        "checkpoint_steps": 2,
        "world_size": 2,
        "dtype": "float32",
    }
    with pytest.raises(
        RuntimeError, match=r"training ended early: rank 1 \(SIGKILL\).* of 2 workers"
    ):
        Dying(**own).train(policy, EXAMPLES, params, seed=3)
    assert not workers()
    trained, figures = SharedPromptTrainer(**own).train(policy, EXAMPLES, params, seed=3)
    assert not workers()
    straight, expected = SharedPromptTrainer(dtype="float32").train(policy, EXAMPLES, params, 3)
    assert figures["steps"] == expected["steps"] == 6
    for name in ("loss_first", "loss_last", "loss_mean"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-5)
    found = weights(trained.path)
    for name, tensor in weights(straight.path).items():
        assert (tensor - found[name]).abs().max() < 1e-4


def workers() -> list[psutil.Process]:
    """Return what still runs of the workers of this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for_ever() -> None:
    time.sleep(600)


def test_what_is_interrupted_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.multiprocessing.spawn import ProcessContext

    def stop(self: Any, timeout: float | None = None) -> bool:
        assert len(workers()) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessContext, "join", stop)
    with pytest.raises(KeyboardInterrupt):
        in_two(wait_for_ever)
    assert not workers()


def test_what_several_cannot_share_is_refused(policy: PolicyCheckpoint) -> None:
    with pytest.raises(ValueError, match=r"batch_size=4 of sft or maximization .* world_size=3"):
        SharedPromptTrainer(world_size=3).train(
            policy, EXAMPLES, TrainingParams.model_validate(PARAMS), seed=3
        )
    with pytest.raises(ValueError, match="neither ddp nor fsdp2"):
        SharedPromptTrainer(strategy="zero")  # type: ignore[arg-type]
