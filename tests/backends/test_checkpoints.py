import json
from pathlib import Path

import pytest
import torch
from conftest import Malicious

from rest_pg.backends import checkpoints
from rest_pg.backends.sft_loop import Progress
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.sft_training import Losses, Training
from rest_pg.checksums import mark_complete
from rest_pg.config import TrainingParams
from rest_pg.records import PolicyCheckpoint, TrainingExample
from rest_pg.storage.unfinished import remove_finished

EXAMPLES = [
    TrainingExample(example_id=str(i), prompt=f"<s>about {word}", completion=f"We {word}s.")
    for i, word in enumerate(["sail", "row", "walk", "ride", "run"])
]
PARAMS = TrainingParams(epochs=2, batch_size=1, learning_rate=1e-2, max_tokens=64)


class InterruptionError(Exception):
    """What stands for a lost machine."""


def trainer(tmp_path: Path) -> SharedPromptTrainer:
    return SharedPromptTrainer(directory=str(tmp_path / "kept"), checkpoint_steps=3)


@pytest.fixture
def interrupted():
    """Have the training end behind a step; with ``whole=False`` while its checkpoint is written."""

    def at(step: int, *, whole: bool = True) -> None:
        patched = pytest.MonkeyPatch()
        on_save = checkpoints.Checkpoints.on_save

        def stop(self, args, state, control, **kwargs):
            if whole or state.global_step < step:
                on_save(self, args, state, control, **kwargs)
            if state.global_step == step:
                patched.undo()
                raise InterruptionError

        patched.setattr(checkpoints.Checkpoints, "on_save", stop)

    return at


def weights(policy: PolicyCheckpoint) -> bytes:
    return (policy.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
@pytest.mark.parametrize("preference", [None, {"beta": 0.5, "likelihood": 1.0}])
def test_a_training_that_goes_on_ends_with_the_same_bytes(
    policy: PolicyCheckpoint, tmp_path: Path, interrupted, monkeypatch, lora, preference
) -> None:
    params = TrainingParams.model_validate(
        PARAMS.model_dump() | {"lora": lora, "preference": preference}
    )
    examples = EXAMPLES
    if preference:
        worse = [
            TrainingExample(example_id=e.example_id, prompt=e.prompt, completion="No.", weight=-1.0)
            for e in EXAMPLES
        ]
        examples = EXAMPLES + worse
    losses: list[list[float]] = []
    run = Training.run

    def noted(self: Training) -> Losses:
        done = run(self)
        losses.append(done.by_step)
        return done

    monkeypatch.setattr(Training, "run", noted)
    straight, expected = SharedPromptTrainer().train(policy, examples, params, seed=3)
    interrupted(6)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, examples, params, seed=3)
    (kept,) = (tmp_path / "kept").rglob("checkpoint-*")
    assert kept.name == "checkpoint-6"
    resumed, figures = trainer(tmp_path).train(policy, examples, params, seed=3)
    for name in ("steps", "loss_first", "loss_last", "loss_mean"):
        assert figures[name] == expected[name]
    before, after = losses  # what was stopped returned none
    assert len(before) == 10
    assert after == before  # at each step
    assert weights(resumed) == weights(straight)


@pytest.mark.parametrize(("done", "repeated"), [(2, 2), (3, 0), (4, 1), (8, 2)])
def test_what_is_repeated_is_less_than_between_two_checkpoints(
    policy: PolicyCheckpoint, tmp_path: Path, monkeypatch, done: int, repeated: int
) -> None:
    """Ten steps, and a checkpoint behind each third: what was done since the last is done again."""
    begun: list[int] = []

    def note(self, args, state, control, **kwargs):
        begun.append(state.global_step)
        if len(begun) == done + 1:
            raise InterruptionError

    monkeypatch.setattr(Progress, "on_step_begin", note, raising=False)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert begun[: done + 1] == list(range(done + 1))
    assert begun[done + 1 :] == list(range(done - repeated, 10))


def test_the_last_whole_checkpoint_counts(
    policy: PolicyCheckpoint, tmp_path: Path, interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(6, whole=False)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert len(list((tmp_path / "kept").rglob("checkpoint-*"))) == 2
    with caplog.at_level("INFO", logger="rest_pg"):
        resumed, _ = trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert "goes on behind step 3" in caplog.text
    straight, _ = SharedPromptTrainer().train(policy, EXAMPLES, PARAMS, seed=3)
    assert weights(resumed) == weights(straight)


def test_a_damaged_checkpoint_is_left_out_and_another_training_takes_none(
    policy: PolicyCheckpoint, tmp_path: Path, interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(3)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    (kept,) = (tmp_path / "kept").rglob("checkpoint-3")
    state = kept / "trainer_state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps(values | {"global_step": 4}))
    with caplog.at_level("INFO", logger="rest_pg"):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert "a checkpoint is left out" in caplog.text
    assert "goes on" not in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="rest_pg"):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=4)
    assert "goes on" not in caplog.text
    assert len(list((tmp_path / "kept").iterdir())) == 2  # each keeps its own


def test_a_checkpoint_survives_another_training_until_its_policy_is_saved(
    policy: PolicyCheckpoint, tmp_path: Path, interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(3)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=4)
    remove_finished()
    with caplog.at_level("INFO", logger="rest_pg"):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert "goes on behind step 3" in caplog.text
    assert len(list((tmp_path / "kept").iterdir())) == 1
    remove_finished()
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_malicious_checkpoint_runs_nothing(
    policy: PolicyCheckpoint, tmp_path: Path, interrupted, name: str
) -> None:
    """Whoever can write there can make its checksum, too."""
    interrupted(6)
    with pytest.raises(InterruptionError):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    (kept,) = (tmp_path / "kept").rglob("checkpoint-6")
    assert (kept / name).exists()
    torch.save({"state": Malicious(tmp_path / "ran")}, kept / name)
    mark_complete(kept)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        trainer(tmp_path).train(policy, EXAMPLES, PARAMS, seed=3)
    assert not (tmp_path / "ran").exists()
