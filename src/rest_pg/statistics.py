"""Intervals and tests: users are resampled, not examples, since one user's texts are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rest_pg.config import EvaluationParams

MIN_USERS = 6
"""Users that an interval over users needs: resamples of fewer are too much alike to bound anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over examples with its bootstrap interval over users."""

    mean: float
    ci_low: float
    """NaN where there is no interval, as in ``ci_high``."""
    ci_high: float
    n_users: int
    n_examples: int


def bootstrap_mean(
    values: NDArray[np.float64],
    users: NDArray[np.str_],
    *,
    n_bootstrap: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """Estimate the mean over examples, with a percentile interval from resampled users.

    Every resample draws as many users as there are, with replacement, and takes the mean over all of
    their examples: users with more examples weigh more, as they do in the mean itself. Where values
    come from several training seeds, each resample draws as many of those as well. For a paired
    comparison pass the differences: both systems then share each resample.

    Args:
        values: one per example, [n]; or per example and training seed, [n, n_seeds].
        users: whose example it is, [n].
        n_bootstrap: resamples.
        confidence: share of the resamples inside the interval, such as 0.95.
        seed: of the resamples; the same for every quantity, so that intervals can be compared.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("there are 0 values, and a mean needs 1: check the split's examples")
    by_seed = values.reshape(len(values), -1)
    names, index = np.unique(users, return_inverse=True)
    counts = np.bincount(index, minlength=len(names))
    sums = np.zeros((len(names), by_seed.shape[1]))
    np.add.at(sums, index, by_seed)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(names), size=(n_bootstrap, len(names)))
    by_draw = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None]
    seeds = generator.integers(by_seed.shape[1], size=by_draw.shape)
    means = np.take_along_axis(by_draw, seeds, axis=1).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(
        mean=float(values.mean()),
        ci_low=float(low),
        ci_high=float(high),
        n_users=len(names),
        n_examples=len(values),
    )


def held_out_mean(
    values: NDArray[np.float64], users: NDArray[np.str_], params: EvaluationParams, seed: int
) -> Estimate:
    """Estimate a mean that a table reports; there is no interval over fewer than :data:`MIN_USERS` users.

    Every table of held-out users goes through this, so that one place decides. Arguments, shapes and errors are those
    of :func:`bootstrap_mean`.
    """
    estimate = bootstrap_mean(
        values, users, n_bootstrap=params.n_bootstrap, confidence=params.confidence, seed=seed
    )
    if estimate.n_users < MIN_USERS:
        estimate = replace(estimate, ci_low=math.nan, ci_high=math.nan)
    return estimate


def state_mean(mean: float, ci_low: float, ci_high: float, form: str = "%.4f") -> str:
    """Write a mean with its interval, if it has one."""
    stated = form % mean
    return stated if math.isnan(ci_low) else f"{stated} [{form % ci_low}, {form % ci_high}]"


def state_too_few(n_users: int, split: str = "test") -> str:
    """Say that there is no interval over so few users; empty if there is one."""
    if n_users >= MIN_USERS:
        return ""
    return f"fewer than {MIN_USERS} {split} users ({n_users}): no interval"


def paired_t_test(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of a paired t-test, as the paper's (§4.1), from differences [n].

    Differences that are all equal leave no doubt: p is 1 at 0, and 0 elsewhere.

    Raises:
        ValueError: there are fewer than two differences.
    """
    if len(differences) < 2:
        raise ValueError(f"a t-test needs 2 differences, and there are {len(differences)}")
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being one of several (Holm, 1979); each stays in its place."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
