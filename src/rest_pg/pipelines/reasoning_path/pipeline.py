"""Wiring: examples and profiles → prompts, and the teacher's reasoning paths."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.reasoning_path.nodes import create_prompts, write_reasoning_paths
from rest_pg.wiring import bind

create_base_prompts = bind(create_prompts, splits=("validation", "test"))
"""The base model never saw our output format: it is asked plainly, and only to be evaluated."""


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
                create_base_prompts,
                [*shared, "params:base_response_format", "params:prompt"],
                ["base_prompts", "base_prompt_figures"],
                name="create_base_prompts",
            ),
            node(
                write_reasoning_paths,
                ["examples", "profiles", "teacher", "base_policy"],
                "reasoning_paths",
                name="write_reasoning_paths",
            ),
        ]
    )
