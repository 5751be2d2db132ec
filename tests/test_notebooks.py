import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from trust.conftest import Project

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def run(path: Path) -> str:
    """Run a notebook where it lies; return what it printed and showed."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


@pytest.mark.slow
def test_one_example_runs() -> None:
    printed = run(NOTEBOOKS / "one_example.ipynb")
    assert "often used:" in printed
    assert "tokens_per_second" in printed


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project after two runs that differ in their seed."""
    project = Project(tmp_path_factory.mktemp("notebooks") / "project")
    for seed in (7, 8):
        done = project.kedro("--params", f"seed={seed}")
        assert done.status == 0, done.text
    shutil.copytree(NOTEBOOKS, project.root / "notebooks")
    return project


@pytest.mark.slow
def test_one_iteration_runs(two_runs: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDRO_ENV", "trust")
    printed = run(two_runs.root / "notebooks" / "one_iteration.ipynb")
    assert "best over mean reward of a prompt" in printed
    assert re.search(r"user\d was asked: Write", printed)
    assert "train_reward_kept_mean" in printed


@pytest.mark.slow
def test_two_runs_are_compared(two_runs: Project) -> None:
    printed = run(two_runs.root / "notebooks" / "compare_runs.ipynb")
    # newest first
    assert re.search(r"^seed +8 +7$", printed, re.MULTILINE)
    assert re.search(r"^reward_minus_sft base .*\n +iteration_1 +-?\d", printed, re.MULTILINE)
    assert re.search(r"\d+ examples in both runs, 0 answered alike", printed)
