"""Wiring: prompts and reasoning paths → sft_examples → policy."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.sft.nodes import create_sft_examples, finetune, log_training


def create_template(*, reasoning: bool = True) -> Pipeline:
    """Return the template of one fine-tuning; without reasoning it learns the references alone."""
    texts = ["prompts", "params:response_format"] + ["reasoning_paths"] * reasoning
    return Pipeline(
        [
            node(create_sft_examples, texts, "sft_examples", name="create_sft_examples"),
            node(
                finetune,
                [
                    *("base_policy", "sft_examples", "trainer"),
                    *("params:sft", "params:seed", "params:retrieval"),
                ],
                ["policy", "training_figures"],
                name="finetune",
            ),
            node(log_training, "training_figures", "mlflow_metrics", name="log_fine_tuning"),
        ]
    )


def create_pipeline() -> Pipeline:
    """Return the pipeline that makes the policy of iteration 0."""
    return Pipeline(
        create_template(),
        namespace="sft",
        inputs={"prompts", "reasoning_paths", "base_policy", "trainer"},
        outputs={"sft_examples": "sft_examples", "policy": "policy_0"},
        parameters={"response_format", "sft", "seed", "retrieval"},
    )
