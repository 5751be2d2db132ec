"""The paper's figures as sweeps behind a finished run: exploration budget, M-step start, profiles."""

from rest_pg.pipelines.experiments.pipeline import (
    create_exploration,
    create_shuffled_profiles,
    create_starts,
)

__all__ = ["create_exploration", "create_shuffled_profiles", "create_starts"]
