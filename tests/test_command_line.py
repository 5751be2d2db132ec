"""What ``--params`` makes of words, and the command that resumes a run, pasted into bash and read by Kedro."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.framework.cli.project import run as kedro_run

from rest_pg import cli
from rest_pg.runtime.command_line import read_params, resume_command
from rest_pg.runtime.known_parameters import text_names

CONF = Path(__file__).parents[1] / "conf"
TEXTS = text_names(CONF)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("documents=2024", {"documents": "2024"}),
        ("documents=0123", {"documents": "0123"}),
        ("documents=1e3", {"documents": "1e3"}),
        ("documents=No", {"documents": "No"}),
        ("documents=12:30", {"documents": "12:30"}),
        ("documents=1_000", {"documents": "1_000"}),
        ("documents=null", {"documents": "null"}),
        ("documents=my #2 file.jsonl", {"documents": "my #2 file.jsonl"}),
        ("documents=a: b.jsonl", {"documents": "a: b.jsonl"}),
        ("documents=@x", {"documents": "@x"}),
        ("documents=[a].jsonl", {"documents": "[a].jsonl"}),
        ("documents=a=b.csv", {"documents": "a=b.csv"}),
        ("documents='2024'", {"documents": "2024"}),
        (r'documents="Smith\x2c John"', {"documents": "Smith, John"}),
        ("mail=007,longlamp_name=null", {"mail": "007", "longlamp_name": None}),
        ("base_policy.source=7", {"base_policy": {"source": "7"}}),
        ("ship.language=no,ship.traces=no", {"ship": {"language": "no", "traces": False}}),
        ("mlflow_run_id=12e3", {"mlflow_run_id": "12e3"}),
        ("policy=null,seed=8", {"policy": None, "seed": 8}),
        ("sft.lora=null,sft.epochs=3", {"sft": {"lora": None, "epochs": 3}}),
        ("study.seeds=[7]", {"study": {"seeds": [7]}}),
        ("dry_run=yes,sft.learning_rate=1e-3", {"dry_run": True, "sft": {"learning_rate": 1e-3}}),
        (" seed = 8 , log = json ", {"seed": 8, "log": "json"}),
        ("", {}),
    ],
)
def test_paths_and_names_are_read_as_they_were_typed(typed: str, read: dict[str, Any]) -> None:
    assert read_params(typed, TEXTS) == read


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("seed=010", "is read as 8 "),
        ("seed=12:30", "is read as 750 "),
        ("seed", "`seed` is not key=value"),
        ("=3", "is not key=value"),
        ("documents=Smith, John.jsonl", r"` ?John.jsonl` is not key=value.*\\x2c"),
        ("seed=@x", "is no YAML .*quotes"),
    ],
)
def test_what_is_not_read_as_it_looks_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_params(typed, TEXTS)


def pasted(command: str, directory: Path) -> list[str]:
    """Paste a command into bash, where kedro writes down its words; return them."""
    stub = directory / "kedro"
    stub.write_text("#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    (words,) = done.stdout.splitlines()
    return json.loads(words)


def options(command: click.Command, words: list[str]) -> dict[str, Any]:
    assert words[0] == "run"
    return command.make_context("run", words[1:]).params


def test_the_command_that_resumes_a_run_gives_every_option_back(tmp_path) -> None:
    values = {
        "documents": "Smith, John's #2 (new).jsonl",
        "sft": {"epochs": 3, "lora": None, "optimizer": "adafactor"},
        "base_policy": {"source": 'models/$HOME `x` "y"'},
        "study": {"seeds": [7, 8]},
        "prompt": {"system": "Two\nlines\tand \\ it's"},
        "response_format": {"lead_in": "0123", "bridge": " "},
        "evaluation": {"splits": ["test"], "confidence": 1e-05},
        "dry_run": False,
        "policy": None,
        "experiments": {"budgets": [], "shares": [0.5, 1.0]},
    }
    given = {
        "env": "my own",
        "tags": ("a b", "c"),
        "from_nodes": ["sft.finetune"],
        "to_nodes": ["iteration_1.maximize"],
        "node_names": ("n", "o"),
        "from_inputs": ["params:seed"],
        "to_outputs": ["policy_1"],
        "namespaces": ["iteration_1"],
        "load_versions": {"documents": "2026-01-01T00.00.00.000Z"},
        "pipeline_names": ["sft"],
        "runner": "<kedro.runner.thread_runner.ThreadRunner object at 0x7f00>",
        "runtime_params": values,
    }
    conf = tmp_path / "other conf"
    conf.mkdir()
    command, left = resume_command(
        given, run_id="12e3", conf_source=str(conf), runner_params={"max_workers": 2}
    )
    assert left == []
    assert "\n" not in command
    words = pasted(command, tmp_path)
    for read in (kedro_run, cli.run):
        found = options(read, words)
        assert found["params"] == values | {"mlflow_run_id": "12e3"}
        assert found["only_missing_outputs"]
        assert found["runner_params"] == {"max_workers": 2}
        assert found["conf_source"] == str(conf)
        assert found["runner"] == "ThreadRunner"
        assert found["pipelines"] == ["sft"]
        for name in ("env", "load_versions"):
            assert found[name] == given[name]
        for name in (
            *("tags", "from_nodes", "to_nodes", "node_names", "from_inputs", "to_outputs"),
            "namespaces",
        ):
            assert list(found[name]) == list(given[name]), name


def test_a_command_for_elsewhere_goes_to_the_project_first(tmp_path) -> None:
    project = tmp_path / "my project"
    project.mkdir()
    (project / "pyproject.toml").write_text("[tool.kedro]\n")
    (project / "notebooks").mkdir()
    given = {"project_path": str(project), "runner": "SequentialRunner"}
    inside, _ = resume_command(given, directory=project / "notebooks")
    outside, _ = resume_command(given, directory=tmp_path)
    assert inside == "kedro run --only-missing-outputs"
    assert outside == f"cd '{project}' && {inside}"


def test_what_params_cant_carry_is_said() -> None:
    command, left = resume_command({"runtime_params": {"x": [[1, 2], [3, 4]], "seed": 8}})
    assert command == "kedro run --only-missing-outputs --params seed=8"
    assert left == ["x: [[1, 2], [3, 4]]"]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
    st.sampled_from(
        ["0123", "1e3", "No", "12:30", "1_000", "~", "a, b", "a: b", "#", "'", '"', "\\"]
    ),
)
KEYS = st.sampled_from(["seed", "documents", "sft", "ship", "plan", "other"])
VALUES = st.recursive(
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_value_is_given_back_or_named(values: dict[str, Any]) -> None:
    import shlex

    command, left = resume_command({"runtime_params": values})
    if "$'" in command:  # bash's own quoting, which the test above reads
        return
    words = shlex.split(command)
    typed = words[words.index("--params") + 1] if "--params" in words else ""
    assert read_params(typed, {}) == without(values, left)


def without(values: dict[str, Any], left: list[str]) -> dict[str, Any]:
    """Values but for those that were named."""
    named = {line.partition(":")[0] for line in left}

    def keep(inner: dict[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in inner.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                below = keep(value, f"{name}.")
                if below:
                    kept[key] = below
            elif name not in named:
                kept[key] = value
        return kept

    return keep(values, "")
