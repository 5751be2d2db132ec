"""How long each node of a run will take: the cost formula at the run's sizes and this machine's speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from rest_pg.config import Decoding, EvaluationParams, ExpectationParams, TrainingParams
from rest_pg.cost import (
    ModelSize,
    sampling_operations,
    sampling_seconds,
    training_operations,
)
from rest_pg.doctor.calibration import Batch, Speed
from rest_pg.times import Place

COLUMNS = ["node", "part", "prompts", "texts", "tokens", "teraflop", "seconds"]

Cost = dict[str, float]
"""A row of the estimate: prompts, texts, tokens, teraflop, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long prompts and what is written behind them are, in tokens, for the examples tried."""

    prompt: float
    """The mean prompt."""
    outputs: Sequence[int]
    """Expected lengths: those of the texts that the policy learns, its format and end included."""

    @property
    def mean_output(self) -> float:
        """The mean expected length."""
        return sum(self.outputs) / len(self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sizes of a run, from its data and its parameters."""

    size: ModelSize
    n_examples: Mapping[str, int]
    """By split."""
    lengths: Mapping[str, Lengths]
    """By the dataset of prompts; every other one is as long as ``prompts``."""
    former: Mapping[str, Sequence[int]]
    """Lengths that the run before wrote, by the dataset of its samples: they take the others' place."""
    measured: Mapping[str, float]
    """Seconds of the nodes that were really run, by name."""
    batch: Batch
    learnt_per_prompt: int
    """Samples of a prompt that the M-step reads."""
    expectation: ExpectationParams
    evaluation: EvaluationParams
    sft: TrainingParams
    maximization: TrainingParams

    def of(self, node: Node) -> Lengths:
        """Return the lengths of what a node reads."""
        known = [name for name in node.inputs if name in self.lengths]
        return self.lengths[known[0] if known else "prompts"]


def estimate(
    pipeline: Pipeline, places: Mapping[str, Place], work: Workload, speed: Speed
) -> pd.DataFrame:
    """Estimate every node that takes time.

    Returns:
        A row per node, in the order of the run: prompts, texts written, learnt or scored, tokens
        processed, operations in 10^12, seconds. Nodes that were really run have only their seconds.
    """
    estimator = _Estimator(work, speed)
    rows = []
    for node in pipeline.nodes:
        cost = estimator.cost(node)
        if cost is not None:
            rows.append({"node": node.name, "part": places[node.name].part, **cost})
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = {part: i for i, part in enumerate(_parts(places.values()))}
    table = table.sort_values("part", key=lambda own: own.map(order), kind="stable")
    return table.reset_index(drop=True).round({"tokens": 0, "teraflop": 3, "seconds": 3})


def _parts(places: Any) -> list[str]:
    """Return the parts of the run in the method's order, which isn't the nodes'."""
    ordered = sorted(places, key=lambda p: (p.stage_number, p.iteration or 0, p.number))
    return list(dict.fromkeys(place.part for place in ordered))


def expected_lengths(outputs: Sequence[int], n: int, m: int, limit: int) -> list[int]:
    """Return the lengths of m samples of each of n prompts, in the order in which they are drawn.

    They are those of the texts that are learnt, in turn; and one sample doesn't find its end: of a few
    dozen, a small policy writes about that many up to the limit.
    """
    cut = [min(length, limit) for length in outputs]
    drawn = [cut[i * len(cut) // n % len(cut)] for i in range(n) for _ in range(m)]
    return [*drawn[:-1], limit]


class _Estimator:
    """One pass over the nodes: what one draws, the next ones score."""

    def __init__(self, work: Workload, speed: Speed) -> None:
        self._work, self._speed = work, speed
        self._n_samples: dict[str, int] = {}
        self._started: set[str] = set()
        self._models: dict[str, Callable[[Node], Cost]] = {
            "sample_responses": self._sample_responses,
            "sample_held_out": self._sample_held_out,
            "finetune": self._finetune,
            "maximize": self._maximize,
            "score_samples": self._score,
            "measure_samples": self._measure,
        }

    def cost(self, node: Node) -> Cost | None:
        """Return a node's row; None for one that takes no time worth counting."""
        if node.name in self._work.measured:
            return {"seconds": self._work.measured[node.name]}
        model = self._models.get(node._func_name)
        return None if model is None else model(node)

    def _sample_responses(self, node: Node) -> Cost:
        params = self._work.expectation
        n = self._work.n_examples["train"]
        return self._sample(node, n, params.samples_per_prompt, params.decoding)

    def _sample_held_out(self, node: Node) -> Cost:
        params = self._work.evaluation
        n = sum(count for split, count in self._work.n_examples.items() if split != "train")
        return self._sample(node, n, params.samples_per_prompt, params.decoding)

    def _sample(self, node: Node, n: int, m: int, decoding: Decoding) -> Cost:
        work, lengths = self._work, self._work.of(node)
        samples = next(name for name in node.outputs if name.endswith("samples"))
        self._n_samples[samples] = n * m
        outputs = work.former.get(samples)
        written = (
            list(outputs)
            if outputs and len(outputs) == n * m
            else expected_lengths(lengths.outputs, n, m, decoding.max_new_tokens)
        )
        shard = (work.batch.prompts_per_shard or n) * m
        shards = [written[start : start + shard] for start in range(0, len(written), shard)]
        sizes: dict[str, Any] = {
            "n": n,
            "m": m,
            "prompt": lengths.prompt,
            "output": sum(written) / len(written),
        }
        seconds = sampling_seconds(
            work.size,
            self._speed.sampling,
            n=n,
            prompt=lengths.prompt,
            shards=shards,
            max_rows=work.batch.max_rows,
        )
        return {
            "prompts": n,
            "texts": n * m,
            "tokens": n * lengths.prompt + sum(written),
            "teraflop": sampling_operations(work.size, **sizes) / 1e12,
            "seconds": seconds,
        }

    def _finetune(self, node: Node) -> Cost:
        return self._train(self._work.sft, self._work.n_examples["train"], 1, self._work.of(node))

    def _maximize(self, node: Node) -> Cost:
        work = self._work
        k = min(work.learnt_per_prompt, work.expectation.samples_per_prompt)
        return self._train(work.maximization, work.n_examples["train"], k, work.of(node))

    def _train(self, params: TrainingParams, n: int, k: int, lengths: Lengths) -> Cost:
        epochs = params.n_epochs(n)
        sizes: dict[str, Any] = {"prompt": lengths.prompt, "output": lengths.mean_output}
        operations = training_operations(
            self._work.size,
            n=n,
            k=k,
            epochs=epochs,
            lora=params.lora is not None,
            pairs=params.preference is not None,
            **sizes,
        )
        return {
            "prompts": n,
            "texts": n * k,
            "tokens": epochs * n * (lengths.prompt + k * lengths.mean_output),
            "teraflop": operations / 1e12,
            "seconds": self._speed.training_start + operations / self._speed.training,
        }

    def _score(self, node: Node) -> Cost:
        self._n_samples[node.outputs[0]] = n = self._n_samples.get(node.inputs[0], 0)
        return self._each("score", self._speed.scoring, n)

    def _measure(self, node: Node) -> Cost:
        n = self._n_samples.get(node.inputs[0], 0)
        return self._each("measure", self._speed.measuring, n)

    def _each(self, name: str, speed: Any, n: int) -> Cost:
        """Cost a loop over samples; what its first call loads, later ones find."""
        start = 0.0 if name in self._started else speed.start
        self._started.add(name)
        return {"texts": n, "seconds": start + n * speed.each}


def by_part(table: pd.DataFrame, price_per_hour: float = 0.0) -> pd.DataFrame:
    """Sum the estimate by part of the run, with a last row for all; ``cost`` only if hours have a price."""
    sums = table.drop(columns="node").groupby("part", sort=False).sum(numeric_only=True)
    sums.loc["all"] = sums.sum()
    sums = sums[["tokens", "teraflop", "seconds"]].reset_index()
    if price_per_hour:
        sums["cost"] = (sums["seconds"] / 3600 * price_per_hour).round(2)
    return sums.astype({"tokens": int}).round({"teraflop": 1, "seconds": 1})
