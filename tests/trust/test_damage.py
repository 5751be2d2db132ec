"""A flipped bit or a cut file is named, never used, and made anew; a full disk costs no version."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from conftest import build_policy
from kedro.config import OmegaConfigLoader
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.io.core import DatasetError
from kedro.runner import SequentialRunner

from rest_pg.backends import embeddings
from rest_pg.backends.embeddings import Embedder
from rest_pg.backends.sft_loop import SharedPromptSFTTrainer
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.checksums import COMPLETE, put_sealed
from rest_pg.config import TrainingParams
from rest_pg.datasets import PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.pipeline_registry import register_pipelines
from rest_pg.records import PolicyCheckpoint, Score, TrainingExample
from rest_pg.runtime.session import RunParameters
from rest_pg.temporary import temporary_name

from .conftest import POINTS, PROJECT, Ledger, Project, Run, run_id


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
        from rest_pg.hooks.provenance import FreshnessHook

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


def test_every_dataset_of_every_pipeline_names_its_damage_and_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    """The study's, the experiments' and all others: written by hand, with whatever content."""
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    monkeypatch.setattr(RunParameters, "values", loader["parameters"])
    monkeypatch.chdir(tmp_path)
    catalog = DataCatalog.from_config(loader["catalog"])
    draw = random.Random(4)
    kinds: Counter[str] = Counter()
    for name in sorted(set().union(*(p.all_outputs() for p in register_pipelines().values()))):
        dataset = catalog.get(name)
        kinds[type(dataset).__name__] += 1
        if not isinstance(dataset, (RecordsDataset, SealedDataset)):
            continue
        place = tmp_path / dataset._get_save_path()
        place.parent.mkdir(parents=True, exist_ok=True)
        written = temporary_name(place)
        written.write_bytes(draw.randbytes(64))
        put_sealed(written, place)
        assert dataset.exists()
        for how in ("flipped bit", "cut file"):
            with damaged(place, how, draw):
                with pytest.raises(DatasetError, match=re.escape(place.name)):
                    dataset.load()
                missing = not dataset.exists()
            ledger.add(f"{how} in any pipeline's dataset", survived=missing)
            assert missing, name
    known = {"RecordsDataset", "SealedDataset", "MlflowSealedDataset", "PolicyDataset"}
    # MLflow's own store, which a run writes to and never reads from
    shown = {"MlflowMetricsHistoryDataset", "SamplesTableDataset", "SystemRunsDataset"}
    assert set(kinds) == known | shown | {"DescriptionDataset"}
    assert kinds["RecordsDataset"] > 100


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
    "plot": (
        lambda at: SealedDataset(filepath=at, dataset={"type": "plotly.JSONDataset"}),
        go.Figure(layout={"template": None}),
        go.Figure(go.Scatter(y=list(range(3000)))),
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


def test_a_full_disk_costs_no_earlier_embedding(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Model:
        max_seq_length = 9999

        def tokenizer(self, text: str, **_: Any) -> dict[str, Any]:
            return {"offset_mapping": [(0, len(text))]}

        def encode(self, texts: list[str], **_: Any) -> Any:
            seen.extend(texts)
            return np.random.default_rng(0).random((len(texts), 8), dtype=np.float32)

    monkeypatch.setattr(embeddings, "load_embedding_model", lambda *_: Model())

    def embed(*texts: str) -> Any:
        return Embedder("m", directory=str(tmp_path)).embed(texts)

    before = embed("a")
    with full_disk(3000), pytest.raises((DatasetError, OSError)):
        embed(*map(str, range(300)))
    seen.clear()
    survived = bool((embed("a") == before).all()) and not seen
    ledger.add("full disk while a file is saved", survived=survived)
    assert survived
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_full_disk_costs_no_earlier_checkpoint(
    policy: PolicyCheckpoint, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [
        TrainingExample(example_id=str(i), prompt="<s>about ships", completion="We sail." * i)
        for i in range(1, 6)
    ]
    params = TrainingParams(epochs=2, batch_size=1, learning_rate=1e-2, max_tokens=128)

    def train(directory: Path) -> tuple[bytes, dict[str, float]]:
        trainer = SharedPromptTrainer(directory=str(directory), checkpoint_steps=3)
        trained, figures = trainer.train(policy, examples, params, seed=3)
        return (trained.path / "model.safetensors").read_bytes(), figures

    expected, _ = train(tmp_path / "straight")
    save = SharedPromptSFTTrainer._save_checkpoint

    def save_on_a_full_disk(self: Any, *given: Any, **named: Any) -> None:
        with full_disk(3000 if self.state.global_step == 6 else resource.RLIM_INFINITY):
            save(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(SharedPromptSFTTrainer, "_save_checkpoint", save_on_a_full_disk)
        with pytest.raises(Exception, match=r"[Ff]ile too large|I/O error|unexpected pos|write"):
            train(tmp_path / "kept")
    steps: list[int] = []

    def note(self: Any, *given: Any, **named: Any) -> None:
        steps.append(self.state.global_step)
        save(self, *given, **named)

    monkeypatch.setattr(SharedPromptSFTTrainer, "_save_checkpoint", note)
    weights, _ = train(tmp_path / "kept")
    survived = weights == expected
    # what was kept behind step 3 counted: only what followed is worked through again
    ledger.add("full disk while a checkpoint is saved", survived=survived)
    assert survived
    assert steps == [6, 9, 10]


def test_origins_say_what_made_each_dataset(opened) -> None:
    pipeline, catalog = opened
    for name, place in sealed(pipeline, catalog).items():
        origin = catalog.get(name).stored_origin()
        assert origin is not None, place
        assert json.loads(origin.to_json())["code"]


@pytest.mark.slow
def test_a_run_makes_exactly_what_is_damaged_anew_byte_by_byte(
    project: Project, ledger: Ledger
) -> None:
    """One of each kind at once: records, figures, a table, a page, a policy."""
    project.clean()
    first = project.kedro()
    assert first.status == 0, first.text
    before = project.results()
    producers = {
        "data/03_primary/examples.jsonl": "create_examples",
        "data/08_reporting/prompt_figures.json": "create_prompts",
        "data/07_model_output/iteration_1/scored_samples.jsonl": "iteration_1.score_samples",
        "data/08_reporting/results.csv": "evaluation.create_results",
        "data/08_reporting/report.html": "evaluation.create_report",
        "data/06_models/policy_1": "iteration_1.maximize",
    }
    draw = random.Random(5)
    for name in producers:
        place = project.root / name
        if place.is_dir():  # versions of it
            place = max(place.iterdir()) / place.name
        if place.is_dir():
            place /= "model.safetensors"
        content = bytearray(place.read_bytes())
        content[draw.randrange(len(content))] ^= 1
        place.write_bytes(content)
    again = project.kedro("--only-missing-outputs", "--params", f"mlflow_run_id={run_id(first)}")
    assert again.status == 0, again.text
    lost = {name for name, data in project.results().items() if data != before.get(name)}
    ledger.add(
        "damaged files that a run makes anew",
        survived=not lost,
        lost=len(lost),
        cases=len(producers),
    )
    assert not lost
    assert set(again.nodes()) - {"evaluation.log_results"} == set(producers.values())
