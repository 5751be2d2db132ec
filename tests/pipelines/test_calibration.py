import pandas as pd
import pytest
from conftest import document, example

from rest_pg.backends.rewards import CompositeReward
from rest_pg.config import CalibrationParams
from rest_pg.pipelines.calibration import nodes

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
    assert isinstance(table, pd.DataFrame)
