"""Users' documents become examples with a retrieved profile."""

from rest_pg.pipelines.data_ingestion.pipeline import create_pipeline

__all__ = ["create_pipeline"]
