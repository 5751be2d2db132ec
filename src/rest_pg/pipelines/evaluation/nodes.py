"""Nodes that measure each system's samples, and compare the systems."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from rest_pg.backends.protocols import Generator
from rest_pg.backends.rewards import Measures
from rest_pg.config import EvaluationParams, ResponseFormat
from rest_pg.metrics import measure_response
from rest_pg.pipelines.self_training.nodes import check_format, draw_samples
from rest_pg.records import PolicyCheckpoint, Profile, Prompt, Sample, ScoredSample
from rest_pg.statistics import held_out_mean, state_mean, state_too_few
from rest_pg.tracking import to_metric_history

logger = logging.getLogger(__name__)

METRICS = (
    "reward",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "meteor",
    "chrf",
    "similarity",
    "words",
    "malformed",
    "unfinished",
    "degenerate",
    "duplicates",
    "copied",
)
SHOWN = (
    *("rouge_1", "rouge_l", "meteor", "similarity"),
    *("malformed", "unfinished", "degenerate", "duplicates"),
)
COLUMNS = ["system", "split", "metric", "mean", "ci_low", "ci_high", "n_users", "n_examples"]
BASELINE = "sft"
"""Every other system is also compared with this one, pair by pair."""


def sample_held_out(
    policy: PolicyCheckpoint,
    prompts: Sequence[Prompt],
    generator: Generator,
    response_format: ResponseFormat,
    params: EvaluationParams,
    seed: int,
    *,
    fine_tuned: bool = False,
) -> tuple[list[Sample], dict[str, float]]:
    """Draw samples for the held-out prompts, with the same seeds for every system.

    Args and return value are those of :func:`draw_samples`; ``fine_tuned`` says that the policy is policy_0.

    Raises:
        ValueError: the fine-tuned policy does not keep the format (:func:`check_format`).
    """
    samples, figures = draw_samples(
        policy,
        [prompt for prompt in prompts if prompt.split in params.splits],
        generator,
        response_format,
        params.samples_per_prompt,
        params.decoding,
        seed,
        stage="evaluation",
    )
    if fine_tuned:
        check_format(samples, response_format)
    return samples, figures


def measure_samples(
    scored_samples: Sequence[ScoredSample],
    prompts: Sequence[Prompt],
    profiles: Sequence[Profile],
    second_scored_samples: Sequence[ScoredSample] = (),
) -> pd.DataFrame:
    """Measure every sample of one system: one row per sample, keyed by example and index.

    ``duplicates`` is the share of the example's other samples with the same response;
    ``second_judge`` is there if a second judge scored the samples too.
    """
    second = {
        (s.sample.example_id, s.sample.sample_index): s.score.reward for s in second_scored_samples
    }
    prompt_of = {prompt.example_id: prompt for prompt in prompts}
    documents = {p.example_id: [d.text for d in p.documents] for p in profiles}
    keys = [(s.sample.example_id, " ".join(s.sample.response.split())) for s in scored_samples]
    similarities = Measures(("similarity",)).measure(
        [(s.sample.response, prompt_of[s.sample.example_id].reference) for s in scored_samples]
    )
    same, drawn = Counter(keys), Counter(example_id for example_id, _ in keys)
    rows: list[dict[str, Any]] = []
    for scored, key, similarity in zip(scored_samples, keys, similarities, strict=True):
        sample, prompt = scored.sample, prompt_of[scored.sample.example_id]
        others = drawn[sample.example_id] - 1
        rows.append(
            {
                "example_id": sample.example_id,
                "sample_index": sample.sample_index,
                "user_id": prompt.user_id,
                "split": prompt.split,
                "task": prompt.task,
                "reward": scored.score.reward,
                "malformed": float(bool(sample.malformed)),
                "unfinished": float(not sample.finished),
                "duplicates": (same[key] - 1) / others if others else 0.0,
                **similarity,
                **measure_response(sample.response, prompt.reference, documents[sample.example_id]),
            }
        )
        if second:
            rows[-1]["second_judge"] = second[sample.example_id, sample.sample_index]
    return pd.DataFrame(rows)


def log_system(metrics: pd.DataFrame, *, step: int | None) -> dict[str, dict[str, float]]:
    """Put a system's mean reward by split on the curves; the base model (no step) is not on them."""
    if step is None:
        return {}
    means = metrics.groupby("split")["reward"].mean()
    return to_metric_history({f"{split}_reward": v for split, v in means.items()}, step=step)


def create_results(params: EvaluationParams, seed: int, **metrics: pd.DataFrame) -> pd.DataFrame:
    """Estimate every metric of every system on each held-out split, with intervals over users.

    An example counts once: by the mean of its samples. Beside each system's own metrics stands its
    paired difference from SFT in reward, as ``reward_minus_sft``. Few users have no interval
    (:func:`~rest_pg.statistics.held_out_mean`).

    Args:
        params: resamples and confidence.
        seed: of the resamples.
        **metrics: what :func:`measure_samples` returned, by system.
    """
    by_example = {
        system: with_tasks(table).groupby(["split", "user_id", "example_id"])[list(METRICS)].mean()
        for system, table in metrics.items()
    }
    rows = []
    for system, table in by_example.items():
        columns = {name: table[name] for name in METRICS}
        if system != BASELINE and BASELINE in by_example:
            columns["reward_minus_sft"] = table["reward"] - by_example[BASELINE]["reward"]
        for name, values in columns.items():
            for split, own in values.groupby(level="split"):
                estimate = held_out_mean(
                    own.to_numpy(dtype="float64"),
                    own.index.get_level_values("user_id").to_numpy(dtype="str"),
                    params,
                    seed,
                )
                rows.append(
                    {
                        "system": system,
                        "split": split,
                        "metric": name,
                        "mean": estimate.mean,
                        "ci_low": estimate.ci_low,
                        "ci_high": estimate.ci_high,
                        "n_users": estimate.n_users,
                        "n_examples": estimate.n_examples,
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS).round(6)


def with_tasks(metrics: pd.DataFrame) -> pd.DataFrame:
    """Count each sample for its task too, where there are several: in a split ``test:<task>``."""
    if metrics["task"].nunique() < 2:
        return metrics
    own = metrics.assign(split=metrics["split"] + ":" + metrics["task"])
    return pd.concat([metrics, own], ignore_index=True)


def log_results(results: pd.DataFrame, report: str) -> None:
    """Print the table of the held-out users, and where to look next."""
    split = reported_split(results)
    logger.info(
        "%s:\n\n%s\n\n"
        "all figures: data/08_reporting/results.csv\nreport: data/08_reporting/report.html\n"
        "MLflow: make ui     lineage: make viz",
        title_of(results, split),
        results_table(results, split).to_string(),
    )


def reported_split(results: pd.DataFrame) -> str:
    """Name the split that the report speaks of: test, unless only validation users were asked."""
    return "test" if results.empty or (results["split"] == "test").any() else "validation"


def count_users(results: pd.DataFrame, split: str) -> int:
    """Count the users of a split."""
    return int(results.loc[results["split"] == split, "n_users"].max()) if len(results) else 0


def title_of(results: pd.DataFrame, split: str) -> str:
    """Say what the table of a split shows: means, and intervals over users if there are users enough."""
    shown = state_too_few(count_users(results, split), split)
    return f"held-out {split} users, mean " + (
        f"({shown})" if shown else "[95% interval over users]"
    )


def results_table(results: pd.DataFrame, split: str) -> pd.DataFrame:
    """Lay the results out for reading: a row per system, a column per metric."""
    table: dict[str, dict[str, str]] = {}
    for row in results[results["split"] == split].itertuples():
        cells = table.setdefault(str(row.system), {})
        if row.metric in ("reward", "reward_minus_sft"):
            cells[str(row.metric)] = state_mean(row.mean, row.ci_low, row.ci_high)
        elif row.metric == "words":
            cells["words"] = f"{row.mean:.0f}"
        elif row.metric in SHOWN:
            cells[str(row.metric)] = f"{row.mean:.3f}"
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("")
    return frame.rename_axis(index="system")
