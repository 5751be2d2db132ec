"""Nodes that register a policy as an MLflow model, and say whether it is the best one yet."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import DataType
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

from rest_pg import __version__
from rest_pg.backends.protocols import Generator, Retriever, Reward
from rest_pg.checksums import policy_fingerprint
from rest_pg.config import (
    EvaluationParams,
    PromptParams,
    ResponseFormat,
    RetrievalParams,
    ShipParams,
)
from rest_pg.method.retrieval import params_of
from rest_pg.records import Answer, Example, PolicyCheckpoint
from rest_pg.reporting.markdown import escape_markdown
from rest_pg.serving.writer import BackendSettings, Writer, WriterSettings
from rest_pg.statistics import bootstrap_mean

logger = logging.getLogger(__name__)

CHAMPION, NEWEST, REWARD = "champion", "newest", "reward"
SCORES = "validation.parquet"
EXAMPLE = {
    "user": "ann",
    "request": "Write a note about the harbour.",
    "documents": [{"text": "We rebuilt the north pier."}, {"text": "The fleet left at dawn."}],
}
"""What a caller sends; nobody's text."""


def gather_settings(
    policy: PolicyCheckpoint,
    retriever: Retriever,
    generator: Generator,
    retrieval: RetrievalParams,
    prompt: PromptParams,
    response_format: ResponseFormat,
    evaluation: EvaluationParams,
    ship: ShipParams,
    seed: int,
) -> dict[str, Any]:
    """Gather what a writer is made of beside its weights: training's own settings, the kind of query too.

    Neither back-end keeps anything where the policy is served, embeddings or shards: they would be of its
    users' texts.
    """
    settings = WriterSettings(
        retriever=_without_storage(retriever.built_from),  # type: ignore[attr-defined]
        generator=_without_storage(generator.built_from),  # type: ignore[attr-defined]
        retrieval=params_of(policy, retrieval),
        prompt=prompt,
        response_format=response_format,
        decoding=evaluation.decoding,
        limits=ship.limits,
        traces=ship.traces,
        seed=seed,
    )
    found: dict[str, Any] = settings.model_dump()
    return found


def _without_storage(built_from: dict[str, Any]) -> BackendSettings:
    """Return a back-end as the catalog builds it, or the one within that keeps its work on disk."""
    arguments = built_from["arguments"]
    if "generator" in arguments:
        return BackendSettings(**arguments["generator"])
    kept = {name: value for name, value in arguments.items() if name != "directory"}
    return BackendSettings(backend=built_from["backend"], arguments=kept)


def trace_answer(
    policy: PolicyCheckpoint,
    examples: Sequence[Example],
    template: str,
    settings: dict[str, Any],
    reward: Reward,
    seed: int,
) -> dict[str, Any]:
    """Answer one validation example with a trace of each part, for MLflow's page."""
    example = min((e for e in examples if e.split == "validation"), key=lambda e: e.example_id)
    writer = Writer(policy, template, WriterSettings.model_validate(settings | {"traces": True}))
    request = {
        "user": example.user_id,
        "request": example.input,
        "documents": [{"text": document.text} for document in example.profile],
    }
    answer: Answer = writer.trace(request, example.reference, reward, seed)
    logger.info("traced the answer to example %s", example.example_id)
    return {"example_id": example.example_id, "malformed": answer.malformed}


def register_policy(
    policy: PolicyCheckpoint,
    metrics: pd.DataFrame,
    template: str,
    settings: dict[str, Any],
    model_card: str,
    dataset_card: str,
    reward: Reward,
    ship: ShipParams,
    evaluation: EvaluationParams,
    seed: int,
) -> dict[str, Any]:
    """Log a policy as an MLflow model with all that it needs, and register it.

    The newest version has the alias ``newest``. It becomes ``champion`` if there is none, or if its reward on
    validation users is above the champion's with the whole interval: the same users, under the same reward.

    Returns:
        The model's name, version and aliases, the policy's checksum, and why it is champion or not.
    """
    scores = score_by_example(metrics)
    with tempfile.TemporaryDirectory(prefix="rest-pg-ship-") as scratch:
        files = {
            "template": ("response.jinja", template),
            "settings": ("settings.json", json.dumps(settings)),
            "model_card": ("README.md", model_card),
            "dataset_card": ("dataset_card.md", dataset_card),
        }
        artifacts = {"policy": str(policy.path)}
        for key, (name, text) in files.items():
            path = Path(scratch, name)
            path.write_text(text, encoding="utf-8")
            artifacts[key] = str(path)
        artifacts["scores"] = str(Path(scratch, SCORES))
        scores.to_parquet(artifacts["scores"], index=False)
        logged = mlflow.pyfunc.log_model(
            name=ship.name,
            python_model=str(Path(__file__).parents[2] / "serving_model.py"),
            artifacts=artifacts,
            signature=signature(seed),
            input_example=pd.DataFrame([EXAMPLE]),
            # weights and texts come as files; the code is this package, as it was trained with
            pip_requirements=[f"rest-pg=={__version__}"],
            registered_model_name=ship.name,
        )
    client = MlflowClient()
    version = str(logged.registered_model_version)
    checksum = policy_fingerprint(policy)[:12]
    judged_by = json.dumps(reward.built_from, sort_keys=True)  # type: ignore[attr-defined]
    client.set_model_version_tag(ship.name, version, "policy", checksum)
    client.set_model_version_tag(ship.name, version, REWARD, judged_by)
    client.set_registered_model_alias(ship.name, NEWEST, version)
    verdict, won = _compare_with_champion(client, scores, judged_by, ship.name, evaluation, seed)
    # the page of the version shows the card; its front matter is for the hub
    client.update_model_version(ship.name, version, model_card.split("---\n", 2)[-1].strip())
    if won:
        client.set_registered_model_alias(ship.name, CHAMPION, version)
    logger.info("registered %s, version %s; %s", ship.name, version, verdict)
    return {
        "name": ship.name,
        "version": version,
        "aliases": [NEWEST, CHAMPION] if won else [NEWEST],
        "policy": checksum,
        "verdict": verdict,
    }


def describe_version(registered: dict[str, Any]) -> str:
    """Tell the run's question and its answer, in Markdown, for MLflow's page."""
    name, version = escape_markdown(registered["name"]), registered["version"]
    return (
        "Is this policy better than the one at work?\n\n"
        f"**{escape_markdown(registered['verdict'])}.** It is version {version} of {name}, as "
        f"{' and '.join(registered['aliases'])}. One of its answers is among the traces, from retrieval to reward."
    )


def signature(seed: int) -> ModelSignature:
    """Return what a served policy takes and gives."""
    text = DataType.string
    takes = [ColSpec(text, "user"), ColSpec(text, "request"), ColSpec(AnyType(), "documents")]
    gives = [
        *(ColSpec(text, name) for name in ("response", "reasoning_path", "malformed")),
        ColSpec(AnyType(), "documents"),
        ColSpec(DataType.boolean, "finished"),
    ]
    params = ParamSchema([ParamSpec("seed", DataType.long, seed)])
    return ModelSignature(inputs=Schema([*takes]), outputs=Schema([*gives]), params=params)


def score_by_example(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the mean reward of each validation example; examples and users as digests.

    It is kept with the registered model, where nobody's name belongs.
    """
    own = metrics[metrics["split"] == "validation"]
    means = own.groupby(["user_id", "example_id"], as_index=False)["reward"].mean()
    return pd.DataFrame(
        {
            "user": means["user_id"].map(_digest),
            "example": means["example_id"].map(_digest),
            "reward": means["reward"],
        }
    )


def _digest(name: object) -> str:
    return hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _compare_with_champion(
    client: MlflowClient,
    scores: pd.DataFrame,
    judged_by: str,
    name: str,
    evaluation: EvaluationParams,
    seed: int,
) -> tuple[str, bool]:
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return "the first champion", True
    if champion.tags.get(REWARD) != judged_by:
        return _not_compared(f"version {champion.version}", "scored by another reward"), False
    uri = f"models:/{name}/{champion.version}/artifacts/{SCORES}"
    before = pd.read_parquet(mlflow.artifacts.download_artifacts(uri))
    return compare(scores, before, evaluation, seed, f"version {champion.version}")


def compare(
    scores: pd.DataFrame,
    before: pd.DataFrame,
    evaluation: EvaluationParams,
    seed: int,
    champion: str,
) -> tuple[str, bool]:
    """Say whether new scores are above a champion's: the whole interval, paired, over users.

    Args:
        scores: what :func:`score_by_example` returned.
        before: the champion's.
        evaluation: resamples and confidence.
        seed: of the resamples.
        champion: how the verdict calls it.

    Returns:
        The verdict, and whether the new policy takes its place.
    """
    if set(scores["example"]) != set(before["example"]) or scores.empty:
        return _not_compared(champion, "evaluated on other validation examples"), False
    both = scores.merge(before, on=["user", "example"], suffixes=("", "_before"))
    estimate = bootstrap_mean(
        (both["reward"] - both["reward_before"]).to_numpy(dtype="float64"),
        both["user"].to_numpy(dtype="str"),
        n_bootstrap=evaluation.n_bootstrap,
        confidence=evaluation.confidence,
        seed=seed,
    )
    # the resamples of a single user are all alike
    won = estimate.ci_low > 0 and estimate.n_users > 1
    return (
        f"{estimate.mean:+.4f} [{estimate.ci_low:+.4f}, {estimate.ci_high:+.4f}] over the champion, "
        f"{champion}, on {estimate.n_users} validation users: {'it takes its place' if won else 'it stays'}",
        won,
    )


def _not_compared(champion: str, why: str) -> str:
    return (
        f"not compared with the champion, {champion}: it was {why}. Evaluate it as this one was, or "
        "move the alias by hand"
    )
