"""``kedro forget`` from the command line: the id as it was typed, options, exit statuses, subfolders."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from support.forgetting import Project, Written

from rest_pg.cli import cli

VERSION = "2026-01-01T00.00.00.000Z"
USERS = {"0010": ["a b", "c"], "10": ["d"], "-x": ["e"], "true": ["f"], "O'Brien": ["g"]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "project")
    made.run(Written(USERS, VERSION))
    monkeypatch.chdir(made.root)
    return made


@pytest.mark.parametrize("user", ["0010", "-x", "true", "O'Brien"])
def test_an_id_is_taken_as_it_is_typed(project: Project, user: str) -> None:
    ended = CliRunner().invoke(cli, ["forget", "--yes", "--", user])
    assert ended.exit_code == 0, ended.output
    project.check_without(user)


def test_a_subfolder_is_as_good_as_the_project(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / "notebooks").mkdir()
    monkeypatch.chdir(project.root / "notebooks")
    ended = CliRunner().invoke(cli, ["forget", "10", "--yes", "--policies", "retire"])
    assert ended.exit_code == 0, ended.output
    project.policies = {path: u for path, u in project.policies.items() if "10" not in u}
    project.check_without("10")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["forget"], 2, "Missing argument 'USER'"),
        (["forget", ""], 1, "no user is named"),
        (["forget", "1"], 1, "'1' is no user of these data"),
        (["forget", "10", "--env", "nowhere"], 1, "there is no conf/nowhere; there are base"),
        (["forget", "10", "--policies", "all"], 2, "'all' is not 'retire'"),
    ],
)
def test_what_cannot_be_done_is_told(
    project: Project, arguments: list[str], status: int, said: str
) -> None:
    before = project.state()
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == status
    assert said in ended.output
    assert project.state() == before
