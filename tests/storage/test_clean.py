"""What `kedro clean` lists and removes, in small projects with the project's own kinds of entries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from conftest import build_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io.core import Version

from rest_pg.cli import cli
from rest_pg.datasets import PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.freshness import Origin
from rest_pg.records import Score
from rest_pg.storage.clean import clean, find_removable
from rest_pg.storage.lock import FolderInUse, FolderLock
from rest_pg.storage.owner import this_process

CATALOG = """
raw: {type: text.TextDataset, filepath: data/01_raw/documents.txt}
forgotten_users: {type: json.JSONDataset, filepath: data/forgotten_users.json}
"{part}.scores":
  type: rest_pg.datasets.RecordsDataset
  filepath: data/07_model_output/{part}/scores.jsonl
  record: rest_pg.records.Score
  versioned: true
"policy_{t}": {type: rest_pg.datasets.PolicyDataset, filepath: "data/06_models/policy_{t}", versioned: true}
"{system}.policy_{t}":
  {type: rest_pg.datasets.PolicyDataset, filepath: "data/06_models/{system}/policy_{t}", versioned: true}
results:
  type: kedro_mlflow.io.artifacts.MlflowArtifactDataset
  dataset:
    type: rest_pg.datasets.SealedDataset
    filepath: data/08_reporting/results.json
    dataset: {type: json.JSONDataset}
generator:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.resumable.ResumableGenerator
  arguments: {directory: data/07_model_output/shards}
trainer:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.sft_trainer.SharedPromptTrainer
  arguments: {directory: data/06_models/checkpoints}
retriever:
  type: rest_pg.datasets.BackendDataset
  backend: rest_pg.backends.retrievers.EmbeddingRetriever
  arguments: {directory: data/04_feature/embeddings}
"""
OTHER = """
elsewhere:
  {type: rest_pg.datasets.RecordsDataset, filepath: data/03_primary/other.jsonl, record: rest_pg.records.Score, versioned: true}
"""


def stamp(day: int) -> str:
    return f"2026-01-{day:02}T00.00.00.000Z"


class Made:
    """A project whose runs are written here by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in {"base": CATALOG, "mail": OTHER, "local": ""}.items():
            (root / "conf" / name).mkdir(parents=True)
            (root / "conf" / name / "catalog.yml").write_text(text)
        self.write("data/01_raw/documents.txt")
        self.write("data/forgotten_users.json", "{}")

    def write(self, name: str, text: str = "a person's own") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def scores(
        self,
        day: int,
        reward: float,
        *made_from: str,
        place: str = "07_model_output/it_1/scores.jsonl",
    ) -> str:
        """Save a version; return its checksum."""
        dataset = RecordsDataset(
            filepath=str(self.root / "data" / place),
            record="rest_pg.records.Score",
            version=Version(stamp(day), stamp(day)),
        )
        dataset.origin = Origin("code", {}, {}, dict(enumerate(made_from)))  # type: ignore[arg-type]
        dataset.save([Score(reward=reward)])
        return str(dataset.stored_content())

    def policy(
        self, day: int, place: str, *made_from: str, base: Path | None = None
    ) -> PolicyDataset:
        dataset = PolicyDataset(
            filepath=str(self.root / "data/06_models" / place),
            version=Version(stamp(day), stamp(day)),
        )
        policy = build_policy(self.root / "new", seed=day)
        if base is not None:
            known = {"path": str(base), "fingerprint": "of another time"}
            (policy.path / "base_policy.json").write_text(json.dumps(known))
        dataset.origin = Origin("code", {}, {}, dict(enumerate(made_from)))  # type: ignore[arg-type]
        dataset.save(policy)
        return dataset

    def files(self) -> set[str]:
        return {
            str(p.relative_to(self.root))
            for p in self.root.rglob("*")
            if p.is_file() and p.name != ".lock.guard"
        }

    def clean(self, keep: int = 1, *, tracking: bool = False) -> str:
        return "\n".join(clean(self.root, keep, tracking=tracking, really=True))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "project")


def test_without_yes_nothing_changes_and_the_table_says_what_would(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2, 3):
        made.scores(day, day / 4)
    (made.root / "pyproject.toml").write_text("[tool.kedro]\n")
    before = made.files()
    monkeypatch.chdir(made.root)
    shown = CliRunner().invoke(cli, ["clean"])
    assert shown.exit_code == 0, shown.output
    assert "old versions  data/07_model_output/it_1/scores.jsonl  2" in shown.output
    assert "Nothing was removed: `kedro clean --yes`" in shown.output
    assert made.files() == before
    done = CliRunner().invoke(cli, ["clean", "--keep", "2", "--yes"])
    assert "Removed." in done.output
    assert {name.split("/")[-2] for name in before - made.files()} == {stamp(1)}
    assert "nothing to remove" in CliRunner().invoke(cli, ["clean", "--keep", "2"]).output
    assert CliRunner().invoke(cli, ["clean", "--keep", "-1"]).exit_code == 2


def test_raw_data_and_a_persons_files_stay_whatever_is_asked(made: Made) -> None:
    own = [
        "data/notes.txt",
        f"data/01_raw/2026/{stamp(1)}/2026",
        "data/07_model_output/it_1/mine.csv",
        "data/07_model_output/it_1/scores.jsonl/my best version/scores.jsonl",
        "data/07_model_output/shards/readme.txt",
        "data/06_models/checkpoints/favourite/weights",
        "data/08_reporting/paper.pdf",
        "data/08_reporting/results.xlsx",
        "conf/local/credentials.yml",
    ]
    for name in own:
        made.write(name)
    made.write(f"data/01_raw/.x.{replace(this_process(), started='1').tag}.tmp")
    before = made.files()
    assert "nothing to remove" in made.clean(0)
    made.scores(1, 0.5)
    made.clean(0)
    assert made.files() == before


def test_with_no_version_kept_everything_that_a_run_makes_goes(made: Made) -> None:
    before = made.files()
    for day in (1, 2):
        made.scores(day, 0.5)
        made.scores(day, 0.5, place="03_primary/other.jsonl")  # of another environment
    made.policy(1, "policy_1")
    made.policy(1, "rest_em/policy_1")
    SealedDataset(
        filepath=str(made.root / "data/08_reporting/results.json"),
        dataset={"type": "json.JSONDataset"},
    ).save({"a": 1})
    made.write(f"data/04_feature/embeddings/{'a' * 16}/{'b' * 16}.parquet")
    made.write(f"data/07_model_output/shards/{'a' * 16}/00000.jsonl")
    made.write(f"data/06_models/checkpoints/{'a' * 16}/checkpoint-3/optimizer.pt")
    made.write(f"data/06_models/.policy_1.{replace(this_process(), started='1').tag}.tmp")
    said = made.clean(0)
    assert made.files() == before
    for kind in ("versions", "tables and pages", "embeddings", "unfinished training", "temporary"):
        assert kind in said


def test_the_newest_is_kept_with_embeddings_and_reports_and_unfinished_work_goes(
    made: Made,
) -> None:
    made.scores(1, 0.5)
    made.write(f"data/04_feature/embeddings/{'a' * 16}/{'b' * 16}.parquet")
    kept = made.files()
    made.write(f"data/07_model_output/shards/{'a' * 16}/00000.jsonl")
    made.write(f"data/06_models/checkpoints/{'a' * 16}/checkpoint-3/optimizer.pt")
    made.write(f"data/06_models/.policy_1.{this_process().tag}.tmp")  # is being written
    made.clean()
    assert made.files() - kept == {f"data/06_models/.policy_1.{this_process().tag}.tmp"}


def test_a_damaged_version_does_not_stand_for_the_one_that_is_kept(made: Made) -> None:
    for day in (1, 2, 3):
        made.scores(day, day / 4)
    place = made.root / "data/07_model_output/it_1/scores.jsonl"
    (place / stamp(3) / "scores.jsonl").write_text("{}")
    made.clean()
    assert sorted(p.name for p in place.iterdir()) == [stamp(2), stamp(3)]


def test_versions_that_a_kept_one_was_made_from_stay(made: Made) -> None:
    """Older ones too, step by step: the newest scores were made with a policy that has a newer version."""
    first = made.scores(1, 0.25, place="07_model_output/it_1/scores.jsonl")
    middle = made.policy(2, "policy_1", first).stored_content()
    made.scores(3, 0.5, str(middle), place="07_model_output/it_2/scores.jsonl")
    for day in (4, 5):
        made.policy(day, "policy_1", "nothing that is there")
        made.scores(day, day / 10, place="07_model_output/it_1/scores.jsonl")
    made.clean()
    found = {
        p.parent.parent.name: p.parent.name for p in made.root.glob("data/*/*/*/*/scores.jsonl")
    }
    assert {p.name for p in (made.root / "data/06_models/policy_1").iterdir()} == {
        stamp(2),
        stamp(5),
    }
    stays = {p.name for p in (made.root / "data/07_model_output/it_1/scores.jsonl").iterdir()}
    assert stays == {stamp(1), stamp(5)}
    assert found


@pytest.mark.parametrize("registered", [False, True])
def test_the_policy_that_adapters_belong_to_stays(made: Made, registered: bool) -> None:
    """Also if only a registered model has the adapters, and if no version is to be kept."""
    base = made.policy(1, "policy_0")
    made.policy(2, "policy_0")
    place = Path(base._get_load_path())
    if registered:
        known = json.dumps({"path": str(place), "fingerprint": base.stored_content()})
        made.write("mlartifacts/1/models/m-1/artifacts/artifacts/policy/base_policy.json", known)
        made.clean(0)
        assert [p.name for p in (made.root / "data/06_models/policy_0").iterdir()] == [stamp(1)]
    else:
        made.policy(3, "policy_1", base=place.relative_to(made.root))
        made.clean()
        left = {p.name for p in (made.root / "data/06_models/policy_0").iterdir()}
        assert left == {stamp(1), stamp(2)}


@settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=16),
    keep=st.integers(1, 3),
)
def test_no_kept_version_lacks_what_it_was_made_from(
    tmp_path_factory: pytest.TempPathFactory, edges: list[tuple[int, int]], keep: int
) -> None:
    """Twelve versions of three datasets, made from each other at random."""
    made = Made(tmp_path_factory.mktemp("random") / "project")
    sums: list[str] = []
    for i in range(12):
        sources = [sums[a] for a, b in edges if b == i and a < i]
        sums.append(
            made.scores(i + 1, i / 16, *sources, place=f"07_model_output/it_{i % 3}/scores.jsonl")
        )
    made.clean(keep)
    left = {int(p.parent.name[8:10]) - 1 for p in made.root.rglob("scores.jsonl") if p.is_file()}
    newest = {i for i in range(12) if i >= 12 - 3 * keep}
    assert newest <= left
    assert all(a in left for a, b in edges if b in left and a < b)
    reached, size = set(newest), 0
    while len(reached) != size:
        size = len(reached)
        reached |= {a for a, b in edges if b in reached and a < b}
    assert left == reached


def test_nothing_is_removed_while_a_run_writes(made: Made) -> None:
    import threading

    made.scores(1, 0.5)
    found: list[BaseException] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except FolderInUse as error:
            found.append(error)

    with FolderLock(made.root / "data", "run"):
        assert len(find_removable(made.root, 0)) == 1  # to look is free
        thread = threading.Thread(target=attempt, args=(lambda: made.clean(0),))
        thread.start()
        thread.join()
    assert len(found) == 1
    assert "scores.jsonl" in str(made.files())


def test_an_interrupted_removal_is_finished_by_the_next(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        made.scores(day, day / 4)
    old = made.root / "data/07_model_output/it_1/scores.jsonl" / stamp(1)
    (old / "scores.jsonl.sha256").unlink()
    made.clean()
    assert not old.exists()


def test_an_environment_that_cannot_be_read_is_named(made: Made) -> None:
    made.write("conf/mail/catalog.yml", "a: {filepath: '${runtime_params:nothing}', type: x}")
    made.scores(1, 0.5)
    with pytest.raises(ValueError, match="mail"):
        made.clean(0)


@pytest.mark.parametrize("registered", [False, True])
def test_tracking_stays_if_models_are_registered(made: Made, registered: bool) -> None:
    uri = f"sqlite:///{made.root}/mlflow.db"
    client = mlflow.MlflowClient(uri, uri)
    client.create_experiment("x", artifact_location=str(made.root / "mlartifacts"))
    if registered:
        client.create_registered_model("rest-pg-writer")
    assert "mlflow.db" not in made.clean(0)
    said = made.clean(0, tracking=True)
    assert (made.root / "mlflow.db").exists() == registered
    assert ("models are registered there (rest-pg-writer)" in said) == registered


def test_a_damaged_tracking_store_is_named_and_stays(made: Made) -> None:
    made.write("mlflow.db", "no database")
    assert "cannot be read, and stays" in made.clean(0, tracking=True)
    assert (made.root / "mlflow.db").exists()
