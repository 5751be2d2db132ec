"""Wiring: a policy, its results and its settings → cards, a trace, a registered model."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.ship.cards import write_dataset_card, write_model_card
from rest_pg.pipelines.ship.nodes import (
    describe_version,
    gather_settings,
    register_policy,
    trace_answer,
)
from rest_pg.wiring import bind


def create_pipeline(policy: str) -> Pipeline:
    """Return the pipeline that ships one policy of the default run.

    Args:
        policy: its dataset: policy_0 is SFT's, policy_t that of iteration t.

    Raises:
        ValueError: ``policy`` is no policy of the default run.
    """
    prefix, _, number = policy.rpartition("_")
    if prefix != "policy" or not number.isdigit():
        raise ValueError(f"policy={policy!r} is none of the run's: name policy_0, policy_1 …")
    system = "sft" if number == "0" else f"iteration_{number}"
    return Pipeline(
        [
            node(
                gather_settings,
                [
                    *(policy, "retriever", "generator"),
                    *("params:retrieval", "params:prompt", "params:response_format"),
                    *("params:evaluation", "params:ship", "params:seed"),
                ],
                "ship.settings",
                name="gather_settings",
            ),
            node(
                trace_answer,
                [
                    *(policy, "examples", "response_template", "ship.settings"),
                    *("reward", "params:seed"),
                ],
                "ship.traced_answer",
                name="trace_answer",
            ),
            node(
                bind(write_model_card, system=system),
                [
                    *("results", "data_statistics", "params:base_policy", "params:selection"),
                    *("params:maximization", "params:ship", "params:seed"),
                ],
                "model_card",
                name="write_model_card",
            ),
            node(
                write_dataset_card,
                ["data_statistics", "params:ship"],
                "dataset_card",
                name="write_dataset_card",
            ),
            node(
                register_policy,
                [
                    *(policy, f"evaluation.{system}.metrics", "response_template"),
                    *("ship.settings", "model_card", "dataset_card", "reward"),
                    *("params:ship", "params:evaluation", "params:seed"),
                ],
                "ship.registered_model",
                name="register_policy",
            ),
            node(
                describe_version,
                "ship.registered_model",
                "shipping_description",
                name="describe_version",
            ),
        ]
    )
