"""REST-PG: reasoning-enhanced self-training for personalised long-form text generation."""

import os

__version__ = "0.1.0"

# Kedro imports a project's package before its plugins, and these before anything else. Kedro and the hub's library,
# which TRL tells of each training, heed the first; MLflow, which asks the network as soon as it is imported, the
# second alone (of the first no value but the word true).
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
