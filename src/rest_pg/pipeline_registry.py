"""The pipelines by name; ``__default__`` is the whole method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline

from rest_pg.config import SelectionParams
from rest_pg.pipelines import (
    calibration,
    data_ingestion,
    evaluation,
    experiments,
    inference,
    plan,
    reasoning_path,
    self_training,
    sft,
    ship,
    study,
)
from rest_pg.runtime.session import RunParameters, project_root

# dots are how Kedro itself writes namespaces
warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")

OWN_PLANS = ("study", "exploration", "starts", "shuffled_profiles", "forced_paths", "path_effect")
"""Pipelines whose plan is of their own nodes; that of any other is the method's."""


def register_pipelines() -> dict[str, Pipeline]:
    """Build every pipeline; in a dry run a plan takes the place of each.

    T, the training seeds and the data's format are fixed here, by the session."""
    parameters = _parameters()
    built = _build(parameters)
    if not parameters["dry_run"]:
        return built
    planned = dict.fromkeys(built, built["plan"])
    for name in OWN_PLANS:
        planned[name] = plan.create_pipeline(parameters["data_format"], built[name])
    return planned


def _build(parameters: Mapping[str, Any]) -> dict[str, Pipeline]:
    n_iterations = int(parameters["n_iterations"])
    pipelines = {
        "data_ingestion": data_ingestion.create_pipeline(parameters["data_format"]),
        "reasoning_path": reasoning_path.create_pipeline(),
        "sft": sft.create_pipeline(),
        "self_training": self_training.create_pipeline(n_iterations),
        "evaluation": evaluation.create_pipeline(n_iterations),
    }
    # mappings at first; Kedro puts the models in their place while a session goes on
    selection = SelectionParams.model_validate(parameters["selection"])
    policy = parameters["inference"]["policy"] or f"policy_{n_iterations}"
    prepared = pipelines["data_ingestion"] + pipelines["reasoning_path"]
    return pipelines | {
        "__default__": sum(pipelines.values(), Pipeline([])),
        "study": prepared + study.create_pipeline(n_iterations, parameters["study"]["seeds"]),
        "exploration": experiments.create_exploration(
            parameters["experiments"]["budgets"],
            least=2 if selection.rejected_per_prompt else 1,
        ),
        "starts": experiments.create_starts(n_iterations),
        "shuffled_profiles": experiments.create_shuffled_profiles(
            n_iterations, parameters["experiments"]["shares"]
        ),
        "forced_paths": experiments.create_forced_paths(n_iterations),
        "path_effect": experiments.create_path_effect(
            n_iterations, **parameters["experiments"]["path_effect"]
        ),
        "calibration": calibration.create_pipeline(),
        "plan": plan.create_pipeline(parameters["data_format"]),
        "inference": inference.create_pipeline(policy),
        "ship": ship.create_pipeline(policy),
    }


def _parameters() -> dict[str, Any]:
    """Parameters of the session; without one (``kedro registry list``), those of ``conf/base``."""
    if RunParameters.values is not None:
        return RunParameters.values
    loader = OmegaConfigLoader(
        conf_source=str(project_root() / "conf"), base_env="base", default_run_env="local"
    )
    return dict(loader["parameters"])
