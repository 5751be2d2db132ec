"""Many machines: engines in Ray's actors, and training in Ray Train's workers (``rest-pg[cluster]``).

Every node has the project under the same path. For training it sees the same data/ too (a shared filesystem),
where checkpoints are; for sampling and scoring it needn't, if the catalog keeps policies in an object store:
they are read where they are used. Actors hold the ordinary back-ends; what one was
working on when it was killed is given to its successor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kedro.utils import load_obj

from rest_pg.backends.protocols import Generation, GenerationRequest, Target
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.sft_training import Losses, Training
from rest_pg.backends.workers import loopback, rank
from rest_pg.config import Decoding
from rest_pg.datasets.policy import at_hand
from rest_pg.progress import track
from rest_pg.records import PolicyCheckpoint, Sample, Score
from rest_pg.temporary import make_temporary_directory

Work = TypeVar("Work")

RETRIES = 3
"""Times that a worker is replaced, and its shard tried again, before the run ends: a shard that kills
every worker it meets would else be tried for ever."""
LOCAL = "local"


class ClusterGenerator:
    """Draws with any generator, in actors that take one shard of prompts after another."""

    def __init__(
        self,
        generator: dict[str, Any],
        workers: int,
        prompts_per_shard: int = 16,
        gpus_per_worker: float = 0,
        address: str = "auto",
    ) -> None:
        """Name the generator that each actor builds.

        Args:
            generator: ``backend`` (dotted path) and ``arguments`` of a Generator.
            workers: actors; those that find no place wait for the cluster to grow.
            prompts_per_shard: few spread evenly; many keep an engine's batch full.
            gpus_per_worker: 0: an actor takes one CPU.
            address: of a running cluster; ``local`` starts one on this machine.

        Raises:
            ValueError: ``workers`` or ``prompts_per_shard`` is below 1.
        """
        _check_numbers(workers=workers, prompts_per_shard=prompts_per_shard)
        self._actors = _Actors(generator, workers, gpus_per_worker, address)
        self._size = prompts_per_shard

    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Draw; see :class:`~rest_pg.backends.protocols.Generator`."""
        parts = _parts(requests, self._size)
        counts = [sum(len(request.seeds) for request in part) for part in parts]
        calls = [("generate", policy, part, decoding) for part in parts]
        return self._actors.work(calls, "sampling", counts)


class ClusterReward:
    """Scores with any reward, in actors that take one shard of samples after another."""

    def __init__(
        self,
        reward: dict[str, Any],
        workers: int,
        samples_per_shard: int = 1024,
        gpus_per_worker: float = 0,
        address: str = "auto",
    ) -> None:
        """Name the reward that each actor builds; arguments as in :class:`ClusterGenerator`."""
        _check_numbers(workers=workers, samples_per_shard=samples_per_shard)
        self._reward = reward
        self._actors = _Actors(reward, workers, gpus_per_worker, address)
        self._size = samples_per_shard

    def score(self, samples: Sequence[Sample], targets: Mapping[str, Target]) -> list[Score]:
        """Score; see :class:`~rest_pg.backends.protocols.Reward`."""
        parts = _parts(samples, self._size)
        calls = [
            ("score", part, {key: targets[key] for key in {s.example_id for s in part}})
            for part in parts
        ]
        return self._actors.work(calls, "scoring", [len(part) for part in parts])

    def reachable(self, threshold: float) -> bool:
        """Say whether any response could have this reward, as far as the reward itself says."""
        reachable = getattr(_Engine(self._reward, Path.cwd()).engine, "reachable", None)
        return reachable is None or bool(reachable(threshold))


class ClusterTrainer(SharedPromptTrainer):
    """Trains as :class:`SharedPromptTrainer` does, in Ray Train's workers on any machine of a cluster.

    A worker that is lost is replaced, and the training goes on from its last checkpoint.
    """

    def __init__(self, address: str = "auto", use_gpu: bool = True, **arguments: Any) -> None:
        """Name the cluster; ``arguments`` are those of :class:`SharedPromptTrainer`.

        Raises:
            ValueError: there is no ``directory``, without which a lost worker would cost the training.
        """
        super().__init__(**arguments)
        if self._directory is None:
            raise ValueError("a training on a cluster goes on from its checkpoints: set directory")
        self._address, self._use_gpu = address, use_gpu

    def _run(self, training: Training) -> Losses:
        _connect(self._address, self._world_size)
        import ray.train  # noqa: PLC0415  (behind the settings that it reads)
        from ray.train.torch import TorchTrainer  # noqa: PLC0415

        assert training.checkpoints is not None
        storage = training.checkpoints.directory.resolve() / "ray"
        TorchTrainer(
            partial(_train, training, Path.cwd()),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self._world_size, use_gpu=self._use_gpu
            ),
            run_config=ray.train.RunConfig(
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
        return Losses(**json.loads(_losses(training).read_text(encoding="utf-8")))

    def _make_target(self) -> Path:
        """Make it where every node can write: near the checkpoints, under a name that is swept."""
        assert self._directory is not None
        place = Path(self._directory).resolve().parent
        place.mkdir(parents=True, exist_ok=True)
        return make_temporary_directory(place)


def _train(training: Training, project: Path) -> None:
    """Be one of Ray Train's workers: the process group is there already."""
    _enter(project)
    done = training.run()
    if rank() == 0:
        _losses(training).write_text(json.dumps(asdict(done)), encoding="utf-8")


def _losses(training: Training) -> Path:
    """Return where rank 0 leaves what it reports, on whichever node it is."""
    assert training.checkpoints is not None
    return training.checkpoints.directory / "losses.json"


class _Engine:
    """What an actor is: one back-end, whose methods are called by name."""

    def __init__(self, description: dict[str, Any], project: Path) -> None:
        _enter(project)
        self.engine = load_obj(description["backend"])(**description.get("arguments", {}))

    def call(self, method: str, *arguments: Any) -> Any:
        first, *others = arguments
        if isinstance(first, PolicyCheckpoint):
            first = at_hand(first)
            _check(first.path)
        return getattr(self.engine, method)(first, *others)


class _Actors:
    """The actors of one call: started for it, and ended with it, so that they keep no memory."""

    def __init__(
        self, description: dict[str, Any], workers: int, gpus_per_worker: float, address: str
    ) -> None:
        self._description, self._workers = description, workers
        self._gpus, self._address = gpus_per_worker, address

    def work(self, calls: Sequence[tuple[Any, ...]], task: str, counts: Sequence[int]) -> list[Any]:
        """Return the results of all calls, joined in their order."""
        _connect(self._address, self._workers)
        import ray  # noqa: PLC0415  (behind the settings that it reads)
        from ray.util import ActorPool  # noqa: PLC0415

        actor = ray.remote(_Engine).options(
            num_cpus=0 if self._gpus else 1,
            num_gpus=self._gpus,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        actors = [actor.remote(self._description, Path.cwd()) for _ in calls[: self._workers]]
        bar = track(task, sum(counts), "sample")
        found: list[Any] = []
        try:
            each = ActorPool(actors).map(lambda own, call: own.call.remote(*call), calls)
            for count, results in zip(counts, each, strict=True):
                found += results
                bar.update(count)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"{task} ended: a worker died, and so did its {RETRIES} successors at the same shard. Lack "
                f"of memory is the usual cause; their logs are below /tmp/ray. ({error})"
            ) from error
        finally:
            for own in actors:
                ray.kill(own)
            bar.close()
        return found


def _connect(address: str, workers: int) -> None:
    """Join the cluster once a process; start one that only this machine can reach if so asked."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address == LOCAL:
        # its name speaks of other systems, where Ray keeps to the loopback address by default
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray  # noqa: PLC0415  (rest-pg[cluster])

    if ray.is_initialized():
        return
    if address != LOCAL:
        ray.init(address=address)
        return
    ray.init(
        include_dashboard=False,
        num_cpus=max(workers, os.cpu_count() or 1),
        runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": loopback()}},
    )


def _enter(project: Path) -> None:
    """Work where the run was started: paths of the catalog are relative to that."""
    _check(project)
    os.chdir(project)


def _check(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} isn't there on node {os.uname().nodename}: put the project and its data/ on a "
            "filesystem that every node has under the same path"
        )


def _parts(items: Sequence[Work], size: int) -> list[list[Work]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value} is below 1: raise it")
