"""Wiring: prompts and reasoning paths → sft_examples → policy_0."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.sft.nodes import create_sft_examples, finetune, log_training


def create_pipeline() -> Pipeline:
    """Return the pipeline that makes the policy of iteration 0."""
    return Pipeline(
        [
            node(
                create_sft_examples,
                ["prompts", "reasoning_paths", "params:response_format"],
                "sft_examples",
                name="create_sft_examples",
            ),
            node(
                finetune,
                ["base_policy", "sft_examples", "trainer", "params:sft", "params:seed"],
                ["policy_0", "sft.training_figures"],
                name="finetune",
            ),
            node(
                log_training, "sft.training_figures", "sft.mlflow_metrics", name="log_fine_tuning"
            ),
        ]
    )
