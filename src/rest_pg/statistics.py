"""Intervals: users are resampled, not examples, since one user's texts are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over examples with its bootstrap interval over users."""

    mean: float
    ci_low: float
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
    their examples: users with more examples weigh more, as they do in the mean itself. For a paired
    comparison pass the differences: both systems then share each resample.

    Args:
        values: one per example, [n].
        users: whose example it is, [n].
        n_bootstrap: resamples.
        confidence: share of the resamples inside the interval, such as 0.95.
        seed: of the resamples; the same for every quantity, so that intervals can be compared.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("there are 0 values, and a mean needs 1: check the split's examples")
    names, index = np.unique(users, return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names))
    counts = np.bincount(index, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_bootstrap, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(
        mean=float(values.mean()),
        ci_low=float(low),
        ci_high=float(high),
        n_users=len(names),
        n_examples=len(values),
    )
