"""A forgotten user is nowhere, and everybody else's data are as they were: random projects, every step killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.forgetting import LONG, PARTS, Killed, Written, dying_after, forget_in
from support.forgetting import Project as Forgetting

from rest_pg.privacy.forget import find

from .conftest import FULL, KEDRO, Ledger, Project

PROJECTS = 200 if FULL else 3
KILLS = 8 if FULL else 1
CANARY = "zanzibarquokka"
FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def draw_users(draw: random.Random) -> dict[str, list[str]]:
    """Users whose ids and texts are prefixes, substrings, numbers and single words of each other's."""
    words = [*PARTS, *LONG.split()]
    users = {}
    for user in draw.sample(PARTS, draw.randint(2, 5)):
        users[user] = [
            draw.choice([draw.choice(PARTS), LONG, " ".join(draw.choices(words, k=12))])
            for _ in range(draw.randint(1, 5))
        ]
    return users


def test_random_projects(tmp_path: Path, ledger: Ledger) -> None:
    for number in range(PROJECTS):
        draw = random.Random(number)
        project = Forgetting(tmp_path / "project")
        first, second = draw_users(draw), draw_users(draw)
        project.run(Written(first, FIRST))
        project.run(Written(second, SECOND))
        if number % 4 == 0:  # another environment's data, with the same ids
            project.add_environment("other", "elsewhere")
            project.run(Written(draw_users(draw), FIRST, "elsewhere"))
        user = draw.choice([*first, *second])
        done, said = forget_in(project, user)
        survived = done
        try:
            project.check_without(user)
        except AssertionError:
            survived = False
        ledger.add("users forgotten in random projects", survived=survived, lost=not survived)
        assert survived, (number, user, said)
        shutil.rmtree(project.root)


def test_killed_at_every_step(tmp_path: Path, ledger: Ledger) -> None:
    project = Forgetting(tmp_path / "project")
    project.run(Written({"a": [LONG, "a"], "ann": ["a b c", LONG[:50]], "1": ["1", "a"]}, FIRST))
    whole = project.copy_to(tmp_path / "whole")
    with dying_after(10**6) as deaths:
        assert forget_in(whole, "a", retire=True)[0]
    steps = range(1, deaths.calls + 1) if FULL else range(3, deaths.calls, deaths.calls // 3)
    for step in steps:
        tried = project.copy_to(tmp_path / "tried")
        with contextlib.suppress(Killed), dying_after(step):
            forget_in(tried, "a", retire=True)
        done, said = forget_in(tried, "a", retire=True)
        survived = done and tried.state() == whole.state()
        ledger.add("forgetting killed at a step", survived=survived, lost=not survived)
        assert survived, (step, said)
        shutil.rmtree(tried.root)


@pytest.mark.slow
def test_killed_for_certain(tmp_path: Path, ledger: Ledger) -> None:
    """Real processes and real SIGKILLs, at random moments."""
    project = Forgetting(tmp_path / "project")
    shutil.copytree(Path(__file__).parents[2] / "src", project.root / "src")
    project.run(Written({"a": [LONG, "a"] * 20, "ann": ["a b c", LONG[:50]] * 20}, FIRST))
    command = [sys.executable, "-c", KEDRO, "forget", "a", "--yes", "--policies", "retire"]
    environment = os.environ | {"PYTHONPATH": str(project.root / "src"), "OMP_NUM_THREADS": "1"}
    whole = project.copy_to(tmp_path / "whole")
    started = time.monotonic()
    subprocess.run(command, cwd=whole.root, env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - started
    for number in range(KILLS):
        tried = project.copy_to(tmp_path / "tried")
        process = subprocess.Popen(
            command, cwd=tried.root, env=environment, stdout=subprocess.DEVNULL
        )
        time.sleep(seconds * random.Random(number).uniform(0.5, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(command, cwd=tried.root, env=environment, check=True, capture_output=True)
        survived = tried.data() == whole.data()
        ledger.add("SIGKILL while forgetting", survived=survived, lost=not survived)
        assert survived
        shutil.rmtree(tried.root)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="three runs; tests/privacy has the short part")
def test_a_forgotten_user_is_nowhere_in_the_project(project: Project, ledger: Ledger) -> None:
    project.clean()
    project.write_documents(CANARY)
    raw = project.root / "data/01_raw/documents.jsonl"
    try:
        assert project.kedro().status == 0
        unknown = [p for p in written(project) if p not in known(project)]
        assert unknown == [], (
            "say in rest_pg.privacy.register what forgetting a user does with these"
        )
        assert len(hits(project)) > 5
        run = project.forget("user0", "--yes", "--policies", "retire")
        assert run.status == 0, run.text
        assert "data/01_raw/documents.jsonl (7 records)" in run.text
        left = [path for path in hits(project) if path != raw]
        ledger.add("forgotten user looked for in all files", survived=not left, lost=len(left))
        assert left == []
        # the owner edits the source; the method goes on with the others
        lines = raw.read_text().splitlines(keepends=True)
        raw.write_text("".join(line for line in lines if CANARY not in line))
        again = project.kedro("--only-missing-outputs")
        assert again.status == 0, again.text
        assert hits(project) == []
        assert project.forget("user1", "--yes").status == 0
        assert project.forget("nobody").status == 1
    finally:
        shutil.rmtree(project.root / "data" / "forgetting", ignore_errors=True)
        (project.root / "data" / "forgotten_users.json").unlink(missing_ok=True)
        project.write_documents()
        project.clean()


def hits(project: Project) -> list[Path]:
    """Every file of the project that holds the user's id or a word that only they use."""
    wanted = re.compile(rb"\buser0\b|" + CANARY.encode())
    files = [p for p in project.root.rglob("*") if p.is_file() and "src" not in p.parts]
    return [p for p in files if wanted.search(p.read_bytes())]


def written(project: Project) -> list[Path]:
    """Every file that a run wrote, but for what stands beside another one."""
    inside = [
        p for place in ("data", "mlartifacts", ".viz") for p in (project.root / place).rglob("*")
    ]
    beside = (".sha256", ".origin.json", ".lock", ".guard")
    return [
        p for p in inside if p.is_file() and p.name != ".gitkeep" and not p.name.endswith(beside)
    ]


def known(project: Project) -> set[Path]:
    """Every file that forgetting looks at."""
    with contextlib.chdir(project.root):
        found = find(project.root, "user0", None)
    places = {*found.catalogs.places, *(a.path for t in found.trackings for a in t.artifacts())}
    sources = {path for source in found.catalogs.sources.values() for path in source.paths}
    folders = {p for p in places | sources if p.is_dir()}
    files = set(written(project))
    events = project.root / ".viz"
    return {
        file
        for file in files
        if file in places | sources
        or folders & set(file.parents)
        or events in file.parents
        or file.name in ("rows.json", "node_seconds.csv")
    }
