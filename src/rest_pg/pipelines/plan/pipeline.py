"""Wiring: parameters → plan."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.plan.nodes import create_plan, log_plan


def create_pipeline() -> Pipeline:
    """Return the pipeline that estimates a run and does nothing else (``dry_run: true``)."""
    names = ("prompt", "sft", "expectation", "selection", "maximization", "evaluation", "plan")
    parameters = {name: f"params:{name}" for name in names} | {
        "n_iterations": "params:n_iterations"
    }
    return Pipeline(
        [
            node(create_plan, parameters, "plan", name="create_plan"),
            node(log_plan, ["plan", "params:plan"], None, name="log_plan"),
        ]
    )
