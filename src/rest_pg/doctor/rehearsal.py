"""The run's first stages for real, in memory: what is in the data, and what its prompts are like.

The nodes and their wiring are the run's own. Users' texts are read in full; if there are many examples,
some of them stand for all from retrieval on. Nothing of the project is written: back-ends keep what they
keep in a temporary directory.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline

from rest_pg.backends.protocols import Teacher
from rest_pg.datasets import BackendDataset
from rest_pg.freshness import PACKAGE
from rest_pg.progress import Audience
from rest_pg.records import (
    Example,
    PolicyCheckpoint,
    Profile,
    Prompt,
    ReasoningPath,
    TrainingExample,
)
from rest_pg.times import describe

PREPARED = ("prompts", "direct_prompts", "sft_examples", "profiles", "base_policy")
TRIED_PATHS = 4
"""Reasoning paths that the teacher really writes: it may be a language model."""


@dataclass(slots=True)
class Rehearsal:
    """What the first stages made, and how long each node took."""

    outputs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """What the nodes said."""
    n_examples: Counter[str] = field(default_factory=Counter)
    """Of all, by split."""
    share: float = 1.0
    """Of the profiles' characters that were worked on, from retrieval on."""

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of the examples that were worked on."""
        return list(self.outputs["prompts"])

    @property
    def sft_examples(self) -> list[TrainingExample]:
        """What fine-tuning would learn of them."""
        return list(self.outputs["sft_examples"])

    @property
    def policy(self) -> PolicyCheckpoint:
        """The base policy, in a temporary directory."""
        policy: PolicyCheckpoint = self.outputs["base_policy"]
        return policy


def rebuild(catalog: DataCatalog, name: str, scratch: Path) -> Any:
    """Build a back-end as the catalog does, but for where it keeps its work."""
    described = describe(catalog, name)
    if "backend" not in described:
        return catalog.load(name)
    arguments = _moved(copy.deepcopy(described["arguments"]), str(scratch / name))
    return BackendDataset(backend=described["backend"], arguments=arguments).load()


def _moved(arguments: Any, directory: str) -> Any:
    if not isinstance(arguments, dict):
        return arguments
    return {
        key: directory if key == "directory" and value else _moved(value, directory)
        for key, value in arguments.items()
    }


def read_examples(pipeline: Pipeline, catalog: DataCatalog, scratch: Path) -> Rehearsal:
    """Run everything up to the examples.

    Args:
        pipeline: the whole method.
        catalog: of the project.
        scratch: where back-ends keep what they keep.
    """
    rehearsal = Rehearsal()
    _run(pipeline.to_outputs("examples"), catalog, scratch, rehearsal)
    rehearsal.n_examples = Counter(e.split for e in rehearsal.outputs["examples"])
    return rehearsal


def prepare(
    rehearsal: Rehearsal, pipeline: Pipeline, catalog: DataCatalog, scratch: Path, limit: int
) -> None:
    """Run everything from the examples to the prompts and what fine-tuning learns.

    Args:
        rehearsal: with the examples; the rest is added to it.
        pipeline: the whole method.
        catalog: of the project.
        scratch: where back-ends keep what they keep.
        limit: examples that stand for all, at most.
    """
    examples: Sequence[Example] = rehearsal.outputs["examples"]
    chosen = examples[:: -(-len(examples) // limit)]
    rehearsal.share = _characters(chosen) / max(_characters(examples), 1)
    rehearsal.outputs["examples"] = chosen
    reading = pipeline.to_outputs("examples")
    _run(pipeline.to_outputs(*PREPARED) - reading, catalog, scratch, rehearsal)
    rehearsal.outputs["examples"] = examples


def _characters(examples: Sequence[Example]) -> int:
    """Count what a retriever reads: each distinct text once."""
    return sum(map(len, {d.searched for example in examples for d in example.profile}))


def _run(pipeline: Pipeline, catalog: DataCatalog, scratch: Path, rehearsal: Rehearsal) -> None:
    """Run nodes in memory, on what the rehearsal made so far."""
    memory = DataCatalog()
    for name in pipeline.inputs():
        if name in rehearsal.outputs:
            memory[name] = MemoryDataset(rehearsal.outputs[name], copy_mode="assign")
        elif name == "teacher":
            teacher = _FewPaths(rebuild(catalog, name, scratch), rehearsal)
            memory[name] = MemoryDataset(teacher, copy_mode="assign")
        elif "backend" in describe(catalog, name):
            memory[name] = MemoryDataset(rebuild(catalog, name, scratch), copy_mode="assign")
        else:
            memory[name] = catalog.get(name)
    with listen() as records:
        for node in pipeline.nodes:
            inputs = {name: memory.load(name) for name in node.inputs}
            started = time.perf_counter()
            outputs = node.run(inputs)
            rehearsal.seconds.setdefault(node.name, time.perf_counter() - started)
            for name, value in outputs.items():
                memory[name] = MemoryDataset(value, copy_mode="assign")
                rehearsal.outputs[name] = value
    rehearsal.lines += [record.getMessage() for record in records]


class _FewPaths:
    """A teacher that writes a few paths, and has them stand for the others'."""

    def __init__(self, teacher: Teacher, rehearsal: Rehearsal) -> None:
        self._teacher, self._rehearsal = teacher, rehearsal

    def write(
        self,
        examples: Sequence[Example],
        profiles: Mapping[str, Profile],
        policy: PolicyCheckpoint,
    ) -> list[ReasoningPath]:
        started = time.perf_counter()
        paths = self._teacher.write(examples[:TRIED_PATHS], profiles, policy)
        seconds = (time.perf_counter() - started) / max(len(paths), 1)
        n = self._rehearsal.n_examples["train"]
        self._rehearsal.seconds["write_reasoning_paths"] = seconds * n
        return [
            replace(paths[i % len(paths)], example_id=example.example_id)
            for i, example in enumerate(examples)
        ]


@contextmanager
def listen() -> Iterator[list[logging.LogRecord]]:
    """Take in the log's place what nodes and back-ends say, and what any library warns of."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment]
    handler.addFilter(lambda r: r.name.partition(".")[0] == PACKAGE or r.levelno >= logging.WARNING)
    before, logging.root.handlers, Audience.bars = logging.root.handlers, [handler], False
    try:
        yield records
    finally:
        logging.root.handlers, Audience.bars = before, True
