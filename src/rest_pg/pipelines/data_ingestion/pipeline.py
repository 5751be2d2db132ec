"""Wiring: raw documents → documents → examples → profiles; and the base policy.

LongLaMP's records are examples already: ``data_format: longlamp`` puts them in the documents' place.
"""

from kedro.pipeline import Pipeline, node

from rest_pg.method.retrieval import retrieve_profiles
from rest_pg.pipelines.data_ingestion.counts import count_records
from rest_pg.pipelines.data_ingestion.nodes import (
    draw_examples,
    import_policy,
    read_documents,
    read_examples,
)
from rest_pg.pipelines.data_ingestion.statistics import describe_data

DATA_FORMATS = ("documents", "longlamp")


def create_pipeline(data_format: str) -> Pipeline:
    """Return the pipeline that everything else starts from.

    Raises:
        ValueError: ``data_format`` is none of :data:`DATA_FORMATS`.
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format={data_format!r} is not one of {', '.join(DATA_FORMATS)}")
    reading = _read_documents() if data_format == "documents" else _read_longlamp()
    return reading + Pipeline(
        [
            node(
                retrieve_profiles,
                ["examples", "retriever", "params:retrieval"],
                "profiles",
                name="retrieve_profiles",
            ),
            node(
                describe_data,
                ["examples", "params:retrieval"],
                "data_statistics",
                name="describe_data",
            ),
            node(import_policy, "params:base_policy", "base_policy", name="import_policy"),
        ]
    )


def _read_documents() -> Pipeline:
    return Pipeline(
        [
            node(
                read_documents,
                ["raw_documents", "params:passages", "params:bad_records", "forgotten_users"],
                ["documents", "rejected_records", "reading_counts"],
                name="read_documents",
            ),
            node(
                draw_examples,
                ["documents", "request_template", "params:examples", "params:seed"],
                ["examples", "left_out"],
                name="create_examples",
            ),
            node(
                count_records,
                ["reading_counts", "documents", "examples", "left_out", "params:examples"],
                "ingestion_counts",
                name="count_records",
            ),
        ]
    )


def _read_longlamp() -> Pipeline:
    return Pipeline(
        [
            node(
                read_examples,
                [
                    "raw_examples",
                    "params:longlamp",
                    "params:bad_records",
                    "params:seed",
                    "forgotten_users",
                ],
                ["examples", "rejected_records", "ingestion_counts"],
                name="read_examples",
            )
        ]
    )
