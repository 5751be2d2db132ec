"""Every command in the documentation names what exists; the page of parameters has all of them."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import mlflow.cli
import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.cli.project import project_group

from rest_pg import config, pipeline_registry
from rest_pg.cli import cli
from rest_pg.freshness import flatten
from rest_pg.runtime.session import RunParameters

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
CONFIGURATION = "\n".join(p.read_text() for p in (PROJECT / "conf").rglob("*.yml"))


def commands(name: str) -> set[tuple[str, str]]:
    """Return (page, command) for each command of this name, in blocks and in running text."""
    found = set()
    for page in PAGES:
        if page.name == "experiments.md":  # what was run then, as it was then
            continue
        text = page.read_text().replace("\\\n", "")
        for match in re.finditer(rf"(?:^|`)({name} [^`\n]*)", text, re.MULTILINE):
            found.add((page.name, re.split(r"  +#|\s#", match[1])[0].strip()))
    return found


@pytest.mark.parametrize(
    ("page", "command"), sorted(commands("kedro run") | commands("kedro doctor"))
)
def test_a_command_names_what_exists(page: str, command: str, monkeypatch) -> None:
    words = [w for w in shlex.split(command.replace("…", "x")) if w not in ("|",)]
    options = dict(zip(words, [*words[1:], ""], strict=True))
    env = options.get("--env", "local")
    assert (PROJECT / "conf" / env).is_dir(), env
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env=env)
    parameters = dict(loader["parameters"])
    monkeypatch.setattr(RunParameters, "values", parameters | {"dry_run": False})
    known = pipeline_registry.register_pipelines()
    for pipeline in filter(None, options.get("--pipelines", "").split(",")):
        assert pipeline in known, pipeline
    names = set(flatten(parameters))
    for given in filter(None, options.get("--params", "").split(",")):
        name = given.partition("=")[0]
        assert name in names or f"runtime_params:{name}" in CONFIGURATION, name


@pytest.mark.parametrize(
    ("page", "command"), sorted(commands("MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow"))
)
def test_a_command_of_mlflows_is_one(page: str, command: str) -> None:
    words = shlex.split(command)[2:]
    found = mlflow.cli.cli
    while isinstance(found, click.Group):
        name = words.pop(0)
        assert name in found.commands, name
        found = found.commands[name]
    found.make_context(found.name, words)  # a wrong option or value raises


@pytest.mark.parametrize(
    ("page", "command"),
    sorted(c for c in commands("kedro") if c[1].split()[1] not in ("run", "doctor")),
)
def test_another_command_of_kedros_is_one(page: str, command: str) -> None:
    _, name, *words = shlex.split(command)
    found = cli.commands.get(name) or project_group.commands[name]
    found.make_context(name, words)


@pytest.mark.parametrize(("page", "command"), sorted(commands("python")))
def test_a_script_exists(page: str, command: str) -> None:
    script, *rest = command.split()[1:]
    if script == "-m":
        assert importlib.util.find_spec(rest[0]), command
    else:
        assert (PROJECT / script).is_file(), command


@pytest.mark.parametrize(("page", "command"), sorted(commands("make")))
def test_a_make_target_exists(page: str, command: str) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


def test_commands_are_found() -> None:
    assert len(commands("kedro run")) > 20
    assert len(commands("make")) > 5
    assert commands("MLFLOW_TRACKING_URI=sqlite:///mlflow.db python")


def test_the_page_of_parameters_has_every_one() -> None:
    place = PROJECT / "docs" / "parameters_hook.py"
    spec = importlib.util.spec_from_file_location("parameters_hook", place)
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = hook.on_page_markdown("{{ parameters }}")
    for model in vars(config).values():
        if (
            isinstance(model, type)
            and issubclass(model, config.Params)
            and model is not config.Params
        ):
            own = page.split(f"## {model.__name__}\n")[1].split("\n## ")[0]
            for name in model.__annotations__:
                assert f"| `{name}` |" in own, (model, name)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./]+\.md)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
