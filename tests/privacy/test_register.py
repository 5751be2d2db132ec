"""Every place that holds users' data is registered: a new catalog entry fails here until it is."""

from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader

from rest_pg.privacy.register import ENTRIES, STORES, Treatment, treatment_of

PROJECT = Path(__file__).parents[2]
ENVIRONMENTS = sorted(p.name for p in (PROJECT / "conf").iterdir() if p.is_dir())


def entries(env: str) -> dict[str, dict]:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env=env)
    return {n: e for n, e in loader["catalog"].items() if isinstance(e, dict)}


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_entry_of_every_environment_is_registered(env: str) -> None:
    missing = set(entries(env)) - ENTRIES.keys()
    assert not missing, (
        f"say in rest_pg.privacy.register what forgetting a user does with {missing}"
    )


def test_every_store_is_treated_where_the_register_says() -> None:
    import importlib

    assert set(STORES) == {"mlflow", ".viz", "objects"}
    for treated in STORES.values():
        importlib.import_module(treated.partition(":")[0])


@pytest.mark.parametrize(
    ("entry", "treatment"),
    [
        ({"type": "rest_pg.datasets.RecordsDataset"}, Treatment.RECORDS),
        ({"type": "rest_pg.datasets.PolicyDataset"}, Treatment.POLICY),
        ({"type": "rest_pg.datasets.sources.mail.MailDataset"}, Treatment.SOURCE),
        ({"type": "kedro_mlflow.io.metrics.MlflowMetricsHistoryDataset"}, Treatment.TRACKING),
        (
            {
                "type": "kedro_mlflow.io.artifacts.MlflowArtifactDataset",
                "dataset": {
                    "type": "rest_pg.datasets.SealedDataset",
                    "dataset": {"type": "text.TextDataset"},
                },
            },
            Treatment.PAGE,
        ),
        ({"type": "pandas.ParquetDataset"}, Treatment.FIGURES),
        (
            {"type": "rest_pg.datasets.BackendDataset", "backend": "x.ResumableReward"},
            Treatment.SHARDS,
        ),
        (
            {"type": "rest_pg.datasets.BackendDataset", "backend": "x.Teacher"},
            Treatment.CONFIGURATION,
        ),
    ],
)
def test_a_projects_own_entries_are_treated_by_their_type(
    entry: dict, treatment: Treatment
) -> None:
    assert treatment_of("my_own", entry) is treatment
