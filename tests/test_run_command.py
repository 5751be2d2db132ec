"""``kedro run`` as a person types it: from a subfolder, with an error, and with the line that resumes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trust.conftest import Project

KEDRO = 'kedro() {{ "{python}" -m kedro "$@"; }}; {command}'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("run") / "project")


def bash(project: Project, command: str) -> tuple[int, str]:
    """Type a command in the project's ``notebooks``."""
    done = subprocess.run(
        ["bash", "-c", KEDRO.format(python=sys.executable, command=command)],
        cwd=project.root / "notebooks",
        env=os.environ | {"PYTHONPATH": str(project.root / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_failed_run_tells_its_error_once_and_its_line_resumes_it(project: Project) -> None:
    (project.root / "notebooks").mkdir()
    raw = project.root / "data" / "01_raw" / "it's raw.jsonl"
    lines = (project.root / "data" / "01_raw" / "documents.jsonl").read_text()
    raw.write_text(lines + '{"user": 3}\n')
    catalog = project.root / "conf" / "trust" / "catalog.yml"
    catalog.write_text(
        catalog.read_text().replace(
            "data/01_raw/documents.jsonl",
            '"${runtime_params:documents, data/01_raw/documents.jsonl}"',
        )
    )
    typed = (
        "kedro run --env trust --pipelines data_ingestion --to-nodes create_examples "
        '--params "documents=data/01_raw/it\'s raw.jsonl,sft.lora=null"'
    )
    status, text = bash(project, typed)
    assert status == 1
    *_, resumed, error = text.splitlines()
    assert "1 of 71 records can't be used" in error
    assert text.count("1 of 71 records") == 1
    assert "Traceback" not in text
    assert "persisted inputs" not in text
    assert resumed.strip().startswith("kedro run --only-missing-outputs --env trust")
    assert "--to-nodes create_examples" in resumed
    assert not list((project.root / "notebooks").iterdir())
    assert (project.root / "mlflow.db").exists()

    raw.write_text(lines)
    status, again = bash(project, resumed.strip())
    assert status == 0, again
    ids = {re.search(r"mlflow_run_id=(\w+)", log)[1] for log in (text, again)}
    assert len(ids) == 1
    assert "create_examples took" in again
    assert not list((project.root / "notebooks").iterdir())


@pytest.mark.slow
def test_the_log_for_machines_tells_an_error_once_too(project: Project) -> None:
    (project.root / "notebooks").mkdir(exist_ok=True)
    weights = project.root / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    status, text = bash(project, "kedro run --env trust --params log=json")
    weights.write_bytes(whole)
    assert status == 1
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert lines[-1]["level"] == "ERROR"
    assert "base_policy.source: the model" in lines[-1]["message"]
    assert "cut or damaged" in lines[-1]["message"]
    assert text.count("cut or damaged") == 1
    assert "took" not in text  # refused before any work


@pytest.mark.slow
def test_a_parameter_that_does_not_exist_ends_a_run_before_anything_is_made(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    (project.root / "notebooks").mkdir()
    status, text = bash(project, "kedro run --env trust --params n_iteration=3")
    assert status == 1
    assert "n_iteration (--params): did you mean n_iterations?" in text.splitlines()[-1]
    assert not (project.root / "mlflow.db").exists()
    assert bash(project, "kedro run --env trust --params seed=010")[0] == 2
