"""Wiring: examples → calibration of the reward; not part of the default run."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.calibration.nodes import calibrate_reward


def create_pipeline() -> Pipeline:
    """Return the pipeline that measures the reward on validation users' texts."""
    return Pipeline(
        [
            node(
                calibrate_reward,
                ["examples", "reward", "params:calibration", "params:seed"],
                "calibration",
                name="calibrate_reward",
            )
        ]
    )
