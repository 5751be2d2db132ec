"""Experiments behind a finished run: exploration budget, M-step start, profiles, reasoning paths."""

from rest_pg.pipelines.experiments.pipeline import (
    create_exploration,
    create_forced_paths,
    create_path_effect,
    create_shuffled_profiles,
    create_starts,
)

__all__ = [
    "create_exploration",
    "create_forced_paths",
    "create_path_effect",
    "create_shuffled_profiles",
    "create_starts",
]
