"""What a run would cost, and whether it could start: the place of every pipeline in a dry run."""

from rest_pg.pipelines.plan.pipeline import create_pipeline

__all__ = ["create_pipeline"]
