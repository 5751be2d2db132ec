"""Prompts, and the reasoning paths that the policy is first taught."""

from rest_pg.pipelines.reasoning_path.pipeline import create_pipeline

__all__ = ["create_pipeline"]
