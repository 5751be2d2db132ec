"""Two runs in one folder: each loads what it wrote and what was there before, and a mixture is found."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pluggy
import pytest
from kedro.framework.hooks.specs import DatasetSpecs, NodeSpecs, PipelineSpecs
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.io.core import Version, generate_timestamp
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner

from rest_pg.datasets import RecordsDataset, SealedDataset
from rest_pg.hooks import versions as hook_module
from rest_pg.hooks.folder_lock import FolderLockHook
from rest_pg.hooks.provenance import FreshnessHook
from rest_pg.hooks.versions import VersionsHook
from rest_pg.records import Score
from rest_pg.storage.lock import FolderInUse, FolderLock, FolderLost
from rest_pg.storage.versions import VersionInFuture

SCORE = "rest_pg.records.Score"
STAMPS = [f"2026-01-0{day}T00.00.00.000Z" for day in range(1, 9)]


def _scores(start: float) -> list[Score]:
    return [Score(reward=start)]


def _halved(scores: list[Score]) -> list[Score]:
    return [Score(reward=score.reward / 2) for score in scores]


def _table(scores: list[Score]) -> dict[str, float]:
    return {"reward": scores[0].reward}


def _page(table: dict[str, float]) -> str:
    return f"{table['reward']:.3f}"


PIPELINE = Pipeline(
    [
        node(_scores, "params:start", "scores", name="score"),
        node(_halved, "scores", "halved", name="halve"),
        node(_table, "halved", "table", name="tabulate"),
        node(_page, "table", "page", name="write"),
    ]
)


class Session:
    """One run of the pipeline, as a session of Kedro's makes it, in a folder that others write too."""

    def __init__(self, root: Path, save: str, start: float = 1.0, load: str | None = None) -> None:
        kept: dict[str, Any] = {"record": SCORE, "version": Version(load, save)}
        self.root, self.ran = root, list[str]()
        self.catalog = DataCatalog(
            {
                "params:start": MemoryDataset(start),
                "scores": RecordsDataset(filepath=str(root / "data/scores.jsonl"), **kept),
                "halved": RecordsDataset(filepath=str(root / "data/halved.jsonl"), **kept),
                "table": SealedDataset(
                    filepath=str(root / "data/table.json"), dataset={"type": "json.JSONDataset"}
                ),
                "page": SealedDataset(
                    filepath=str(root / "data/page.txt"), dataset={"type": "text.TextDataset"}
                ),
            }
        )

    def run(
        self,
        pipeline: Pipeline = PIPELINE,
        *,
        missing: bool = False,
        before: dict[str, Callable[[], Any]] | None = None,
    ) -> list[str]:
        """Run, doing something else just before some nodes; return the nodes that ran."""
        session = self

        class Meanwhile:
            @pluggy.HookimplMarker("kedro")
            def before_dataset_loaded(self, dataset_name: str, node: Any) -> None:
                (before or {}).pop(node.name, lambda: None)()

            @pluggy.HookimplMarker("kedro")
            def after_node_run(self, node: Any) -> None:
                session.ran.append(node.name)

        manager = pluggy.PluginManager("kedro")
        for specs in (NodeSpecs, PipelineSpecs, DatasetSpecs):
            manager.add_hookspecs(specs)
        for plugin in (Meanwhile(), FreshnessHook(), VersionsHook(), FolderLockHook()):
            manager.register(plugin)
        given = {
            "run_params": {"project_path": str(self.root), "only_missing_outputs": missing},
            "pipeline": pipeline,
            "catalog": self.catalog,
        }
        manager.hook.before_pipeline_run(**given)
        try:
            SequentialRunner().run(
                pipeline,
                self.catalog,
                manager,
                only_missing_outputs=missing,  # type: ignore[arg-type]
            )
        except Exception as error:
            manager.hook.on_pipeline_error(error=error, **given)
            raise
        manager.hook.after_pipeline_run(run_result={}, **given)
        return self.ran


@pytest.fixture(autouse=True)
def _unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs are of one thread; and the clock stands at the last stamp."""
    monkeypatch.setattr("rest_pg.storage.versions.generate_timestamp", lambda: STAMPS[6])


def value(root: Path, name: str, version: str) -> str:
    return (root / "data" / name / version / name).read_text()


@pytest.mark.parametrize("moment", ["score", "halve"])
def test_overlapping_runs_load_what_they_wrote_and_no_other_versions(
    tmp_path: Path, moment: str
) -> None:
    """The second starts later and ends while the first goes on: its versions are newer all along."""
    second = Session(tmp_path, STAMPS[1], start=8.0)
    Session(tmp_path, STAMPS[0], start=1.0).run(
        Pipeline(PIPELINE.nodes[:2]),
        before={moment: lambda: second.run(Pipeline(PIPELINE.nodes[:2]))},
    )
    assert '"reward": 0.5' in value(tmp_path, "halved.jsonl", STAMPS[0])
    assert '"reward": 4.0' in value(tmp_path, "halved.jsonl", STAMPS[1])


def test_what_a_run_does_not_write_is_as_it_was_at_its_start(tmp_path: Path) -> None:
    Session(tmp_path, STAMPS[0], start=1.0).run(Pipeline(PIPELINE.nodes[:1]))
    later = Session(tmp_path, STAMPS[2], start=8.0)
    part = Pipeline(PIPELINE.nodes[1:2])
    Session(tmp_path, STAMPS[1]).run(
        part, before={"halve": lambda: later.run(Pipeline(PIPELINE.nodes[:1]))}
    )
    assert '"reward": 0.5' in value(tmp_path, "halved.jsonl", STAMPS[1])


def test_what_was_not_there_at_the_start_is_not_taken_from_another_run(tmp_path: Path) -> None:
    other = Session(tmp_path, STAMPS[2], start=8.0)
    with pytest.raises(DatasetError, match="had none when this run started"):
        Session(tmp_path, STAMPS[1]).run(
            Pipeline(PIPELINE.nodes[1:2]),
            before={"halve": lambda: other.run(Pipeline(PIPELINE.nodes[:1]))},
        )


def test_a_file_without_versions_that_another_run_replaced_stops_the_run(tmp_path: Path) -> None:
    Session(tmp_path, STAMPS[0], start=1.0).run()
    other = Session(tmp_path, STAMPS[2], start=8.0)
    with pytest.raises(DatasetError, match="table was changed by another process"):
        Session(tmp_path, STAMPS[1], start=2.0).run(before={"write": other.run})


def test_a_version_that_is_asked_for_is_loaded(tmp_path: Path) -> None:
    for i in range(2):
        Session(tmp_path, STAMPS[i], start=float(i + 1)).run(Pipeline(PIPELINE.nodes[:1]))
    Session(tmp_path, STAMPS[3], load=STAMPS[0]).run(Pipeline(PIPELINE.nodes[1:2]))
    assert '"reward": 0.5' in value(tmp_path, "halved.jsonl", STAMPS[3])


def test_a_clock_that_was_set_back_is_named_before_any_work(tmp_path: Path) -> None:
    Session(tmp_path, STAMPS[7]).run(Pipeline(PIPELINE.nodes[:1]))
    late = Session(tmp_path, STAMPS[2])
    with pytest.raises(
        VersionInFuture, match=f"scores has the version {STAMPS[7]}.*says {STAMPS[6]}"
    ):
        late.run()
    assert late.ran == []
    with FolderLock(tmp_path / "data", "test"):  # the folder is free again
        pass
    # what only reads it is not held up
    assert Session(tmp_path, STAMPS[2]).run(Pipeline(PIPELINE.nodes[1:])) == [
        "halve",
        "tabulate",
        "write",
    ]


def test_a_session_that_was_opened_before_another_run_saves_under_a_newer_version(
    tmp_path: Path,
) -> None:
    Session(tmp_path, STAMPS[3], start=8.0).run(Pipeline(PIPELINE.nodes[:2]))
    Session(tmp_path, STAMPS[2], start=1.0).run(Pipeline(PIPELINE.nodes[:2]))
    assert '"reward": 0.5' in value(tmp_path, "halved.jsonl", STAMPS[6])


def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without pins, as all were, whose second node loads what another run has just written."""
    with monkeypatch.context() as unpinned:
        unpinned.setattr(hook_module, "pin_versions", lambda *given: None)
        unpinned.setattr(hook_module, "load_own", lambda dataset: None)
        other = Session(tmp_path, STAMPS[1], start=8.0)
        Session(tmp_path, STAMPS[0], start=1.0).run(
            before={"score": lambda: other.run(Pipeline(PIPELINE.nodes[:1]))}
        )
    assert '"reward": 4.0' in value(tmp_path, "halved.jsonl", STAMPS[0])


def test_a_mixture_is_made_again_by_the_run_that_it_was_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(tmp_path, monkeypatch)
    assert Session(tmp_path, STAMPS[2], start=1.0).run(missing=True) == [
        "score",
        "halve",
        "tabulate",
        "write",
    ]
    assert (tmp_path / "data/page.txt").read_text() == "0.500"
    assert Session(tmp_path, STAMPS[3], start=1.0).run(missing=True) == []


def test_a_mixture_with_equal_parameters_is_found_by_its_content(tmp_path: Path) -> None:
    """Two runs of one configuration may differ in bytes on a GPU; their origins do not."""
    Session(tmp_path, STAMPS[0]).run()
    scores = Session(tmp_path, STAMPS[1]).catalog.get("scores")
    scores.origin = scores.stored_origin()
    scores.save([Score(reward=6.0)])
    assert Session(tmp_path, STAMPS[2]).run(missing=True) == ["halve", "tabulate", "write"]
    assert (tmp_path / "data/page.txt").read_text() == "3.000"


def test_an_origin_that_does_not_say_what_was_loaded_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Session(tmp_path, STAMPS[0]).run()
    file = tmp_path / "data/halved.jsonl" / STAMPS[0] / "halved.jsonl.origin.json"
    file.write_text(file.read_text().replace('"contents"', '"contentz"'))
    assert Session(tmp_path, STAMPS[2]).run(missing=True) == ["halve"]
    text = file.read_text()
    file.write_text(text[: text.index('"contentz"')] + text[text.index('"inputs"') :])
    for path in (tmp_path / "data/halved.jsonl" / STAMPS[2]).iterdir():
        path.unlink()
    assert Session(tmp_path, STAMPS[3]).run(missing=True) == ["halve", "tabulate", "write"]


def elsewhere(action: Callable[[], object]) -> object:
    """What an action of another thread returns, or the refusal that it meets."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(action).result()
        except FolderInUse as error:
            return error


def test_a_second_run_is_refused_before_any_work_and_one_that_stores_nothing_is_not(
    tmp_path: Path,
) -> None:
    late = Session(tmp_path, STAMPS[0])
    unsaved = Pipeline([node(_scores, "params:start", "unsaved", name="score")])
    with FolderLock(tmp_path / "data", "kedro run"):
        assert isinstance(elsewhere(late.run), FolderInUse)
        assert late.ran == []
        assert elsewhere(lambda: Session(tmp_path, STAMPS[0]).run(unsaved)) == ["score"]
        assert elsewhere(late.catalog.get("page").exists) is False
        assert (tmp_path / "data/.lock").exists()
    assert elsewhere(Session(tmp_path, STAMPS[0]).run) == ["score", "halve", "tabulate", "write"]
    assert not (tmp_path / "data/.lock").exists()


def test_a_run_that_fails_gives_the_folder_back(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("in a node")

    with pytest.raises(ValueError, match="in a node"):
        Session(tmp_path, STAMPS[0]).run(before={"halve": fail})
    assert elsewhere(lambda: Session(tmp_path, STAMPS[1]).run()) == [
        "score",
        "halve",
        "tabulate",
        "write",
    ]


def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path: Path) -> None:
    def take() -> None:
        file = tmp_path / "data/.lock"
        file.write_text(file.read_text().replace('"token": "', '"token": "another'))

    with pytest.raises(FolderLost, match="Nothing more is written"):
        Session(tmp_path, STAMPS[0]).run(before={"halve": take})
    assert not (tmp_path / "data/halved.jsonl").exists()
    assert (tmp_path / "data/.lock").exists()


def test_the_stamps_are_kedros_own() -> None:
    assert len(generate_timestamp()) == len(STAMPS[0])
