"""Policies compared on held-out users: results with intervals, and the report."""

from rest_pg.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
