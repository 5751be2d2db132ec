"""Wiring: requests → examples → profiles → prompts → answers, by the nodes that training uses."""

from kedro.pipeline import Pipeline, node

from rest_pg.method.retrieval import retrieve_profiles
from rest_pg.pipelines.inference.nodes import answer_requests, read_requests
from rest_pg.pipelines.reasoning_path.nodes import create_prompts

SHARED = {"requests", "retriever", "base_policy", "response_template", "generator", "answers"}


def create_pipeline(policy: str) -> Pipeline:
    """Return the pipeline that answers requests with one policy of the catalog.

    Args:
        policy: the dataset's name; ``--load-versions NAME:VERSION`` picks an older one of it.
    """
    template = Pipeline(
        [
            node(read_requests, "requests", "examples", name="read_requests"),
            node(
                retrieve_profiles,
                ["examples", "retriever", "params:retrieval", "policy"],
                "profiles",
                name="retrieve_profiles",
            ),
            node(
                create_prompts,
                [
                    "examples",
                    "profiles",
                    "policy",
                    "response_template",
                    "params:response_format",
                    "params:prompt",
                ],
                ["prompts", "prompt_figures"],
                name="create_prompts",
            ),
            node(
                answer_requests,
                [
                    "policy",
                    "prompts",
                    "profiles",
                    "generator",
                    "params:response_format",
                    "params:evaluation",
                    "params:seed",
                ],
                "answers",
                name="answer_requests",
            ),
        ]
    )
    names = {"retrieval", "response_format", "prompt", "evaluation", "seed"}
    return Pipeline(
        template,
        namespace="inference",
        inputs={name: name for name in SHARED & template.inputs()} | {"policy": policy},
        outputs={"answers": "answers"},
        parameters=names,
    )
