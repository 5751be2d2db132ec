"""What a run would cost, from its configuration alone: the place of every pipeline in a dry run."""

from rest_pg.pipelines.plan.pipeline import create_pipeline

__all__ = ["create_pipeline"]
