"""Wiring: one template per system (base, sft, iteration_1 …), then results and report."""

from typing import Any

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.evaluation.nodes import (
    create_results,
    log_results,
    log_system,
    measure_samples,
    sample_held_out,
)
from rest_pg.pipelines.evaluation.report import create_report, describe_run
from rest_pg.pipelines.self_training.nodes import score_samples
from rest_pg.tracking import to_samples_table
from rest_pg.wiring import bind


def create_system(step: int | None, *, second_judge: bool = False) -> Pipeline:
    """Return the template that evaluates one policy.

    All systems draw with the same seeds: the differences between them are paired.

    Args:
        step: the policy's place on the curves; none: it has none.
        second_judge: whether a judge that trained no system scores the samples too.
    """
    inputs = ["scored_samples", "prompts", "profiles"] + ["second_scored_samples"] * second_judge
    second = node(
        score_samples,
        ["samples", "prompts", "second_judge"],
        "second_scored_samples",
        name="score_samples_again",
    )
    return Pipeline([second] if second_judge else []) + Pipeline(
        [
            node(
                bind(sample_held_out, fine_tuned=step == 0),
                [
                    "policy",
                    "prompts",
                    "generator",
                    "params:response_format",
                    "params:evaluation",
                    "params:seed",
                ],
                ["samples", "sampling_figures"],
                name="sample_held_out",
            ),
            node(
                score_samples,
                ["samples", "prompts", "reward"],
                "scored_samples",
                name="score_samples",
            ),
            node(
                measure_samples,
                inputs,
                "metrics",
                name="measure_samples",
            ),
            node(to_samples_table, "scored_samples", "samples_table", name="log_samples"),
            node(bind(log_system, step=step), "metrics", "mlflow_metrics", name="log_system"),
        ]
    )


def create_pipeline(n_iterations: int) -> Pipeline:
    """Return the evaluation of the base model, of SFT and of every iteration."""
    plain = {"policy": "base_policy", "prompts": "direct_prompts"}
    systems: dict[str, tuple[int | None, dict[str, str]]] = {"base": (None, plain)}
    for t in range(n_iterations + 1):
        name = "sft" if t == 0 else f"iteration_{t}"
        systems[name] = (t, {"policy": f"policy_{t}", "prompts": "prompts"})
    placed = [
        Pipeline(
            create_system(step),
            namespace=f"evaluation.{system}",
            inputs=inputs | {name: name for name in ("generator", "reward", "profiles")},
            parameters={
                "evaluation": "evaluation",
                "seed": "seed",
                "response_format": "direct_response_format" if step is None else "response_format",
            },
        )
        for system, (step, inputs) in systems.items()
    ]
    return sum(placed, Pipeline([])) + _create_comparison(n_iterations, list(systems))


def _create_comparison(n_iterations: int, systems: list[str]) -> Pipeline:
    metrics: dict[str, Any] = {s: f"evaluation.{s}.metrics" for s in systems}
    of_systems = {
        f"{kind}_{system}": f"evaluation.{system}.{dataset}"
        for kind, dataset in (("scored", "scored_samples"), ("sampling", "sampling_figures"))
        for system in systems
    }
    of_iterations = {
        f"{kind}_iteration_{t}": f"iteration_{t}.{dataset}"
        for kind, dataset in (
            ("figures", "figures"),
            ("drawn", "scored_samples"),
            ("kept", "selected_samples"),
        )
        for t in range(1, n_iterations + 1)
    }
    return Pipeline(
        [
            node(
                create_results,
                {"params": "params:evaluation", "seed": "params:seed"} | metrics,
                "results",
                name="create_results",
            ),
            node(
                create_report,
                {
                    "results": "results",
                    "examples": "examples",
                    "profiles": "profiles",
                    "data_statistics": "data_statistics",
                    "ingestion_counts": "ingestion_counts",
                    "reasoning_path_figures": "reasoning_path_figures",
                    "seed": "params:seed",
                    "run_times": "run_times",
                    "fine_tuning": "sft.training_figures",
                }
                | of_systems
                | of_iterations,
                "report",
                name="create_report",
            ),
            node(describe_run, "results", "run_description", name="describe_run"),
            node(log_results, ["results", "report"], None, name="log_results"),
        ],
        # one box in kedro-viz, with the systems that it compares
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
    )
