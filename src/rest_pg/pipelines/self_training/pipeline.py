"""Wiring: one template, placed T times; ``policy_{t-1}`` goes in and ``policy_t`` comes out."""

from typing import Literal

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.self_training.nodes import (
    create_training_examples,
    log_iteration,
    maximize,
    sample_responses,
    score_samples,
    select_matched,
    select_samples,
    summarize_iteration,
)
from rest_pg.tracking import to_samples_table
from rest_pg.wiring import bind

Selection = Literal["reward", "matched"]

SHARED = {"prompts", "generator", "reward", "trainer", "base_policy"}
PARAMETERS = {
    *("expectation", "selection", "maximization"),
    *("response_format", "retrieval", "seed"),
}
SELECTION: dict[Selection, tuple[str, ...]] = {
    "reward": ("scored_samples", "params:selection", "params:seed"),
    "matched": ("scored_samples", "matched_samples", "params:selection", "params:seed"),
}
"""What each kind of selection reads."""


def create_iteration(
    t: int, *, selection: Selection = "reward", start: str | None = None
) -> Pipeline:
    """Return the template of iteration ``t`` (1 is the first): its number enters the seeds.

    Args:
        t: the iteration.
        selection: by reward; or at random, as many per prompt as ``matched_samples`` holds.
        start: what the M-step starts from, in the place of ``maximization.start``.
    """
    return create_expectation(t) + create_maximization(t, selection=selection, start=start)


def create_expectation(t: int) -> Pipeline:
    """Return the part of iteration ``t`` that draws and scores samples."""
    return Pipeline(
        [
            node(
                bind(sample_responses, iteration=t),
                [
                    "policy",
                    "prompts",
                    "generator",
                    "params:response_format",
                    "params:expectation",
                    "params:seed",
                ],
                ["samples", "sampling_figures"],
                name="sample_responses",
            ),
            node(
                score_samples,
                ["samples", "prompts", "reward"],
                "scored_samples",
                name="score_samples",
            ),
        ]
    )


def create_maximization(
    t: int, *, selection: Selection = "reward", start: str | None = None
) -> Pipeline:
    """Return the part of iteration ``t`` that selects among scored samples, and trains on them."""
    select = select_samples if selection == "reward" else select_matched
    return Pipeline(
        [
            node(select, list(SELECTION[selection]), "selected_samples", name="select_samples"),
            node(
                create_training_examples,
                ["selected_samples", "prompts", "params:response_format"],
                "training_examples",
                name="create_training_examples",
            ),
            node(
                bind(maximize, start=start),
                {
                    "base_policy": "base_policy",
                    "sft_policy": "sft_policy",
                    "policy": "policy",
                    "training_examples": "training_examples",
                    "trainer": "trainer",
                    "params": "params:maximization",
                    "seed": "params:seed",
                    "retrieval": "params:retrieval",
                },
                ["next_policy", "training_figures"],
                name="maximize",
            ),
            node(
                summarize_iteration,
                ["scored_samples", "selected_samples", "sampling_figures", "training_figures"],
                "figures",
                name="summarize_iteration",
            ),
            node(
                to_samples_table,
                ["scored_samples", "selected_samples"],
                "samples_table",
                name="log_samples",
            ),
            node(
                bind(log_iteration, iteration=t), "figures", "mlflow_metrics", name="log_iteration"
            ),
        ]
    )


def create_pipeline(n_iterations: int) -> Pipeline:
    """Return T chained iterations, each in its namespace ``iteration_t``.

    Raises:
        ValueError: ``n_iterations`` is below 1.
    """
    if n_iterations < 1:
        raise ValueError(f"n_iterations={n_iterations} is below 1: raise it")
    iterations = [
        Pipeline(
            create_iteration(t),
            namespace=f"iteration_{t}",
            inputs={name: name for name in SHARED}
            | {"policy": f"policy_{t - 1}", "sft_policy": "policy_0"},
            outputs={"next_policy": f"policy_{t}"},
            parameters=PARAMETERS,
        )
        for t in range(1, n_iterations + 1)
    ]
    return sum(iterations, Pipeline([]))


def create_matched_pipeline(n_iterations: int) -> Pipeline:
    """Return T iterations that select at random as many samples as another system's iterations did.

    Whatever reward-ranked selection gains over this one, the ranking gained. The first iteration
    draws nothing: its policy is the other's, so it takes ``first_scored_samples`` and
    ``first_sampling_figures``. ``matched_samples_t`` is what the other kept in iteration t.
    """
    iterations = []
    for t in range(1, n_iterations + 1):
        template = create_maximization(t, selection="matched")
        inputs = {name: name for name in SHARED if t > 1 or name not in ("generator", "reward")}
        if t > 1:
            template = create_expectation(t) + template
        else:
            inputs |= {name: f"first_{name}" for name in ("scored_samples", "sampling_figures")}
        inputs |= {"policy": f"policy_{t - 1}", "sft_policy": "policy_0"}
        iterations.append(
            Pipeline(
                template,
                namespace=f"iteration_{t}",
                inputs=inputs | {"matched_samples": f"matched_samples_{t}"},
                outputs={"next_policy": f"policy_{t}"},
                parameters=PARAMETERS - ({"expectation"} if t == 1 else set()),
            )
        )
    return sum(iterations, Pipeline([]))
