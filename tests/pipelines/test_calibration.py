import numpy as np
import pandas as pd
import pytest
from conftest import document, example

from rest_pg.backends.rewards import CompositeReward
from rest_pg.config import CalibrationParams
from rest_pg.pipelines.calibration import nodes
from rest_pg.records import Score

PARAMS = CalibrationParams(passages_per_user=2, n_bootstrap=200)
SUBJECTS = {
    "ann": ("harbour ships pier", "school teachers pupils"),
    "bob": ("harbour fleet docks", "railway trains tracks"),
}


def passages(user: str):
    """Two passages per user; both halves of a passage keep to its words."""
    return tuple(
        document(i, f"The {words} came first. The {words} stayed.", user)
        for i, words in enumerate(SUBJECTS[user])
    )


def test_the_share_of_pairs_won_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "COMPONENTS", ("rouge_l",))
    examples = [example(i, user_id=user, profile=passages(user)) for i, user in enumerate(SUBJECTS)]
    examples.append(example(9, user_id="eve", split="test", profile=passages("ann")))
    table = nodes.calibrate_reward(examples, CompositeReward({"rouge_l": 1.0}), PARAMS, seed=1)
    assert list(table.columns) == nodes.COLUMNS
    found = table.set_index(["component", "against"])
    for against in ("same_user", "same_topic"):
        # every passage shares all its words with its own other half
        assert found.loc[("rouge_l", against), "auc"] == 1
        assert found.loc[("reward", against), "auc"] == 1
        # the same number of words everywhere: ties count half
        assert found.loc[("length", against), "auc"] == 0.5
        assert found.loc[("length", against), ["n_users", "n_pairs"]].tolist() == [2, 4]
        assert found.loc[("reward", against), "length_correlation"] == 0
    assert isinstance(table, pd.DataFrame)


def test_agreement_with_length_worked_by_hand() -> None:
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 x 2 / (4 x 15) = 0.8
    found = nodes._rank_correlation(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 5.0, 9.0, 7.0]))
    assert found == pytest.approx(0.8)


class Gullible:
    """A reward that believes what a text says of itself."""

    def score(self, samples, targets):
        return [Score(reward=1.0 if "10" in s.response else 0.5) for s in samples]


def test_attacks_are_counted_by_family() -> None:
    examples = [
        example(i, user_id=user, split="validation", profile=passages(user))
        for i, user in enumerate(SUBJECTS)
    ]
    table = nodes.attack_reward(examples, Gullible(), PARAMS, seed=1).set_index("family")
    assert table["cases"].sum() / len(examples) >= 50
    # all but one of the eight texts that name a score hold the 10
    assert table.loc["score", ["above_honest", "mean_shift"]].tolist() == [0.875, 0.4375]
    assert table.loc["empty", ["above_honest", "mean_reward"]].tolist() == [0, 0.5]
    fair = nodes.attack_reward(examples, CompositeReward({"rouge_1": 1.0}), PARAMS, seed=1)
    # nothing that stands alone shares more words with the reference than an honest text does
    assert fair.set_index("family").loc[["empty", "punctuation"], "mean_reward"].tolist() == [0, 0]
