"""A real Ray cluster on this machine, with two workers: the results of one process, whoever is killed.

Run by ``make test-cluster``, in an environment that has Ray.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import build_policy
from safetensors.torch import load_file

from rest_pg.backends.cluster import (
    ClusterGenerator,
    ClusterReward,
    ClusterTrainer,
    _connect,
)
from rest_pg.backends.protocols import GenerationRequest, Target
from rest_pg.backends.rewards import CompositeReward
from rest_pg.backends.sft_loop import Progress
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.sft_training import Training
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.backends.workers import rank
from rest_pg.config import Decoding, TrainingParams
from rest_pg.records import PolicyCheckpoint, Sample, TrainingExample

# not imported here: it reads settings when it is
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster")

DECODING = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=6)
ENGINE = {"max_rows": 4, "dtype": "float32"}
REQUESTS = [
    GenerationRequest(example_id=f"e{i}", prompt=f"<s>Write {i}:", seeds=(i, i + 10))
    for i in range(7)
]
WEIGHTS = {"rouge_1": 0.5, "rouge_l": 0.5}
WORDS = ["sail", "row", "walk", "ride", "run"]
EXAMPLES = [
    TrainingExample(example_id=str(i), prompt=f"<s>about {word}", completion=f"We {word}{'!' * i}.")
    for i, word in enumerate(WORDS)
]
PARAMS = TrainingParams(epochs=3, batch_size=4, learning_rate=1e-2, max_tokens=64)


def once(marker: str) -> None:
    """Kill this process, the first time that anybody gets here."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class DyingGenerator(SharedPrefixGenerator):
    """Is killed while it draws for e3, once."""

    def __init__(self, marker: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._marker = marker

    def generate(self, policy: Any, requests: Any, decoding: Any) -> Any:
        drawn = super().generate(policy, requests, decoding)
        if any(request.example_id == "e3" for request in requests):
            once(self._marker)
        return drawn


class DoomedGenerator:
    """Kills every worker it is built in at its first call."""

    def generate(self, policy: Any, requests: Any, decoding: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class DyingTraining(Training):
    """Its second worker is killed at step 3, once."""

    marker: str

    def run(self) -> Any:
        on_step_end = Progress.on_step_end

        def kill(own: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step_end(own, args, state, control, **kwargs)
            if rank() == 1 and state.global_step == 3:
                once(self.marker)

        Progress.on_step_end = kill  # type: ignore[method-assign]
        return Training.run(self)


class DyingTrainer(ClusterTrainer):
    def __init__(self, marker: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._marker = marker

    def _run(self, training: Training) -> Any:
        own = {f.name: getattr(training, f.name) for f in fields(training)}
        return super()._run(DyingTraining(marker=self._marker, **own))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyCheckpoint:
    return build_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Have workers find this module by name; end the cluster behind the tests."""
    here = Path(__file__).parent
    given = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    # at Ray's own niceness workers wait for whatever else the machine does
    os.environ.update(PYTHONPATH=os.pathsep.join(given), RAY_worker_niceness="0")
    yield
    import ray

    ray.shutdown()


def generator(backend: str, **arguments: Any) -> ClusterGenerator:
    description = {"backend": backend, "arguments": arguments}
    return ClusterGenerator(description, workers=2, prompts_per_shard=2, address="local")


def test_samples_are_those_of_one_process(policy: PolicyCheckpoint) -> None:
    expected = SharedPrefixGenerator(**ENGINE).generate(policy, REQUESTS, DECODING)
    own = generator("rest_pg.backends.shared_prefix.SharedPrefixGenerator", **ENGINE)
    assert own.generate(policy, REQUESTS, DECODING) == expected
    assert own.generate(policy, [], DECODING) == []


def test_only_this_machine_can_reach_the_cluster() -> None:
    _connect("local", 2)
    serving, bound = [], set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    serving.append(" ".join(process.cmdline()))
                    bound.add(connection.laddr.ip.removeprefix("::ffff:"))
    assert any("raylet" in command for command in serving)
    assert not any("dashboard/dashboard.py" in command for command in serving)
    assert bound == {"127.0.0.1"}


def test_a_worker_killed_while_sampling_costs_nothing(
    policy: PolicyCheckpoint, tmp_path: Path
) -> None:
    expected = SharedPrefixGenerator(**ENGINE).generate(policy, REQUESTS, DECODING)
    marker = tmp_path / "killed"
    own = generator("test_cluster.DyingGenerator", marker=str(marker), **ENGINE)
    assert own.generate(policy, REQUESTS, DECODING) == expected
    assert marker.exists()


def test_a_shard_that_kills_every_worker_ends_the_run(policy: PolicyCheckpoint) -> None:
    with pytest.raises(RuntimeError, match=r"sampling ended: a worker died, and so did its 3 succ"):
        generator("test_cluster.DoomedGenerator").generate(policy, REQUESTS[:1], DECODING)


def test_what_a_node_cannot_read_is_named(tmp_path: Path) -> None:
    own = generator("rest_pg.backends.shared_prefix.SharedPrefixGenerator", **ENGINE)
    with pytest.raises(FileNotFoundError, match="a filesystem that every node has"):
        own.generate(PolicyCheckpoint(tmp_path / "gone"), REQUESTS[:1], DECODING)


def test_scores_are_those_of_one_process() -> None:
    samples = [
        Sample(
            example_id=f"e{i % 3}",
            sample_index=i,
            text="",
            reasoning_path="",
            response=f"We {word} to the harbour.",
            malformed="",
            finished=True,
            n_tokens=1,
        )
        for i, word in enumerate(WORDS)
    ]
    targets = {f"e{i}": Target(input="x", reference=f"They {WORDS[i]} home.") for i in range(3)}
    description = {
        "backend": "rest_pg.backends.rewards.CompositeReward",
        "arguments": {"weights": WEIGHTS},
    }
    own = ClusterReward(description, workers=2, samples_per_shard=2, address="local")
    assert own.score(samples, targets) == CompositeReward(WEIGHTS).score(samples, targets)
    assert own.reachable(1.0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_training_loses_a_worker_and_ends_as_in_one_process(
    policy: PolicyCheckpoint, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    straight, expected = SharedPromptTrainer(dtype="float32").train(policy, EXAMPLES, PARAMS, 3)
    marker = tmp_path / "killed"
    trained, figures = DyingTrainer(
        str(marker),
        address="local",
        use_gpu=False,
        directory="kept",
        checkpoint_steps=2,
        world_size=2,
        strategy=strategy,
        dtype="float32",
    ).train(policy, EXAMPLES, PARAMS, seed=3)
    assert marker.exists()
    assert figures["steps"] == expected["steps"] == 6
    for name in ("loss_first", "loss_last", "loss_mean"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-5)
    found = load_file(trained.path / "model.safetensors")
    for name, tensor in load_file(straight.path / "model.safetensors").items():
        assert (tensor - found[name]).abs().max() < 1e-4
