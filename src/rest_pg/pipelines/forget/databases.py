"""Removing a user's answers from MLflow's database: their traces hold what was asked and written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from mlflow.entities import Trace
from mlflow.tracking import MlflowClient

MLFLOW_DATABASE = "mlflow.db"
"""As ``conf/base/mlflow.yml`` names it."""


def remove_traces(database: Path, snippets: Collection[bytes]) -> int:
    """Delete the traces that show any of the snippets, and overwrite where they stood.

    Args:
        database: MLflow's.
        snippets: what gives a user away.

    Returns:
        How many traces were removed.
    """
    # named whole: MLflow keeps a connection for each name, even if the working directory is another by now
    client = MlflowClient(tracking_uri=f"sqlite:///{database.resolve()}")
    removed = 0
    for experiment in client.search_experiments():
        place = experiment.experiment_id
        shown = [t.info.trace_id for t in _traces(client, place) if _shows(t, snippets)]
        if shown:
            removed += client.delete_traces(place, trace_ids=shown)
    if removed:
        # what is deleted stays readable in the file until its pages are written anew
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM")
    return removed


def _traces(client: MlflowClient, experiment: str) -> Iterator[Trace]:
    token = None
    while True:
        page = client.search_traces(locations=[experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _shows(trace: Trace, snippets: Collection[bytes]) -> bool:
    parts = [(span.inputs, span.outputs) for span in trace.data.spans]
    content = json.dumps(parts, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    return any(snippet in content for snippet in snippets)
