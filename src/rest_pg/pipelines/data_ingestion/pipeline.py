"""Wiring: raw documents → documents → examples → profiles; and the base policy."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.data_ingestion.nodes import (
    create_examples,
    import_policy,
    read_documents,
    retrieve_profiles,
)


def create_pipeline() -> Pipeline:
    """Return the pipeline that everything else starts from."""
    return Pipeline(
        [
            node(
                read_documents,
                ["raw_documents", "params:passages", "params:bad_records"],
                ["documents", "rejected_records"],
                name="read_documents",
            ),
            node(
                create_examples,
                ["documents", "request_template", "params:examples", "params:seed"],
                "examples",
                name="create_examples",
            ),
            node(
                retrieve_profiles,
                ["examples", "retriever", "params:retrieval"],
                "profiles",
                name="retrieve_profiles",
            ),
            node(import_policy, "params:base_policy", "base_policy", name="import_policy"),
        ]
    )
