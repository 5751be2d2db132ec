"""Refuses a selection that can keep nothing, or that nothing learns from, before any work."""

from __future__ import annotations

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from rest_pg.config import ExpectationParams, MaximizationParams, SelectionParams


class SelectionHook:
    """Refuses a selection that the reward or the M-step at hand can't work with, before any work."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Raise ``ValueError`` if self-training could keep nothing, or learn nothing from it."""
        inputs = pipeline.inputs()
        if "params:selection" not in inputs:
            return
        selection = catalog.load("params:selection")
        budget = catalog.load("params:expectation") if "params:expectation" in inputs else None
        if "params:maximization" in inputs:
            check_pairs(selection, catalog.load("params:maximization"), budget)
        if budget is not None and selection.relative_to == "prompt_mean":
            # rewards are in [0, 1]: the best there is stands alone among m - 1 of reward 0
            highest = 1 - 1 / budget.samples_per_prompt
            if selection.threshold > highest:
                raise ValueError(
                    f"selection.threshold={selection.threshold} can keep nothing: of "
                    f"expectation.samples_per_prompt={budget.samples_per_prompt} samples none is more than "
                    f"{highest:.3g} above their mean. Lower the threshold, or set relative_to: zero."
                )
        if "reward" not in inputs:
            return
        reachable = getattr(catalog.load("reward"), "reachable", None)
        absolute = selection.relative_to == "zero"
        if reachable is not None and absolute and not reachable(selection.threshold):
            raise ValueError(
                f"selection.threshold={selection.threshold} can keep nothing: the reward's "
                "aggregation=expected is a mean of the levels, and always below 1. Lower the "
                "threshold, or set aggregation: argmax."
            )


def check_pairs(
    selection: SelectionParams,
    maximization: MaximizationParams,
    expectation: ExpectationParams | None = None,
) -> None:
    """Raise ``ValueError`` unless pairs are both selected and learnt from, or neither."""
    rejected, preference = selection.rejected_per_prompt, maximization.preference
    if rejected and preference is None:
        raise ValueError(
            f"selection.rejected_per_prompt={rejected} selects rejected samples, and likelihood alone "
            "can't learn from them: set it to 0, or set maximization.preference"
        )
    if preference is not None and not rejected:
        raise ValueError(
            "maximization.preference learns from pairs, and selection.rejected_per_prompt=0 selects "
            "none: raise it, or set maximization.preference to null"
        )
    if rejected and expectation is not None and expectation.samples_per_prompt == 1:
        raise ValueError(
            "expectation.samples_per_prompt=1 leaves no pair for maximization.preference: raise it to "
            "2 or more"
        )
