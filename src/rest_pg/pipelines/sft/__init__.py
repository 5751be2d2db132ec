"""Supervised fine-tuning on reasoning path and reference: policy_0."""

from rest_pg.pipelines.sft.pipeline import create_pipeline

__all__ = ["create_pipeline"]
