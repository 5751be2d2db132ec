"""Wiring: examples and profiles → prompts, and the teacher's reasoning paths."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.reasoning_path.nodes import (
    create_prompts,
    describe_reasoning_paths,
    write_reasoning_paths,
)


def create_pipeline() -> Pipeline:
    """Return the pipeline that prepares what is read and what is first learnt."""
    shared = ["examples", "profiles", "base_policy", "response_template"]
    return Pipeline(
        [
            node(
                create_prompts,
                [*shared, "params:response_format", "params:prompt"],
                ["prompts", "prompt_figures"],
                name="create_prompts",
            ),
            node(
                create_prompts,
                [*shared, "params:direct_response_format", "params:prompt"],
                ["direct_prompts", "direct_prompt_figures"],
                name="create_direct_prompts",
            ),
            node(
                write_reasoning_paths,
                ["examples", "profiles", "teacher", "base_policy"],
                "reasoning_paths",
                name="write_reasoning_paths",
            ),
            node(
                describe_reasoning_paths,
                "reasoning_paths",
                ["reasoning_path_figures", "reasoning_path.mlflow_metrics"],
                name="describe_reasoning_paths",
            ),
        ]
    )
