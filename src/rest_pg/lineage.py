"""kedro-viz as a static site among an MLflow run's artifacts: the graph as it was then, without a server."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
import mlflow
from kedro.config import OmegaConfigLoader
from kedro.framework.project import settings
from kedro_viz.integrations.deployment.base_deployer import BaseDeployer
from kedro_viz.server import load_and_populate_data

from rest_pg.runtime.mlflow_store import check_database, mlflow_settings

EXPERIMENT = "rest-pg"
"""Where ``mlflow.yml`` names none."""
ARTIFACTS = "lineage"


class _Site(BaseDeployer):
    """Writes the site to a directory of our choice: ``kedro viz build`` knows only ``build``."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._path, self._fs = place, fsspec.filesystem("file")


def attach_lineage(project: Path, env: str | None, run_id: str | None) -> str:
    """Build the site, without previews of data, and log it to a run.

    Args:
        project: its directory.
        env: whose configuration is shown.
        run_id: the MLflow run; none: the newest finished one of the whole method.

    Returns:
        The run's id.

    Raises:
        ValueError: there is no such run, or MLflow's database is damaged.
    """
    loader = OmegaConfigLoader(
        conf_source=str(project / settings.CONF_SOURCE), env=env, **settings.CONFIG_LOADER_ARGS
    )
    store = mlflow_settings(loader, project)
    check_database(store)
    uri = store["server"]["mlflow_tracking_uri"]
    mlflow.set_tracking_uri(uri)
    run_id = run_id or _newest_run(uri, store["tracking"]["experiment"].get("name", EXPERIMENT))
    mlflow.get_run(run_id)  # before any work
    load_and_populate_data(project, env=env, package_name=__package__)
    with tempfile.TemporaryDirectory(prefix="rest-pg-lineage-") as place:
        _Site(Path(place)).deploy(is_all_previews_enabled=False)
        mlflow.log_artifacts(place, ARTIFACTS, run_id=run_id)
    return run_id


def _newest_run(uri: str, experiment: str) -> str:
    runs = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string="attributes.status = 'FINISHED' and tags.pipelines = '__default__'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    if not runs:
        raise ValueError(
            f"no finished run is in {experiment} at {uri}: make one, or name one by --run-id"
        )
    found: str = runs[0].info.run_id
    return found
