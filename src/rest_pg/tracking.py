"""Figures as MLflow curves: one key per quantity, its step the EM iteration (0 is SFT)."""

from __future__ import annotations

from collections.abc import Mapping


def to_metric_history(figures: Mapping[str, float], *, step: int) -> dict[str, dict[str, float]]:
    """Return what kedro-mlflow's metrics history takes: each figure with its step."""
    return {name: {"value": float(value), "step": step} for name, value in figures.items()}
