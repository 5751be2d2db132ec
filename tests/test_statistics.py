import numpy as np
import pytest
from scipy import stats

from rest_pg.config import Decoding, EvaluationParams
from rest_pg.statistics import (
    bootstrap_mean,
    held_out_mean,
    holm,
    paired_t_test,
    state_mean,
    state_too_few,
)

PARAMS = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=1, max_new_tokens=8),
    n_bootstrap=200,
)


def test_bootstrap_resamples_users() -> None:
    # two users with constant values 0 and 1: a resample's mean is 0, 0.5 or 1
    values = np.array([0.0, 0.0, 1.0, 1.0])
    users = np.array(["a", "a", "b", "b"])
    found = bootstrap_mean(values, users, n_bootstrap=400, confidence=0.95, seed=1)
    assert (found.mean, found.ci_low, found.ci_high) == (0.5, 0.0, 1.0)
    assert (found.n_users, found.n_examples) == (2, 4)
    one = bootstrap_mean(values[:2], users[:2], n_bootstrap=100, confidence=0.95, seed=1)
    assert one.ci_low == one.ci_high == 0
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_mean(values[:0], users[:0], n_bootstrap=100, confidence=0.95, seed=1)


@pytest.mark.parametrize("n_users", [1, 5, 6])
def test_an_interval_needs_six_users(n_users: int) -> None:
    users = np.array([f"u{i}" for i in range(n_users)])
    found = held_out_mean(np.arange(n_users, dtype=float), users, PARAMS, seed=1)
    assert found.mean == (n_users - 1) / 2
    few = n_users < 6
    assert np.isnan([found.ci_low, found.ci_high]).tolist() == [few, few]
    assert bool(state_too_few(n_users)) == few
    assert ("[" in state_mean(found.mean, found.ci_low, found.ci_high)) != few


def test_bootstrap_resamples_training_seeds_too() -> None:
    # one user: all that varies is which of the two seeds are drawn, 0 and 0, 0 and 1, 1 and 1
    values, users = np.array([[0.0, 1.0]] * 3), np.array(["a"] * 3)
    found = bootstrap_mean(values, users, n_bootstrap=400, confidence=0.95, seed=1)
    assert (found.mean, found.ci_low, found.ci_high) == (0.5, 0.0, 1.0)
    assert (found.n_users, found.n_examples) == (1, 3)
    # a column of its own is the same as none
    own = np.array([0.1, 0.4, 0.6, 0.2])
    people = np.array(["a", "b", "c", "c"])
    plain, column = (
        bootstrap_mean(v, people, n_bootstrap=200, confidence=0.9, seed=3)
        for v in (own, own[:, None])
    )
    assert plain == column


def test_paired_t_test_worked_by_hand() -> None:
    # mean 2, standard deviation 1, n = 3: t = 2 / (1 / sqrt(3)) with 2 degrees of freedom
    t = 2 * 3**0.5
    assert paired_t_test(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * stats.t.sf(t, 2))
    assert paired_t_test(np.array([0.0, 0.0])) == 1
    assert paired_t_test(np.array([0.5, 0.5])) == 0
    with pytest.raises(ValueError, match="needs 2 differences, and there are 1"):
        paired_t_test(np.array([0.5]))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # 3 x 0.01, 2 x 0.02, 1 x 0.5
        ([0.02, 0.5, 0.01], [0.04, 0.5, 0.03]),
        # never below the one before: 2 x 0.03 = 0.06, and 0.04 becomes 0.06
        ([0.04, 0.03], [0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)
