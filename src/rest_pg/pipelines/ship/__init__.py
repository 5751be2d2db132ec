"""A policy on its way to users: its cards, a registered model, and the alias of the best one."""

from rest_pg.pipelines.ship.pipeline import create_pipeline

__all__ = ["create_pipeline"]
