"""Every place that holds users' texts, ids or figures: whoever adds one adds it here.

A test fails if an entry of any environment's catalog, or a store, is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any


class Treatment(Enum):
    """What forgetting a user does with a place. The order is that of removal: documents come last."""

    CONFIGURATION = "holds nothing of a user"
    TRACKING = "is a part of the tracking store"
    POLICY = "is listed if it was trained on the user; --policies retire deletes it"
    CHECKPOINTS = "is treated as a policy is"
    PAGE = "is deleted if it shows the user; a run makes it again"
    FIGURES = "loses the user's rows, and is deleted if it shows the user's texts"
    EMBEDDINGS = "loses the embeddings of the user's texts"
    SHARDS = "loses the user's rows: work in progress"
    RECORDS = "loses the user's rows"
    EXAMPLES = "loses the user's rows, after all that was made of them"
    DOCUMENTS = "loses the user's rows, last of all"
    SOURCE = "is named, and is its owner's to edit"
    FORGOTTEN = "is the list of forgotten users: keyed hashes"


T = Treatment
ENTRIES: Mapping[str, Treatment] = {
    "retriever": T.EMBEDDINGS,
    "teacher": T.CONFIGURATION,
    "reward": T.SHARDS,
    "second_judge": T.SHARDS,
    "generator": T.SHARDS,
    "trainer": T.CHECKPOINTS,
    "run_times": T.CONFIGURATION,
    "raw_documents": T.SOURCE,
    "raw_examples": T.SOURCE,
    "requests": T.SOURCE,
    "forgotten_users": T.FORGOTTEN,
    "rejected_records": T.RECORDS,
    "reading_counts": T.FIGURES,
    "ingestion_counts": T.FIGURES,
    "left_out": T.RECORDS,
    "documents": T.DOCUMENTS,
    "examples": T.EXAMPLES,
    "profiles": T.RECORDS,
    "no_profiles": T.RECORDS,
    "request_template": T.CONFIGURATION,
    "response_template": T.CONFIGURATION,
    "prompts": T.RECORDS,
    "{documents}_prompts": T.RECORDS,
    "reasoning_paths": T.RECORDS,
    "sft_examples": T.RECORDS,
    "answers": T.RECORDS,
    "base_policy": T.POLICY,
    "{system}.policy_{t}": T.POLICY,
    "policy_{t}": T.POLICY,
    "{namespace}.samples": T.RECORDS,
    "{namespace}.scored_samples": T.RECORDS,
    "{namespace}.second_scored_samples": T.RECORDS,
    "{namespace}.selected_samples": T.RECORDS,
    "{namespace}.examples": T.EXAMPLES,
    "{namespace}.shuffled_examples": T.EXAMPLES,
    "{namespace}.profiles": T.RECORDS,
    "{namespace}.prompts": T.RECORDS,
    "{namespace}.reasoning_paths": T.RECORDS,
    "{namespace}.sft_examples": T.RECORDS,
    "{namespace}.training_examples": T.RECORDS,
    "{namespace}.metrics": T.RECORDS,
    "{namespace}.sampling_figures": T.FIGURES,
    "{namespace}.training_figures": T.FIGURES,
    "{namespace}.prompt_figures": T.FIGURES,
    "{namespace}.figures": T.FIGURES,
    "{documents}_prompt_figures": T.FIGURES,
    "prompt_figures": T.FIGURES,
    "reasoning_path_figures": T.FIGURES,
    "data_statistics": T.FIGURES,
    "results": T.FIGURES,
    "attacks": T.FIGURES,
    "calibration": T.FIGURES,
    "study": T.FIGURES,
    "study_{part}": T.FIGURES,
    "study_{part}_plot": T.FIGURES,
    "{experiment}_table": T.FIGURES,
    "{experiment}_plot": T.FIGURES,
    "ship.{part}": T.FIGURES,
    "estimate": T.FIGURES,
    "node_seconds": T.FIGURES,
    "estimate_and_time": T.FIGURES,
    "plan": T.FIGURES,
    "report": T.PAGE,
    "study_report": T.PAGE,
    "{card}_card": T.FIGURES,
    "{namespace}.samples_table": T.TRACKING,
    "{namespace}.mlflow_metrics": T.TRACKING,
    "seed_{seed}.{system}.iteration_{t}.mlflow_metrics": T.TRACKING,
    "seed_{seed}.{system}.evaluation_{t}.mlflow_metrics": T.TRACKING,
    "seed_{seed}.{system}.mlflow_metrics": T.TRACKING,
    "exploration.{case}.mlflow_metrics": T.TRACKING,
    "starts.{case}.mlflow_metrics": T.TRACKING,
    "run_description": T.TRACKING,
    "study_description": T.TRACKING,
    "shipping_description": T.TRACKING,
    "system_runs": T.TRACKING,
}
"""The project's catalog entries, by name or pattern."""

STORES: Mapping[str, str] = {
    "mlflow": "rest_pg.privacy.mlflow_traces: traces, tables, artifacts, parameters, tags, registered models",
    ".viz": "rest_pg.privacy.search: events of kedro-viz",
    "objects": "rest_pg.privacy.places: datasets in object stores, through copies of them",
}
"""What keeps data beside the catalog's own files, and where it is treated."""

VIZ_EVENTS = Path(".viz/kedro_pipeline_events.json")

_TYPES: tuple[tuple[str, Treatment], ...] = (
    ("RecordsDataset", T.RECORDS),
    ("PolicyDataset", T.POLICY),
    ("datasets.sources.", T.SOURCE),
    ("mlflow.", T.TRACKING),
    ("io.metrics.", T.TRACKING),
    ("TextDataset", T.PAGE),
)
_BACKENDS: tuple[tuple[str, Treatment], ...] = (
    ("Retriever", T.EMBEDDINGS),
    ("Resumable", T.SHARDS),
    ("Trainer", T.CHECKPOINTS),
    ("ForgottenUsers", T.FORGOTTEN),
)


def treatment_of(name: str, entry: Mapping[str, Any]) -> Treatment:
    """Return what is done with a catalog entry: as registered, or as its type says if it is a project's own."""
    if name in ENTRIES:
        return ENTRIES[name]
    kind = str(entry.get("type", ""))
    if "BackendDataset" in kind:
        backend = str(entry.get("backend", ""))
        return next((t for part, t in _BACKENDS if part in backend), T.CONFIGURATION)
    if name == "forgotten_users" or "Forgotten" in kind:
        return T.FORGOTTEN
    inner = entry.get("dataset")
    if isinstance(inner, Mapping) and "sources" not in kind:
        return treatment_of("", inner)
    return next((t for part, t in _TYPES if part in kind), T.FIGURES)
