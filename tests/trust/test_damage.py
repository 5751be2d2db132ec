"""A flipped bit or a cut file is named, never used, and made anew; a full disk costs no version."""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import build_policy
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io.core import DatasetError
from kedro.runner import SequentialRunner

from rest_pg.checksums import COMPLETE
from rest_pg.datasets import PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.records import PolicyCheckpoint, Score

from .conftest import POINTS, Ledger, Project, Run


@pytest.fixture
def opened(
    project: Project, finished: tuple[Run, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Any]]:
    """The finished project's pipeline and catalog, as a run that goes on sees them."""
    monkeypatch.chdir(project.root)
    bootstrap_project(project.root)
    with KedroSession.create(project.root, env="trust") as session:
        context = session.load_context()
        from kedro.framework.project import pipelines

        pipeline = pipelines["__default__"]
        catalog = context._get_catalog(save_version=session.store["session_id"])
        from rest_pg.hooks import FreshnessHook

        FreshnessHook().before_pipeline_run({}, pipeline, catalog)
        with mlflow.start_run():  # curves ask the run at hand whether they are there
            yield pipeline, catalog


def sealed(pipeline: Any, catalog: Any) -> dict[str, Path]:
    """Every dataset of the pipeline that is kept as a file or a policy, and where it lies."""
    found = {}
    for name in sorted(pipeline.all_outputs()):
        dataset = catalog.get(name)
        if isinstance(dataset, (RecordsDataset, SealedDataset, PolicyDataset)):
            found[name] = Path(dataset._get_load_path())
    return found


@contextmanager
def damaged(path: Path, how: str, draw: random.Random) -> Iterator[None]:
    """Flip one bit of a file, or cut its end; mend it afterwards."""
    whole = path.read_bytes()
    if how == "flipped bit":
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(whole[: draw.randrange(len(whole))])
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped bit", "cut file"])
def test_damage_of_every_dataset_is_named_and_exactly_it_is_made_anew(
    opened, ledger: Ledger, how: str
) -> None:
    pipeline, catalog = opened
    runner = SequentialRunner()
    unharmed = {
        n.name for n in runner._filter_pipeline_for_missing_outputs(pipeline, catalog).nodes
    }
    places = sealed(pipeline, catalog)
    assert len(places) > 25
    draw = random.Random(3)
    for name, place in places.items():
        files = [p for p in place.iterdir() if p.is_file()] if place.is_dir() else [place]
        filled = [f for f in files if f.stat().st_size]  # no rejected records: an empty file
        for path in draw.choices(filled, k=POINTS) if filled else ():
            with damaged(path, how, draw):
                with pytest.raises(DatasetError) as error:
                    catalog.load(name)
                assert str(path) in str(error.value) or path.name == COMPLETE
                assert not catalog.exists(name)
                again = runner._filter_pipeline_for_missing_outputs(pipeline, catalog)
                (producer,) = pipeline.only_nodes_with_outputs(name).nodes
                survived = {n.name for n in again.nodes} - unharmed == {producer.name} - unharmed
                ledger.add(f"{how} in a dataset", survived=survived)
                assert survived, (name, [n.name for n in again.nodes])
        assert catalog.exists(name)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond the limit: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LONG = "a long text " * 400
FILES: dict[str, tuple[Any, Any, Any]] = {
    "records": (
        lambda at: RecordsDataset(filepath=at, record="rest_pg.records.Score"),
        [Score(reward=0.5)],
        [Score(reward=0.25)] * 200,
    ),
    "json": (
        lambda at: SealedDataset(filepath=at, dataset={"type": "json.JSONDataset"}),
        {"a": 1},
        {"a": LONG},
    ),
    "text": (
        lambda at: SealedDataset(filepath=at, dataset={"type": "text.TextDataset"}),
        "short",
        LONG,
    ),
    "csv": (
        lambda at: SealedDataset(
            filepath=at, dataset={"type": "pandas.CSVDataset", "save_args": {"index": False}}
        ),
        pd.DataFrame({"a": [1]}),
        pd.DataFrame({"a": range(3000)}),
    ),
    "parquet": (
        lambda at: SealedDataset(filepath=at, dataset={"type": "pandas.ParquetDataset"}),
        pd.DataFrame({"a": [1]}),
        pd.DataFrame({"a": [str(i) for i in range(3000)]}),
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_full_disk_costs_no_earlier_version(kind: str, tmp_path: Path, ledger: Ledger) -> None:
    build, small, large = FILES[kind]
    dataset = build(str(tmp_path / "file"))
    dataset.save(small)
    with full_disk(3000), pytest.raises((DatasetError, OSError)):
        dataset.save(large)
    kept = dataset.load()
    survived = kept.equals(small) if isinstance(kept, pd.DataFrame) else kept == small
    ledger.add("full disk while a file is saved", survived=survived)
    assert survived
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_costs_no_earlier_policy(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = PolicyDataset(filepath=str(tmp_path / "policy"))
    dataset.save(build_policy(tmp_path / "first"))
    second = build_policy(tmp_path / "second")

    def copy(source: Path, target: Path) -> None:
        shutil.copytree(source, target)  # as from another disk
        shutil.rmtree(source)

    monkeypatch.setattr(shutil, "move", copy)
    with full_disk(3000), pytest.raises((DatasetError, OSError)):
        dataset.save(second)
    assert not list(tmp_path.glob(".*.tmp"))
    survived = isinstance(dataset.load(), PolicyCheckpoint)
    ledger.add("full disk while a policy is saved", survived=survived)
    assert survived


def test_origins_say_what_made_each_dataset(opened) -> None:
    pipeline, catalog = opened
    for name, place in sealed(pipeline, catalog).items():
        origin = catalog.get(name).stored_origin()
        assert origin is not None, place
        assert json.loads(origin.to_json())["code"]
