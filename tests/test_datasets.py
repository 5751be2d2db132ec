import hashlib
import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import plotly.graph_objects as go
import pytest
from conftest import build_policy, document
from kedro.io.core import DatasetError, Version

from rest_pg.checksums import seal_of
from rest_pg.datasets import BackendDataset, PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.datasets.mlflow import SamplesTableDataset, SystemRunsDataset
from rest_pg.freshness import Origin
from rest_pg.records import Score, SystemCurve
from rest_pg.storage.owner import Owner, this_process
from rest_pg.temporary import (
    OLD_SECONDS,
    make_temporary_directory,
    sweep_temporary,
    temporary_name,
)

DOCUMENT = "rest_pg.records.Document"


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    dataset = RecordsDataset(
        filepath=str(tmp_path / "d.jsonl"), record=DOCUMENT, version=Version(None, "v1")
    )
    assert not dataset.exists()
    documents = [document(1, "line\u2028\x00 separator \u05d0"), document(2, "b", date="1900")]
    dataset.save(documents)
    assert dataset.exists()
    assert dataset.load() == documents
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"d.jsonl", "d.jsonl.sha256"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    dataset = RecordsDataset(filepath=str(path), record=DOCUMENT)
    dataset.save([document(1, "a"), document(2, "b")])
    path.write_text(path.read_text().replace('"b"', "7"))
    seal_of(path).write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DatasetError, match=r"line 2, text: .*found '7'"):
        dataset.load()


def test_a_policy_is_versioned_and_must_be_whole(tmp_path: Path) -> None:
    dataset = PolicyDataset(filepath=str(tmp_path / "policy"), version=Version(None, "v1"))
    assert not dataset.exists()
    dataset.save(build_policy(tmp_path / "made"))
    path = dataset.load().path
    assert path.parent.name == "v1"
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(DatasetError, match=r"model\.safetensors is damaged"):
        dataset.load()
    assert not dataset.exists()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"model.safetensors holds \d+ bytes"):
        dataset.load()
    weights.write_bytes(whole)
    marker = path / "complete.json"
    sealed = marker.read_text()
    for name in ("files", "bytes", "sha256"):
        marker.write_text(sealed.replace(f'"{name}"', f'"{name[:-1]}~"', 1))
        with pytest.raises(DatasetError, match=r"no readable complete\.json"):
            dataset.load()
        assert not dataset.exists()
    for other in ("[]", '{"files": []}', '{"files": {"model.safetensors": 1}}'):
        marker.write_text(other)
        assert not dataset.exists()
    marker.unlink()
    assert not dataset.exists()


def catalog_datasets() -> dict[str, tuple[dict[str, Any], Any]]:
    """One of each kind of sealed file in the catalog, with data for it."""
    csv = {"type": "pandas.CSVDataset", "save_args": {"index": False}}
    return {
        "figures": ({"type": "json.JSONDataset"}, {"seconds": 1.5}),
        "metrics": ({"type": "pandas.ParquetDataset"}, pd.DataFrame({"reward": [0.5, 0.25]})),
        "results": (csv, pd.DataFrame({"system": ["sft"], "mean": [0.5]})),
        "report": ({"type": "text.TextDataset"}, "<html>é</html>"),
        "plot": ({"type": "plotly.JSONDataset"}, go.Figure(go.Scatter(x=[1], y=[2]))),
    }


@pytest.mark.parametrize("kind", list(catalog_datasets()))
def test_a_flipped_bit_or_a_cut_file_is_refused_and_counts_as_missing(
    tmp_path: Path, kind: str
) -> None:
    inner, data = catalog_datasets()[kind]
    path = tmp_path / kind
    dataset = SealedDataset(filepath=str(path), dataset=inner)
    dataset.save(data)
    before = dataset.load()
    assert type(before) is type(data)
    whole = path.read_bytes()
    generator = random.Random(kind)
    for _ in range(20):
        place = generator.randrange(len(whole))
        flipped = whole[place] ^ (1 << generator.randrange(8))
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        with pytest.raises(DatasetError, match=f"{kind} is damaged"):
            dataset.load()
        assert not dataset.exists()
        path.write_bytes(whole[:place])
        assert not dataset.exists()
    path.write_bytes(whole)
    assert dataset.exists()
    seal_of(path).unlink()
    with pytest.raises(DatasetError, match="checksum"):
        dataset.load()


def test_an_interrupted_save_leaves_the_version_before(tmp_path: Path) -> None:
    class Interrupted:
        def __iter__(self):
            yield document(1, "new")
            raise KeyboardInterrupt

    dataset = RecordsDataset(filepath=str(tmp_path / "d.jsonl"), record=DOCUMENT)
    dataset.save([document(1, "old")])
    with pytest.raises(KeyboardInterrupt):
        dataset.save(Interrupted())
    assert dataset.load() == [document(1, "old")]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stopped_at", range(6))
def test_a_stop_at_any_step_of_a_save_leaves_one_of_the_two_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """Five renames and removals replace a file: the last case is stopped by none of them."""
    old, new = Origin("old", {}, {}), Origin("new", {}, {})

    def scores(origin: Origin) -> RecordsDataset:
        kept = RecordsDataset(filepath=str(tmp_path / "s.jsonl"), record="rest_pg.records.Score")
        kept.origin = origin
        return kept

    scores(old).save([Score(reward=0.5)])
    steps = iter(range(6))

    def stop_at(step: Any) -> Any:
        def take(self: Path, *given: Any, **named: Any) -> Any:
            if next(steps) == stopped_at:
                raise KeyboardInterrupt
            return step(self, *given, **named)

        return take

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop_at(Path.replace))
        unlink = Path.unlink
        for_origins = stop_at(unlink)
        patched.setattr(
            Path,
            "unlink",
            lambda self, **n: (unlink if self.suffix == ".tmp" else for_origins)(self, **n),
        )
        if stopped_at < 5:
            with pytest.raises(KeyboardInterrupt):
                scores(new).save([Score(reward=0.25)])
        else:
            scores(new).save([Score(reward=0.25)])
            assert next(steps) == 5  # as many as there are
    replaced = stopped_at > 2
    assert scores(new).load() == [Score(reward=0.25 if replaced else 0.5)]
    # what is there is never taken for the other's
    assert scores(old).exists() == (stopped_at < 2)
    assert scores(new).exists() == (stopped_at > 3)
    assert not list(tmp_path.glob(".*"))
    scores(new).save([Score(reward=1.0)])
    assert scores(new).exists()
    assert len(seal_of(tmp_path / "s.jsonl").read_text().splitlines()) == 1


def test_a_policy_that_a_killed_run_had_not_saved_yet_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    system = tmp_path / "system"
    system.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    living = make_temporary_directory()
    with monkeypatch.context() as as_another:
        as_another.setattr(os, "getpid", lambda: dead.pid)
        unfinished = make_temporary_directory()
    (system / "another program's.tmp").mkdir()
    assert sweep_temporary(tmp_path / "data") == 1
    assert living.exists()
    assert not unfinished.exists()
    assert len(list(system.iterdir())) == 2


def left_by(path: Path, owner: Owner) -> Path:
    """Make a directory with a file in it, as a process left it half written."""
    left = path.with_name(f".{path.name}.{owner.tag}.tmp")
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    return left


DEAD = replace(this_process(), started="1")
"""An earlier process of this one's number."""


def test_two_runs_may_sweep_the_same_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen a directory, and the other one has removed a file in it first."""
    left = left_by(tmp_path / "policy", DEAD)
    unlink = os.unlink

    def unlink_behind_the_other(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as other:
        other.setattr(os, "unlink", unlink_behind_the_other)
        sweep_temporary(tmp_path)
    assert sweep_temporary(tmp_path) == 0
    assert not left.exists()


def test_only_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    """What may still be written by a process that cannot be asked goes by its age."""
    dead = left_by(tmp_path / "v" / "a.jsonl", DEAD)
    own = temporary_name(tmp_path / "b.jsonl")
    own.write_text("at work")
    elsewhere = [
        left_by(tmp_path / "other_machine", replace(DEAD, boot="0123456789abcdef")),
        left_by(tmp_path / "other_container", replace(DEAD, namespace="1")),
        left_by(tmp_path / "no_proc", Owner("", "", "", os.getpid(), "")),
    ]
    (earlier := tmp_path / ".a.jsonl.999999999.tmp").write_text(
        "of an earlier version of the project"
    )
    assert sweep_temporary(tmp_path) == 1
    assert not dead.exists()
    assert all(path.exists() for path in (own, earlier, *elsewhere))
    week = time.time() - OLD_SECONDS
    for path in (own, earlier, *elsewhere[1:], *(p / "weights" for p in elsewhere)):
        os.utime(path, (week - 60, week - 60))
    os.utime(elsewhere[0], (week + 60, week + 60))
    assert sweep_temporary(tmp_path) == 3
    assert all(path.exists() for path in (own, elsewhere[0]))


def test_no_other_programs_or_users_files_are_swept(tmp_path: Path) -> None:
    names = [
        ".notes.tmp",
        ".swap.12a.tmp",
        "a.12.tmp",
        f".x.{DEAD.tag}.tmpx",
        f"01_raw/.mine.{DEAD.tag}.tmp",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a person's")
        os.utime(tmp_path / name, (1, 1))
    assert sweep_temporary(tmp_path) == 0
    assert all((tmp_path / name).exists() for name in names)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    from rest_pg.records import PolicyCheckpoint

    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="is not a model directory"):
        PolicyDataset(filepath=str(tmp_path / "p")).save(PolicyCheckpoint(tmp_path / "none"))


def test_a_backend_names_the_argument_at_fault() -> None:
    dataset = BackendDataset(
        backend="rest_pg.backends.shared_prefix.SharedPrefixGenerator", arguments={"rows": 3}
    )
    with pytest.raises(DatasetError, match="unexpected keyword argument 'rows'"):
        dataset.load()


def test_a_samples_table_is_logged_once_per_run(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("tables", artifact_location=str(tmp_path / "artifacts"))
    dataset = SamplesTableDataset(artifact_file="samples/iteration_1.json")
    dataset.save({"reward": [0.5]})  # no run, nothing to log to
    with mlflow.start_run(experiment_id=experiment):
        dataset.save({"reward": [0.5, 0.25]})
        dataset.save({"reward": [0.5, 0.25]})
    (table,) = (tmp_path / "artifacts").rglob("iteration_1.json")
    assert json.loads(table.read_text()) == {"columns": ["reward"], "data": [[0.5], [0.25]]}
    with pytest.raises(DatasetError, match="never read"):
        dataset.load()


def test_systems_have_a_run_each_below_the_study_s_and_twice_is_once(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("study", artifact_location=str(tmp_path / "artifacts"))
    dataset = SystemRunsDataset()
    curves = {
        "sft": [SystemCurve(metric="test_reward", points=[(0, 0.25)])],
        "rest_pg": [SystemCurve(metric="test_reward", points=[(0, 0.25), (1, 0.5)])],
    }
    dataset.save(curves)  # no run, nothing to log to
    with mlflow.start_run(experiment_id=experiment) as study:
        assert not dataset.exists()
        dataset.save(curves)
        dataset.save(curves)
        assert dataset.exists()
    runs = mlflow.search_runs([experiment], output_format="list")
    (ours,) = (run for run in runs if run.info.run_name == "rest_pg")
    assert len(runs) == 3
    assert ours.data.tags["mlflow.parentRunId"] == study.info.run_id
    history = mlflow.MlflowClient().get_metric_history(ours.info.run_id, "test_reward")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.5)]


def test_previews_are_what_kedro_viz_takes_them_for(tmp_path: Path) -> None:
    records = RecordsDataset(filepath=str(tmp_path / "d.jsonl"), record=DOCUMENT)
    records.save([document(1, "a" * 400), document(2, "b")])
    preview = records.preview(nrows=1)
    assert preview["columns"][:3] == ["document_id", "user_id", "text"]
    (row,) = preview["data"]
    assert row[2] == "a" * 299 + "…"
    csv = {"type": "pandas.CSVDataset", "save_args": {"index": False}}
    table = SealedDataset(filepath=str(tmp_path / "t.csv"), dataset=csv)
    table.save(pd.DataFrame({"n": [1, 2]}))
    assert table.preview(nrows=1)["data"] == [[1]]
    plot = SealedDataset(filepath=str(tmp_path / "p.json"), dataset={"type": "plotly.JSONDataset"})
    kinds = [inspect.signature(own.preview).return_annotation for own in (records, table, plot)]
    assert [getattr(kind, "__name__", kind) for kind in kinds] == [
        *("TablePreview", "TablePreview", "PlotlyPreview")
    ]
    text = SealedDataset(filepath=str(tmp_path / "t.html"), dataset={"type": "text.TextDataset"})
    assert not hasattr(text, "preview")


@pytest.mark.parametrize("place", ["s3://bucket/shards", "memory://shards"])
def test_work_in_progress_isn_t_kept_in_object_storage(place: str) -> None:
    inner = {"backend": "any.Generator", "arguments": {"directory": place}}
    with pytest.raises(DatasetError, match=r"is on (s3|memory)://.* name a directory"):
        BackendDataset(backend="any.Outer", arguments={"generator": inner})


def test_a_file_s_address_is_its_path(tmp_path: Path) -> None:
    scores = [Score(reward=0.5)]
    record = "rest_pg.records.Score"
    RecordsDataset(filepath=f"file://{tmp_path}/scores.jsonl", record=record).save(scores)
    assert RecordsDataset(filepath=f"{tmp_path}/scores.jsonl", record=record).load() == scores
