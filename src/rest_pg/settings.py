"""Project settings: hooks, and how configuration is read."""

import warnings

from omegaconf.resolvers import oc

from rest_pg.hooks.project_hooks import PROJECT_HOOKS

# Kedro's own call, at each start
warnings.filterwarnings("ignore", message="register_new_resolver")
# MLflow warns of a model of kedro-mlflow's, past all filters, when Kedro loads its commands a moment later
with warnings.catch_warnings(record=True):
    import kedro_mlflow.mlflow  # noqa: F401

HOOKS = PROJECT_HOOKS

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # one parameter of a group, in an environment or on the command line, leaves the others as they are
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"oc.env": oc.env},
}
