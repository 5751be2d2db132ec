import contextlib
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from support.forgetting import (
    Killed,
    Project,
    Written,
    dying_after,
    forget_in,
    projects,
    write_lines,
)

from rest_pg.privacy.forgotten import ForgottenUsers
from rest_pg.privacy.journal import DIRECTORY

ANN = [
    "The harbour lies behind seven green hills and a wall.",
    "Ships.",
    "1",
    "ann goes home today",
]
BOB = ["We planted an orchard of old apple trees last spring.", "Ships and ann", "12", "line-1"]
ANNA = ["Anna keeps bees in the garden of the town hall.", "Ship", "11", "true"]
FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.run(Written({"ann": ANN, "bob": BOB, "anna": ANNA}, FIRST))
    return made


def test_what_is_a_users_goes_and_what_is_anothers_stays_byte_for_byte(project: Project) -> None:
    done, said = forget_in(project, "ann")
    assert done, said
    project.check_without("ann")
    assert "ann" in ForgottenUsers(filepath=str(project.root / "data/forgotten_users.json"))


def test_without_yes_a_table_is_printed_and_nothing_changes(project: Project) -> None:
    before = project.state()
    done, said = forget_in(project, "ann", yes=False)
    assert done
    assert project.state() == before
    assert not (project.root / DIRECTORY).exists()
    assert (
        f"4 rows    data/02_intermediate/documents.jsonl/{FIRST}/documents.jsonl"
        in said.replace("rows     ", "rows    ")
    )
    assert f"06_models/policy_0/{FIRST}/policy_0: stays: --policies retire deletes it" in said


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(projects())
def test_random_projects_of_ids_and_texts_that_hold_each_other(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[dict[str, list[str]], str]
) -> None:
    users, forgotten = drawn
    project = Project(tmp_path_factory.mktemp("random") / "project")
    project.run(Written(users, FIRST))
    done, said = forget_in(project, forgotten)
    assert done, said
    project.check_without(forgotten)


@pytest.mark.parametrize(
    "user", ["0010", "1e3", "true", "Smith, John", "O'Brien", "名前", "-x", "a/b", "[a-z]*", "José"]
)
def test_ids_are_compared_as_they_are_typed(tmp_path: Path, user: str) -> None:
    others = {
        "10": BOB,
        "1000.0": ["True"],
        "Smith": ["John"],
        "O": ["Brien"],
        "x": ["-x"],
        "a": ["b"],
    }
    project = Project(tmp_path / "project")
    project.run(Written({user: ANN, **others}, FIRST))
    done, said = forget_in(project, unicodedata.normalize("NFD", user))
    assert done, said
    project.check_without(user)


@pytest.mark.parametrize("user", ["an", "Ann", "ann ann", "line-1", "Ships.", "harbour"])
def test_who_is_no_user_is_refused_and_nothing_changes(project: Project, user: str) -> None:
    before = project.state()
    done, said = forget_in(project, user)
    assert not done
    assert "is no user of these data" in said
    assert "The data have 3 users (ann" in said
    assert project.state() == before


def test_nobody_is_refused(project: Project) -> None:
    with pytest.raises(ValueError, match="no user is named"):
        forget_in(project, " ")


def test_equal_ids_of_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    """``line-1`` stands in every file: in another environment, and in an earlier version."""
    project = Project(tmp_path / "project")
    project.add_environment("other", "elsewhere")
    project.run(Written({"bob": BOB, "ann": ANN}, FIRST))
    project.run(Written({"ann": ANN, "bob": BOB}, SECOND))
    project.run(Written({"bob": BOB, "anna": ANNA, "ann": ANN}, FIRST, "elsewhere"))
    done, said = forget_in(project, "ann", env="other")
    assert done, said
    for path, rows in project.rows.items():
        assert ("elsewhere" in str(path)) == (path.read_bytes() != b"".join(r for r, _ in rows))
    done, said = forget_in(project, "ann")
    assert done, said
    project.check_without("ann")


def test_without_provenance_files_of_one_version_belong_together(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.run(Written({"bob": BOB, "ann": ANN}, FIRST))
    project.run(Written({"ann": ANN, "bob": BOB}, SECOND))
    for path in project.root.rglob("*.origin.json"):
        path.unlink()
    project.origins.clear()
    project.pages = {path: set() for path in project.pages if "ann" not in project.pages[path]}
    done, said = forget_in(project, "ann")
    assert done, said
    project.check_without("ann")


def test_what_cannot_be_told_apart_is_listed_and_stays(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.run(Written({"bob": BOB, "ann": ANN}, FIRST))
    project.run(Written({"ann": ANN, "bob": BOB}, SECOND))
    shard = project.root / "data/07_model_output/shards/0123/00000.jsonl"
    write_lines(shard, {"example_id": "line-1", "sample_index": 0, "text": "hm"})
    before = shard.read_bytes()
    done, said = forget_in(project, "ann")
    assert done
    assert shard.read_bytes() == before
    assert "shards/0123/00000.jsonl: 1 rows whose ids (line-1, …) may be another user's" in said
    project.check_without("ann")


def test_work_in_progress_loses_the_users_rows_alone(project: Project) -> None:
    shard = project.root / "data/07_model_output/shards/0123/00000.jsonl"
    rows = [{"example_id": f"line-{n}", "sample_index": 0, "text": "hm"} for n in (1, 5, 9)]
    write_lines(shard, *rows)
    assert forget_in(project, "ann")[0]
    assert [json.loads(line)["example_id"] for line in shard.read_text().splitlines()] == [
        "line-5",
        "line-9",
    ]


def test_a_users_profile_in_anothers_example_goes_with_all_that_was_made_of_it(
    project: Project,
) -> None:
    made = project.shuffle(FIRST, of="bob", profile_of="ann")
    before = {path: path.read_bytes() for path in made}
    assert forget_in(project, "anna")[0]
    assert {path: path.read_bytes() for path in made} == before
    assert forget_in(project, "ann")[0]
    for path in made:
        assert b'"example_id": "line-5"' not in path.read_bytes(), path
        assert b'"example_id": "line-6"' in path.read_bytes(), path
    project.check_without("ann", "anna")


def test_policies_are_listed_by_provenance_and_retired_on_demand(project: Project) -> None:
    other = Written({"bob": BOB}, SECOND)
    project.run(other)
    unknown = project.policy_without_provenance("data", "policy_1", "2025-01-01T00.00.00.000Z")
    policies = dict(project.policies)
    done, said = forget_in(project, "ann")
    assert done
    assert all(path.is_dir() for path in policies)
    assert "policy_1: may be; its provenance doesn't say" in said
    # rows are gone by now: the receipt knows
    done, said = forget_in(project, "ann", retire=True)
    assert done, said
    gone = [path for path, users in policies.items() if "ann" in users]
    assert len(gone) == 1
    assert [path for path in policies if not path.exists()] == gone
    assert not gone[0].parent.exists()
    assert unknown.exists()


def test_a_receipt_names_nobody(project: Project) -> None:
    assert forget_in(project, "ann")[0]
    (receipt,) = (project.root / DIRECTORY).iterdir()
    content = receipt.read_text()
    assert receipt.stat().st_mode & 0o777 == 0o600
    assert json.loads(content)["kind"] == "receipt"
    for word in ("ann", "line-", "harbour", "Ships"):
        assert word not in content
    assert forget_in(project, "ann")[0]


def test_a_journal_is_private_and_holds_no_text(project: Project) -> None:
    with pytest.raises(Killed), dying_after(12):
        forget_in(project, "ann")
    (journal,) = (project.root / DIRECTORY).glob("*.json")
    assert journal.stat().st_mode & 0o777 == 0o600
    content = journal.read_text()
    assert '"line-1"' in content
    for word in ("harbour", "Ships", "goes home"):
        assert word not in content


def test_killed_at_any_step_it_is_run_again_to_the_same_end(
    project: Project, tmp_path: Path
) -> None:
    whole = project.copy_to(tmp_path / "whole")
    with dying_after(10**6) as deaths:
        assert forget_in(whole, "ann")[0]
    expected = whole.state()
    for step in range(1, deaths.calls, max(1, deaths.calls // 10)):
        tried = project.copy_to(tmp_path / f"killed-{step}")
        with contextlib.suppress(Killed), dying_after(step):
            forget_in(tried, "ann")
        done, said = forget_in(tried, "ann")
        assert done, (step, said)
        assert tried.state() == expected, step
        shutil.rmtree(tried.root)
