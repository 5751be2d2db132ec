"""One writer per folder, whatever its owner's end; every foreign owner is written by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rest_pg.storage import lock
from rest_pg.storage.lock import FolderInUse, FolderLock, FolderLost, Holder
from rest_pg.storage.owner import Owner, this_process

HOLD = """
import sys, time
from pathlib import Path
from rest_pg.storage.lock import FolderLock
FolderLock(Path(sys.argv[1]), "run").acquire()
print("held", flush=True)
{then}
"""


@contextmanager
def holder(directory: Path, then: str = "time.sleep(60)") -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write(directory: Path, owner: Owner, age: float = 0.0) -> Path:
    """A lock of another machine's or container's process, renewed some seconds ago."""
    file = directory / lock.NAME
    file.write_text(Holder(owner, "kedro run --env mail", "2026-01-02 03:04:05 UTC", "t").to_json())
    renewed = time.time() - age
    os.utime(file, (renewed, renewed))
    return file


ELSEWHERE = Owner("node7", "0000", "4026531999", 1, "55")


def test_a_folder_is_held_by_one_process_and_free_afterwards(tmp_path: Path) -> None:
    with holder(tmp_path / "data") as process:
        with pytest.raises(FolderInUse) as refused:
            FolderLock(tmp_path / "data", "run").acquire()
        for said in (
            str(process.pid),
            this_process().host,
            str(tmp_path / "data"),
            "since 20",
            "worktree",
        ):
            assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    with FolderLock(tmp_path / "data", "run"):
        assert (tmp_path / "data" / lock.NAME).exists()
    assert {p.name for p in (tmp_path / "data").iterdir()} <= {lock.GUARD}


def test_every_path_to_a_folder_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    with holder(tmp_path / "data"), pytest.raises(FolderInUse):
        FolderLock(tmp_path / "link", "run").acquire()


@pytest.mark.parametrize(
    ("then", "number"),
    [("time.sleep(60)", signal.SIGKILL), ("raise ValueError", 0), ("pass", 0)],
    ids=["kill -9", "error", "end"],
)
def test_a_lock_ends_with_its_owner(tmp_path: Path, then: str, number: int) -> None:
    """Also while its parent has not asked for its status: a zombie runs no longer."""
    with holder(tmp_path, then) as process:
        if number:
            process.send_signal(number)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        started = time.monotonic()
        with FolderLock(tmp_path, "run"):
            assert time.monotonic() - started < lock.BEAT_SECONDS


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    write(tmp_path, replace(this_process(), started="1"))
    with FolderLock(tmp_path, "run"):
        pass


@pytest.mark.parametrize(
    "owner",
    [
        pytest.param(ELSEWHERE, id="another_machine"),
        pytest.param(replace(this_process(), namespace="1", pid=2**22 + 1), id="another_container"),
        pytest.param(replace(this_process(), boot="", started=""), id="no_proc"),
    ],
)
def test_an_owner_that_cannot_be_asked_counts_by_its_beats(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process id is not looked up here: it means nothing here."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    file = write(tmp_path, owner, age=lock.LIMIT_SECONDS - 5)
    with pytest.raises(FolderInUse, match="last sign of life 115 s ago"):
        FolderLock(tmp_path, "run").acquire()
    assert file.exists()
    for age in (lock.LIMIT_SECONDS + 5, -lock.LIMIT_SECONDS - 5):  # or the clock was set back
        write(tmp_path, owner, age)
        with FolderLock(tmp_path, "run"):
            assert str(os.getpid()) in file.read_text()


def test_a_living_owner_is_not_replaced_when_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    file = write(tmp_path, ELSEWHERE, age=3600)
    beat = threading.Timer(0.1, os.utime, [file])
    beat.start()
    with pytest.raises(FolderInUse, match="node7, process 1, since 2026-01-02 03:04:05 UTC"):
        FolderLock(tmp_path, "run").acquire()
    beat.join()


def test_the_file_is_renewed_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with FolderLock(tmp_path, "run"):
        file = tmp_path / lock.NAME
        os.utime(file, (1, 1))
        ends = time.monotonic() + 10
        while file.stat().st_mtime == 1 and time.monotonic() < ends:
            time.sleep(0.02)
        assert file.stat().st_mtime > 1
    assert not any(t.name == "folder lock" and t.is_alive() for t in _settled())


def _settled() -> list[threading.Thread]:
    time.sleep(0.2)
    return threading.enumerate()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": 1}'])
def test_a_damaged_lock_counts_by_its_time(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filesystem without hard links shows an empty file for a moment."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    file = tmp_path / lock.NAME
    file.write_text(text)
    with pytest.raises(FolderInUse, match="cannot be read"):
        FolderLock(tmp_path, "run").acquire()
    os.utime(file, (1, 1))
    with FolderLock(tmp_path, "run"):
        pass


def test_a_filesystem_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with FolderLock(tmp_path, "run"):
        assert json.loads((tmp_path / lock.NAME).read_text())["purpose"] == "run"
        with _other_thread(tmp_path) as found:
            assert isinstance(found[0], FolderInUse)


@contextmanager
def _other_thread(directory: Path) -> Iterator[list[Exception | None]]:
    found: list[Exception | None] = []

    def take() -> None:
        own = FolderLock(directory, "run")
        try:
            own.acquire()
        except FolderInUse as error:
            found.append(error)
        else:
            own.release()
            found.append(None)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    yield found


def test_runs_of_one_thread_follow_each_other_and_those_of_two_do_not_overlap(
    tmp_path: Path,
) -> None:
    """A notebook's run may have ended without a word; a second thread's run is a second run."""
    first = FolderLock(tmp_path, "run")
    first.acquire()
    with _other_thread(tmp_path) as found:
        assert isinstance(found[0], FolderInUse)
    with FolderLock(tmp_path, "run"):
        first.check()  # of a session within it
    first.check()  # holds it again
    assert (tmp_path / lock.NAME).exists()
    first.release()
    with _other_thread(tmp_path) as found:
        assert found == [None]


def test_a_run_that_lost_its_folder_says_so_and_leaves_the_lock(tmp_path: Path) -> None:
    own = FolderLock(tmp_path, "run")
    own.acquire()
    (tmp_path / lock.NAME).unlink()
    own.check()
    assert (tmp_path / lock.NAME).exists()
    write(tmp_path, ELSEWHERE)
    with pytest.raises(FolderLost, match="node7"):
        own.check()
    own.release()
    assert (tmp_path / lock.NAME).exists()


def test_a_forked_child_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "run") as own:
        child = os.fork()
        if not child:
            own.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / lock.NAME).exists()


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    for _ in range(2):
        write(tmp_path, replace(this_process(), started="1"))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", HOLD.format(then="time.sleep(2)"), str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(6)
        ]
        held = [p.communicate()[0] for p in processes]
        assert held.count(b"held\n") == 1


def test_a_lock_that_this_process_could_not_remove_is_no_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = FolderLock(tmp_path, "one")
    held.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("read-only")))
        with pytest.raises(OSError, match="read-only"):
            held.release()
    assert (tmp_path / lock.NAME).exists()
    with FolderLock(tmp_path, "two"):
        assert '"two"' in (tmp_path / lock.NAME).read_text()
    assert not (tmp_path / lock.NAME).exists()
