"""Wiring: one template, placed T times; ``policy_{t-1}`` goes in and ``policy_t`` comes out."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.self_training.nodes import (
    create_training_examples,
    log_iteration,
    maximize,
    sample_responses,
    score_samples,
    select_samples,
    summarize_iteration,
)
from rest_pg.tracking import to_samples_table
from rest_pg.wiring import bind

SHARED = {"prompts", "generator", "reward", "trainer", "base_policy"}
PARAMETERS = {"expectation", "selection", "maximization", "response_format", "seed"}


def create_iteration(t: int) -> Pipeline:
    """Return the template of iteration ``t`` (1 is the first): its number enters the seeds."""
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
            node(
                select_samples,
                ["scored_samples", "params:selection", "params:seed"],
                "selected_samples",
                name="select_samples",
            ),
            node(
                create_training_examples,
                ["selected_samples", "prompts", "params:response_format"],
                "training_examples",
                name="create_training_examples",
            ),
            node(
                maximize,
                {
                    "base_policy": "base_policy",
                    "sft_policy": "sft_policy",
                    "policy": "policy",
                    "training_examples": "training_examples",
                    "trainer": "trainer",
                    "params": "params:maximization",
                    "seed": "params:seed",
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
                bind(log_iteration, iteration=t),
                "figures",
                "mlflow_metrics",
                name="log_iteration",
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
