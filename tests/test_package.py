"""The wheel that ``kedro package`` builds, installed without this repository's sources."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from trust.conftest import Project

PROJECT = Path(__file__).parents[1]


def call(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build as ``kedro package`` does, but with the build tools at hand: no index is asked."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("*.pyc", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    call(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--wheel-dir", source / "dist", source),
        cwd=source,
    )
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = PROJECT / "src"
    expected = {
        str(path.relative_to(package))
        for path in (package / "rest_pg").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_installed_wheel_runs_where_conf_is(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    call(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"),
        *("--quiet", wheel),
        cwd=tmp_path,
    )
    # the dependencies are those of the environment at hand; its own rest_pg isn't seen
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = call(python, "-c", "import rest_pg; print(rest_pg.__file__)", cwd=tmp_path)
    assert where.startswith(str(packages))
    project = Project(tmp_path / "project")
    shutil.rmtree(project.root / "src")
    (project.root / "pyproject.toml").unlink()
    log = call(environment / "bin" / "rest-pg", "--env", "trust", cwd=project.root)
    assert "held-out test users" in log
    assert (project.root / "data" / "08_reporting" / "report.html").stat().st_size > 1e6
    again = call(
        *(environment / "bin" / "rest-pg", "--env", "trust", "--pipelines", "data_ingestion"),
        cwd=project.root,
    )
    assert "create_examples took" in again
