"""Engines whose work is kept as it is done: an interruption costs one shard of it.

A shard is a fixed set of prompts (or samples) that is worked through on its own, so that a run that
was interrupted ends with the same bytes as one that wasn't.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from kedro.io.core import DatasetError
from kedro.utils import load_obj

from rest_pg.backends.protocols import Generation, GenerationRequest, Generator, Reward, Target
from rest_pg.checksums import policy_fingerprint
from rest_pg.config import Decoding
from rest_pg.datasets import RecordsDataset
from rest_pg.freshness import without_places
from rest_pg.progress import whole
from rest_pg.records import PolicyCheckpoint, Sample, Score
from rest_pg.storage.unfinished import note_finished

logger = logging.getLogger(__name__)

Work = TypeVar("Work")
Done = TypeVar("Done")


class ResumableGenerator:
    """Draws shard by shard with any generator, and keeps every finished shard on disk."""

    def __init__(
        self, generator: dict[str, Any], directory: str, prompts_per_shard: int = 64
    ) -> None:
        """Build the generator that does the work.

        Args:
            generator: ``backend`` (dotted path) and ``arguments`` of a Generator.
            directory: where shards are kept until the results are saved.
            prompts_per_shard: few lose less work in an interruption; many keep the batch full.

        Raises:
            ValueError: ``prompts_per_shard`` is below 1.
        """
        if prompts_per_shard < 1:
            raise ValueError(f"prompts_per_shard={prompts_per_shard} is below 1: raise it")
        self._generator: Generator = _build(generator)
        self._shards = _Shards(directory, prompts_per_shard, generator)

    def generate(
        self, policy: PolicyCheckpoint, requests: Sequence[GenerationRequest], decoding: Decoding
    ) -> list[Generation]:
        """Draw what no shard holds; see :class:`~rest_pg.backends.protocols.Generator`."""
        return self._shards.work(
            requests,
            lambda part: self._generator.generate(policy, part, decoding),
            record="rest_pg.backends.protocols.Generation",
            depends_on=[policy_fingerprint(policy), decoding.model_dump()],
            size=lambda request: len(request.prompt),
            task="sampling",
            samples=lambda request: len(request.seeds),
        )

    @property
    def reused_tokens(self) -> int:
        """Tokens of the last call's samples that an earlier run had drawn."""
        return sum(generation.n_tokens for generation in self._shards.reused)


class ResumableReward:
    """Scores shard by shard with any reward, and keeps every finished shard on disk."""

    def __init__(
        self, reward: dict[str, Any], directory: str, samples_per_shard: int = 4096
    ) -> None:
        """Build the reward that does the work.

        Args:
            reward: ``backend`` (dotted path) and ``arguments`` of a Reward.
            directory: where shards are kept until the results are saved.
            samples_per_shard: few lose less work; all samples of a prompt should fit into one, so
                that the judge reads their prompt once.

        Raises:
            ValueError: ``samples_per_shard`` is below 1.
        """
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={samples_per_shard} is below 1: raise it")
        self._reward: Reward = _build(reward)
        self._shards = _Shards(directory, samples_per_shard, reward)

    def score(self, samples: Sequence[Sample], targets: Mapping[str, Target]) -> list[Score]:
        """Score what no shard holds; see :class:`~rest_pg.backends.protocols.Reward`."""
        return self._shards.work(
            samples,
            lambda part: self._reward.score(part, targets),
            record="rest_pg.records.Score",
            depends_on=[{key: asdict(target) for key, target in sorted(targets.items())}],
            size=lambda sample: len(sample.response),
            task="scoring",
            samples=lambda sample: 1,
        )

    def reachable(self, threshold: float) -> bool:
        """Say whether any response could have this reward, as far as the reward itself says."""
        reachable: Callable[[float], bool] | None = getattr(self._reward, "reachable", None)
        return reachable is None or reachable(threshold)


class _Shards:
    """The shards of one call, in a directory named for all that its result depends on."""

    def __init__(self, directory: str, size: int, engine: dict[str, Any]) -> None:
        self._root, self._size, self._engine = Path(directory), size, without_places(engine)
        self.reused: list[Any] = []
        """What the last call found in shards."""

    def work(
        self,
        items: Sequence[Work],
        engine: Callable[[Sequence[Work]], list[Done]],
        *,
        record: str,
        depends_on: list[Any],
        size: Callable[[Work], int],
        task: str,
        samples: Callable[[Work], int],
    ) -> list[Done]:
        """Return what ``engine`` makes of all items, from shards where there are any.

        The shard with the largest item comes first: lack of memory shows before an hour is spent.
        """
        rows = [asdict(item) for item in items]  # type: ignore[call-overload]
        key = json.dumps([self._engine, self._size, depends_on, rows], sort_keys=True)
        own = self._root / hashlib.sha256(key.encode()).hexdigest()[:16]
        parts = list(_batches(items, self._size))
        files = [own / f"{number:05}.jsonl" for number in range(len(parts))]
        shards = [RecordsDataset(filepath=str(file), record=record) for file in files]
        done = _load(shards)
        self.reused = [result for part in done.values() for result in part]
        if done:
            logger.info("%d of %d shards were done already", len(done), len(parts))
        counts = [sum(map(samples, part)) for part in parts]
        missing = [number for number in range(len(parts)) if number not in done]
        kept = sum(counts[number] for number in done)
        with whole(task, sum(counts), "sample", done=kept) as bar:
            for number in sorted(missing, key=lambda i: -max(map(size, parts[i]))):
                before = bar.done
                done[number] = engine(parts[number])
                # what the engine itself didn't count
                bar.update(counts[number] - (bar.done - before))
                shards[number].save(done[number])
                if len(parts) > 1:
                    logger.info("shard %d of %d is kept", number + 1, len(parts))
        note_finished(own)
        return [result for number in range(len(parts)) for result in done[number]]


def _load(shards: Sequence[RecordsDataset]) -> dict[int, list[Any]]:
    """Return what is there and whole, by number."""
    done = {}
    for number, shard in enumerate(shards):
        with suppress(DatasetError):
            done[number] = shard.load()
    return done


def _batches(items: Sequence[Work], size: int) -> Iterator[Sequence[Work]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _build(engine: dict[str, Any]) -> Any:
    return load_obj(engine["backend"])(**engine.get("arguments", {}))
