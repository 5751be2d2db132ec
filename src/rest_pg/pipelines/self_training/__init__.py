"""Expectation-Maximization self-training: sample, score, select, train; T times."""

from rest_pg.pipelines.self_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
