"""Project settings: hooks, and how configuration is read."""

from omegaconf.resolvers import oc

from rest_pg.hooks import PROJECT_HOOKS

HOOKS = PROJECT_HOOKS

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "custom_resolvers": {"oc.env": oc.env},
}
