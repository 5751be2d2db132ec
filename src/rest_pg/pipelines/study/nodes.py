"""Nodes of the study: its controls, and the tables that compare the systems."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rest_pg.config import EvaluationParams
from rest_pg.pipelines.evaluation.nodes import METRICS, count_users, with_tasks
from rest_pg.records import Profile, SystemCurve
from rest_pg.statistics import (
    Estimate,
    held_out_mean,
    holm,
    paired_t_test,
    state_mean,
    state_too_few,
)

logger = logging.getLogger(__name__)

BASELINE = "sft"
METHOD = "rest_pg"
COMPARED = (*METRICS, "second_judge")
KEYS = ["split", "user_id", "example_id"]
STUDY_COLUMNS = [
    *("system", "split", "metric", "mean", "ci_low", "ci_high", "p_value"),
    *("n_users", "n_examples", "n_seeds"),
]
CONTRAST_COLUMNS = [
    *("system", "against", "split", "metric", "difference", "relative", "ci_low", "ci_high"),
    *("p_value", "n_users", "n_examples", "n_seeds"),
]

Values = dict[str, pd.DataFrame]
"""By metric: a row per example (indexed by split, user and example), a column per training seed."""


def remove_profiles(profiles: Sequence[Profile]) -> list[Profile]:
    """Take every document away: what the non-personalised system reads."""
    return [replace(profile, documents=()) for profile in profiles]


def create_study_table(
    params: EvaluationParams, seed: int, **metrics: pd.DataFrame
) -> pd.DataFrame:
    """Estimate every metric of every system, over all training seeds.

    An example counts once: by the mean of its samples. ``p_value`` is that of a paired two-tailed
    t-test against SFT over examples, as in the paper (§4.1), corrected for the number of systems
    (Holm); intervals resample users and training seeds instead, since examples of one user are alike.

    Args:
        params: resamples and confidence.
        seed: of the resamples.
        **metrics: ``<system>__<training seed>``: what ``measure_samples`` returned.
    """
    values = _collect(metrics)
    rows = []
    for metric in COMPARED:
        for split in _splits(values):
            p_values = _test_all(values, BASELINE, metric, split)
            for system in values:
                own, users = _of_split(values[system][metric], split)
                estimate = held_out_mean(own, users, params, seed)
                rows.append(
                    _row(system, split, metric, estimate, own)
                    | {"mean": estimate.mean, "p_value": p_values.get(system, np.nan)}
                )
    return pd.DataFrame(rows, columns=STUDY_COLUMNS).round(6)


def compare_systems(params: EvaluationParams, seed: int, **metrics: pd.DataFrame) -> pd.DataFrame:
    """Compare REST-PG with every other system, example by example and training seed by seed.

    Args and tests are those of :func:`create_study_table`; ``relative`` is the difference divided by
    the other system's mean.
    """
    values = _collect(metrics)
    rows = []
    for metric in COMPARED:
        for split in _splits(values):
            p_values = _test_all(values, METHOD, metric, split)
            method, users = _of_split(values[METHOD][metric], split)
            for system in (s for s in values if s != METHOD):
                other, _ = _of_split(values[system][metric], split)
                estimate = held_out_mean(method - other, users, params, seed)
                mean = float(other.mean())
                rows.append(
                    _row(METHOD, split, metric, estimate, method)
                    | {
                        "against": system,
                        "difference": estimate.mean,
                        "relative": estimate.mean / mean if mean else np.nan,
                        "p_value": p_values[system],
                    }
                )
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS).round(6)


def follow_iterations(params: EvaluationParams, seed: int, **metrics: pd.DataFrame) -> pd.DataFrame:
    """Estimate the mean reward behind each EM iteration (the paper's fig. 3), over training seeds.

    Args:
        params: resamples and confidence.
        seed: of the resamples.
        **metrics: ``<system>__<iteration>__<training seed>``; iteration 0 is SFT.
    """
    rows = []
    for key, values in _collect(metrics, ("reward",)).items():
        system, _, iteration = key.rpartition("__")
        for split in values["reward"].index.unique("split"):
            own, users = _of_split(values["reward"], split)
            estimate = held_out_mean(own, users, params, seed)
            rows.append(
                {"system": system, "iteration": int(iteration), "split": split}
                | {"mean": estimate.mean, "ci_low": estimate.ci_low, "ci_high": estimate.ci_high}
                | {"n_users": estimate.n_users, "n_seeds": own.shape[1]}
            )
    return pd.DataFrame(rows).round(6)


def draw_curves(
    study: pd.DataFrame, iterations: pd.DataFrame, *, last: Mapping[str, int]
) -> dict[str, list[SystemCurve]]:
    """Lay out what MLflow shows of each system: all of its means, and the reward by EM iteration.

    Args:
        study: :func:`create_study_table`'s.
        iterations: :func:`follow_iterations`'s.
        last: the iteration that a system's figures in ``study`` belong to.
    """
    points: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    tables = (study.assign(iteration=study["system"].map(last)), iterations.assign(metric="reward"))
    for row in pd.concat(tables).itertuples():
        for suffix, value in (("", row.mean), ("_ci_low", row.ci_low), ("_ci_high", row.ci_high)):
            if not np.isnan(value):
                points[row.system, f"{row.split}_{row.metric}{suffix}"][int(row.iteration)] = value
    curves: defaultdict[str, list[SystemCurve]] = defaultdict(list)
    for (system, metric), own in points.items():
        curves[system].append(SystemCurve(metric=metric, points=sorted(own.items())))
    return dict(curves)


def count_costs(**figures: Mapping[str, float]) -> pd.DataFrame:
    """Count what an answer costs each system: what reasoning adds in tokens and in time.

    Seconds are those of a full batch, model loading included; a single answer waits longer.

    Args:
        **figures: ``<system>__<training seed>``: the evaluation's sampling figures.
    """
    rows = []
    for key, own in figures.items():
        system, _, seed = key.rpartition("__")
        rows.append(
            {
                "system": system,
                "training_seed": int(seed),
                "answers": int(own["samples"]),
                "tokens_per_answer": own["tokens"] / own["samples"],
                "seconds_per_answer": own["seconds"] / own["samples"],
                "tokens_per_second": own["tokens_per_second"],
            }
        )
    table = pd.DataFrame(rows).round(3)
    logger.info("what an answer costs:\n%s", table.to_string(index=False))
    return table


def _collect(
    metrics: Mapping[str, pd.DataFrame], names: Sequence[str] = COMPARED
) -> dict[str, Values]:
    """Lay the measurements out by system and metric, with a column per training seed."""
    by_system: defaultdict[str, dict[str, pd.DataFrame]] = defaultdict(dict)
    for key, table in metrics.items():
        system, _, seed = key.rpartition("__")
        by_system[system][seed] = with_tasks(table).groupby(KEYS)[list(names)].mean().sort_index()
    return {
        system: {
            metric: pd.DataFrame({seed: table[metric] for seed, table in tables.items()})
            for metric in names
        }
        for system, tables in by_system.items()
    }


def _splits(values: Mapping[str, Values]) -> list[str]:
    """Name the splits, and where tasks are mixed each task's part of them."""
    return list(next(iter(values.values()))["reward"].index.unique("split"))


def _of_split(values: pd.DataFrame, split: str) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    own = values.loc[[split]]
    return (
        own.to_numpy(dtype="float64"),
        own.index.get_level_values("user_id").to_numpy(dtype="str"),
    )


def _test_all(
    values: Mapping[str, Values], baseline: str, metric: str, split: str
) -> dict[str, float]:
    """Test every system against one, on each example's mean over training seeds.

    A split of one example has no p-values.
    """
    base, _ = _of_split(values[baseline][metric], split)
    others = [system for system in values if system != baseline]
    if len(base) < 2:
        return dict.fromkeys(others, np.nan)
    p_values = [
        paired_t_test((_of_split(values[s][metric], split)[0] - base).mean(axis=1)) for s in others
    ]
    return dict(zip(others, holm(p_values), strict=True))


def _row(
    system: str, split: str, metric: str, estimate: Estimate, values: NDArray[np.float64]
) -> dict[str, object]:
    return {
        "system": system,
        "split": split,
        "metric": metric,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "n_users": estimate.n_users,
        "n_examples": estimate.n_examples,
        "n_seeds": values.shape[1],
    }


def lay_out(study: pd.DataFrame, metrics: Iterable[str], split: str = "test") -> pd.DataFrame:
    """Lay a study out for reading: a row per system, a column per metric."""
    table: dict[str, dict[str, str]] = {}
    chosen = tuple(metrics)
    for row in study[study["split"] == split].itertuples():
        if row.metric in chosen:
            cells = table.setdefault(str(row.system), {})
            cells[str(row.metric)] = f"{row.mean:.3f}"
            if row.metric == "reward":
                cells["reward"] = state_mean(row.mean, row.ci_low, row.ci_high)
                cells["p (SFT)"] = "" if np.isnan(row.p_value) else f"{row.p_value:.3f}"
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(index="system")


def title_of_study(study: pd.DataFrame) -> str:
    """Say what the table of test users shows: means, and intervals if there are users enough."""
    shown = state_too_few(count_users(study, "test"))
    interval = "[95% interval over users and training seeds]"
    return "held-out test users, mean " + (f"({shown})" if shown else interval)


def log_study(study: pd.DataFrame, contrasts: pd.DataFrame, report: str) -> None:
    """Print the systems, REST-PG's differences from each, and where to look next."""
    shown = ("reward", "rouge_l", "meteor", "similarity", "second_judge", "words", "degenerate")
    own = contrasts[(contrasts["split"] == "test") & (contrasts["metric"] == "reward")]
    logger.info(
        "%s:\n\n%s\n\n"
        "REST-PG's reward minus the other's:\n\n%s\n\nall figures: data/08_reporting/study.csv, "
        "study_contrasts.csv, study_iterations.csv\nreport: data/08_reporting/study.html",
        title_of_study(study),
        lay_out(study, shown).to_string(),
        own[["against", "difference", "relative", "ci_low", "ci_high", "p_value"]].to_string(
            index=False
        ),
    )
