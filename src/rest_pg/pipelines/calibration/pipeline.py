"""Wiring: examples → calibration of the reward; not part of the default run."""

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.calibration.nodes import attack_reward, calibrate_reward


def create_pipeline() -> Pipeline:
    """Return the pipeline that measures the reward on validation users' texts."""
    return Pipeline(
        [
            node(
                calibrate_reward,
                ["examples", "reward", "params:calibration", "params:seed"],
                "calibration",
                name="calibrate_reward",
            ),
            node(
                attack_reward,
                ["examples", "reward", "params:calibration", "params:seed"],
                "attacks",
                name="attack_reward",
            ),
        ]
    )
