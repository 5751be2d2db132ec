"""Which MLflow database and experiment a project uses: the environment's, else those of mlflow.yml."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader

from rest_pg.temporary import temporary_name

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
SQLITE = "sqlite:///"
PATTERNS = ["mlflow*", "mlflow*/**", "**/mlflow*"]
"""kedro-mlflow's own."""
CHECKED_BYTES = 500e6
"""A larger database isn't read from end to end: its first pages are."""

_of_projects: set[str] = set()
"""Databases that this process took from a project's mlflow.yml: MLflow puts them into the environment."""


def mlflow_settings(loader: OmegaConfigLoader, project: Path) -> dict[str, Any]:
    """Return what ``mlflow.yml`` says, with the environment's database and experiment in the place of its own.

    A relative path is the project's in the file, and the working directory's in the environment.
    """
    loader.config_patterns.setdefault("mlflow", PATTERNS)
    try:
        found: dict[str, Any] = dict(loader["mlflow"])
    except MissingConfigException:
        found = {}
    server, tracking = dict(found.get("server") or {}), dict(found.get("tracking") or {})
    experiment = dict(tracking.get("experiment") or {})
    given = os.environ.get(URI, "")
    if given and given not in _of_projects:
        server["mlflow_tracking_uri"] = _absolute(given, Path.cwd())
        if given.startswith(
            ("http:", "https:", "databricks")
        ):  # a server keeps its artifacts itself
            experiment["create_experiment_kwargs"] = {
                key: value
                for key, value in (experiment.get("create_experiment_kwargs") or {}).items()
                if key != "artifact_location"
            }
    else:
        uri = _absolute(str(server.get("mlflow_tracking_uri") or "mlruns"), project)
        server["mlflow_tracking_uri"] = uri
        _of_projects.add(uri)
    if os.environ.get(EXPERIMENT):
        experiment["name"] = os.environ[EXPERIMENT]
    return found | {"server": server, "tracking": tracking | {"experiment": experiment}}


def _absolute(uri: str, base: Path) -> str:
    """Return an address whose path, if it is one of this machine and relative, begins at ``base``."""
    if uri.startswith(SQLITE):
        path = uri.removeprefix(SQLITE)
        return uri if path.startswith("/") or not path else f"{SQLITE}{base / path}"
    if ":" in uri or uri in ("databricks", "databricks-uc"):
        return uri
    return (base / uri).as_uri()


def check_database(settings: Mapping[str, Any]) -> None:
    """Check MLflow's database, if it is a SQLite file; create it if there is none.

    Raises:
        ValueError: it can't be read as one, or is damaged.
    """
    uri = str(settings["server"]["mlflow_tracking_uri"])
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or str(path) in (".", ""):
        return
    if not path.exists():
        _create(path)
        return
    try:
        fault = _fault_of(path)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):  # another run writes to it
            return
        fault = str(error)
    if fault:
        raise ValueError(
            f"MLflow's database {path} is damaged ({fault}). Move it away (mv {path} {path}.damaged), or put "
            "a copy in its place: the next run makes a new one. data/ isn't affected; the curves and registered "
            f"models of earlier runs are in the damaged file alone (sqlite3 {path}.damaged .recover)."
        )


def _create(path: Path) -> None:
    """Create the database whole or not at all: MLflow can't open one whose tables a killed run had begun."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415  (takes seconds)

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        store = SqlAlchemyStore(f"{SQLITE}{temporary}", str(path.parent / "mlartifacts"))
        store.engine.dispose()
        with suppress(FileExistsError):  # another run was quicker
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _fault_of(path: Path) -> str:
    # not read-only: what a killed run left half written is rolled back by whoever opens the file
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)
    try:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if "experiments" in tables and not (
            "alembic_version" in tables
            and database.execute("SELECT count(*) FROM alembic_version").fetchone()[0]
        ):
            return "a killed run had begun to create it"
        if path.stat().st_size > CHECKED_BYTES:
            return ""
        ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
    finally:
        database.close()
    return "" if verdict == "ok" else str(verdict).replace("\n", " ")
