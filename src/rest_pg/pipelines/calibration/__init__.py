"""How well each reward tells a user's own text from others: measured before it is trusted."""

from rest_pg.pipelines.calibration.pipeline import create_pipeline

__all__ = ["create_pipeline"]
