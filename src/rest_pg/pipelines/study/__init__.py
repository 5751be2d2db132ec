"""The paper as a study: every system on the same data, trained with several seeds, and compared."""

from rest_pg.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
