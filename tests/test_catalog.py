from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from rest_pg import pipeline_registry
from rest_pg.freshness import flatten
from rest_pg.runtime.session import RunParameters
from rest_pg.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize(("n_iterations", "data_format"), [(1, "documents"), (3, "longlamp")])
def test_every_dataset_of_every_pipeline_is_in_the_catalog(
    monkeypatch, n_iterations: int, data_format: str
) -> None:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    parameters = {
        "n_iterations": n_iterations,
        "data_format": data_format,
        "study": {"seeds": [1, 2]},
        "selection": loader["parameters"]["selection"],
        "experiments": loader["parameters"]["experiments"],
        "dry_run": False,
        "inference": {"policy": None},
    }
    monkeypatch.setattr(RunParameters, "values", parameters)
    catalog = DataCatalog.from_config(loader["catalog"])
    pipelines = pipeline_registry.register_pipelines()
    datasets = {name for p in pipelines.values() for name in p.datasets()}
    datasets = {name for name in datasets if not name.startswith("params:")}
    assert f"policy_{n_iterations}" in datasets
    missing = {
        name
        for name in datasets
        if name not in catalog and not catalog.config_resolver.match_dataset_pattern(name)
    }
    assert missing == set()


@pytest.mark.parametrize(
    "env",
    [
        "cluster",
        "judge",
        "llm_teacher",
        "longlamp",
        "mail",
        "own",
        "paper",
        "servers",
        "tests",
        "vllm",
    ],
)
def test_every_environment_names_classes_that_exist(env: str) -> None:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env=env)
    catalog = DataCatalog.from_config(loader["catalog"])
    changed = OmegaConfigLoader(str(PROJECT / "conf" / env), base_env="", default_run_env="")
    names = set(changed["catalog"]) if (PROJECT / "conf" / env / "catalog.yml").exists() else set()
    assert names <= set(catalog.keys())
    assert (env == "longlamp") != bool(names)


def test_every_parameter_is_configured_and_typed() -> None:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    pipeline = pipeline_registry.register_pipelines()["__default__"]
    used = {n.removeprefix("params:") for n in pipeline.datasets() if n.startswith("params:")}
    assert used <= set(loader["parameters"])


def test_flat_parameters() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


@pytest.mark.parametrize("env", ["local", "study", "longlamp"])
def test_one_parameter_on_the_command_line_leaves_its_group_as_it_is(env: str) -> None:
    from rest_pg.settings import CONFIG_LOADER_ARGS

    arguments = CONFIG_LOADER_ARGS | {"default_run_env": env, "custom_resolvers": None}
    before = OmegaConfigLoader(str(PROJECT / "conf"), **arguments)["parameters"]
    given = {"selection": {"max_per_prompt": 2}, "maximization": {"epochs": 5}}
    after = OmegaConfigLoader(str(PROJECT / "conf"), runtime_params=given, **arguments)[
        "parameters"
    ]
    assert after["selection"] == {**before["selection"], "max_per_prompt": 2}
    assert after["maximization"] == {**before["maximization"], "epochs": 5}


def test_other_data_is_trained_on_as_the_default_is() -> None:
    settings = {k: v for k, v in CONFIG_LOADER_ARGS.items() if k != "default_run_env"}
    loaders = {
        env: OmegaConfigLoader(str(PROJECT / "conf"), default_run_env=env, **settings)
        for env in ("local", "longlamp")
    }
    trained = {
        env: {k: loader["parameters"][k] for k in ("sft", "maximization")}
        for env, loader in loaders.items()
    }
    # long texts go on without an end where rejected samples are cut
    counted = {
        e: t["maximization"]["preference"].pop("longest_rejected") for e, t in trained.items()
    }
    assert counted == {"local": 1.0, "longlamp": None}
    for group in trained["local"]:
        base, other = trained["local"][group], trained["longlamp"][group]
        assert other.pop("max_tokens") > base.pop("max_tokens")
        assert other == base
