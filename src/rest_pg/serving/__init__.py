"""A policy at work: what answers, and the server around it. Models that were registered before import from here."""

from rest_pg.serving.mlflow_model import ServedWriter

__all__ = ["ServedWriter"]
