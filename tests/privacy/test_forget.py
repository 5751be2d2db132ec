import contextlib
from pathlib import Path

import pytest
from support.forgetting import Project, Written

from rest_pg.privacy.forget import forget

ANN = [
    "The harbour lies behind seven green hills and a wall.",
    "Ships.",
    "1",
    "ann goes home today",
]
BOB = ["We planted an orchard of old apple trees last spring.", "Ships and ann", "12", "line-1"]
ANNA = ["Anna keeps bees in the garden of the town hall.", "Ship", "11", "true"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.run(Written({"ann": ANN, "bob": BOB, "anna": ANNA}, "2026-01-01T00.00.00.000Z"))
    return made


def run(
    project: Project, user: str, *, yes: bool = True, retire: bool = False, env: str | None = None
):
    said: list[str] = []
    with contextlib.chdir(project.root):
        done = forget(project.root, user, env, yes=yes, retire=retire, say=said.append)
    return done, "\n".join(said)


def test_what_is_a_users_goes_and_what_is_anothers_stays_byte_for_byte(project: Project) -> None:
    done, said = run(project, "ann")
    assert done, said
    project.check_without("ann")


def test_dry(project: Project) -> None:
    before = project.state()
    done, said = run(project, "ann", yes=False)
    print(said)
    assert done
    assert project.state() == before
