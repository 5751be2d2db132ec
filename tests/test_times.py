import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from trust.conftest import node_of

from rest_pg import usage
from rest_pg.times import (
    TIME_COLUMNS,
    Place,
    RunTimes,
    configuration_of,
    in_words,
    places_of,
    seconds_left,
    side_by_side,
)
from rest_pg.usage import UsageHook


def step(name: str, source: str) -> Pipeline:
    return Pipeline([node(lambda x: x, source, f"{name}.out", name=name)])


SFT = step("sft.finetune", "start")
TRAINING = step("iteration_1.sample", "sft.finetune.out") + step(
    "iteration_2.sample", "iteration_1.sample.out"
)
METHOD = {"data_ingestion": Pipeline([]), "sft": SFT, "self_training": TRAINING}


def test_a_node_knows_where_it_stands() -> None:
    places = places_of(SFT + TRAINING, METHOD)
    assert places["iteration_1.sample"] == Place(
        node="iteration_1.sample",
        number=2,
        n_nodes=3,
        stage="self_training",
        stage_number=2,  # data_ingestion isn't run
        n_stages=2,
        iteration=1,
        n_iterations=2,
    )
    assert places["iteration_1.sample"].describe(240) == (
        "stage 2 of 2 · iteration 1 of 2 · iteration_1.sample (2 of 3 nodes, about 4.0 minutes left)"
    )
    assert places["sft.finetune"].describe() == "stage 1 of 2 · sft.finetune (1 of 3 nodes)"
    assert [p.part for p in places.values()] == [
        "sft",
        "self_training, iteration 1",
        "self_training, iteration 2",
    ]
    # as the tests of faults read it
    assert [node_of(f"12:00:00  ── {p.describe(5)}") for p in places.values()] == list(places)
    alone = places_of(step("audit.look", "start"), METHOD)["audit.look"]
    assert (alone.describe(), alone.part) == ("audit.look (1 of 1 nodes)", "audit")


def test_times_in_words() -> None:
    assert [in_words(s) for s in (40, 300, 7200)] == ["40 s", "5.0 minutes", "2.0 hours"]


def test_time_left_worked_by_hand() -> None:
    expected = {"a": 40.0, "b": 60.0, "c": 100.0}  # a tenth of it: 20
    assert seconds_left(expected, {}, ["a", "b", "c"]) == 200
    # a took 100 in place of 40: (100 + 20) / (40 + 20) = 2
    assert seconds_left(expected, {"a": 100.0, "other": 5.0}, ["b", "c"]) == 320
    assert seconds_left({}, {"a": 3.0}, ["b"]) is None


ESTIMATE = pd.DataFrame(
    [["a", "sft", 40.0], ["b", "sft", 60.0], ["c", "evaluation", 10.0], ["d", "evaluation", 1.0]],
    columns=["node", "part", "seconds"],
)


def test_estimate_and_time_side_by_side_worked_by_hand() -> None:
    measured = pd.DataFrame(
        [
            ["a", "sft", 50.0, True],
            ["b", "sft", 70.0, True],
            ["small", "sft", 5.0, True],
            ["c", "evaluation", 9.0, True],
            ["d", "evaluation", 1.0, False],
        ],
        columns=TIME_COLUMNS,
    )
    table = side_by_side(ESTIMATE, measured).set_index("part")
    assert table.loc["sft"].tolist() == [100, 125, 1.25]
    assert table.loc["evaluation"].tolist() == [10, 9, 0.9]  # d isn't finished
    assert table.loc["all"].tolist() == [110, 134, round(134 / 110, 3)]


def test_the_report_reads_the_times_of_its_run(tmp_path) -> None:
    assert RunTimes(str(tmp_path)).read().empty
    kept = side_by_side(ESTIMATE, pd.DataFrame([["a", "sft", 50.0, True]], columns=TIME_COLUMNS))
    kept.to_csv(tmp_path / "estimate_and_time.csv", index=False)
    assert RunTimes(str(tmp_path)).read().equals(kept)


class Clock:
    """A run of a small pipeline, whose nodes take as long as they are said to."""

    def __init__(self, monkeypatch, catalog: DataCatalog) -> None:
        self.now, self.catalog = 0.0, catalog
        monkeypatch.setattr(usage.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(usage, "pipelines", METHOD)

    def run(self, seconds: dict[str, float], failing: str = "", *, goes_on: bool = False) -> None:
        hook, pipeline = UsageHook(), SFT + TRAINING
        hook.before_pipeline_run({"only_missing_outputs": goes_on}, pipeline, self.catalog)
        for one in (n for n in pipeline.nodes if n.name in seconds):
            hook.before_node_run(one)
            self.now += seconds[one.name]
            if one.name == failing:
                hook.on_node_error(one)
                hook.on_pipeline_error()
                return
            hook.after_node_run(one)
        hook.after_pipeline_run()

    def times(self) -> list[list[object]]:
        return self.catalog.load("node_seconds").values.tolist()


@pytest.fixture
def catalog() -> DataCatalog:
    catalog = DataCatalog({n: MemoryDataset() for n in ("node_seconds", "estimate_and_time")})
    catalog["parameters"] = {"seed": 7, "log": "text"}
    return catalog


def test_a_run_that_goes_on_counts_what_its_interruption_cost(monkeypatch, catalog) -> None:
    clock = Clock(monkeypatch, catalog)
    clock.run({"sft.finetune": 20, "iteration_1.sample": 7}, failing="iteration_1.sample")
    assert clock.times() == [
        ["sft.finetune", "sft", 20, True],
        ["iteration_1.sample", "self_training, iteration 1", 7, False],
    ]
    clock.run({"iteration_1.sample": 5, "iteration_2.sample": 4}, goes_on=True)
    assert [row[2:] for row in clock.times()] == [[20, True], [12, True], [4, True]]
    clock.run({"iteration_1.sample": 6})  # anew
    assert (
        dict(zip(*zip(*((r[0], r[2]) for r in clock.times()), strict=True), strict=True))[
            "iteration_1.sample"
        ]
        == 6
    )


def test_an_estimate_of_this_configuration_is_laid_beside_the_run(
    monkeypatch, catalog, caplog
) -> None:
    caplog.set_level("INFO", logger="rest_pg")
    clock = Clock(monkeypatch, catalog)
    estimate = pd.DataFrame({"node": ["sft.finetune"], "part": ["sft"], "seconds": [10.0]})
    catalog["estimate"] = estimate.assign(configuration="another")
    clock.run({"sft.finetune": 20})
    assert not catalog["estimate_and_time"].exists()
    catalog["estimate"] = estimate.assign(configuration=configuration_of(catalog))
    clock.run({"sft.finetune": 20})
    table = catalog.load("estimate_and_time")
    assert table["ratio"].tolist() == [2, 2]
    started = [r.fields for r in caplog.records if r.message.startswith("── ")]
    assert [event["seconds_left"] for event in started] == [None, 10]
    catalog["estimate"] = estimate.assign(configuration="another")
    clock.run({"sft.finetune": 20})
    assert catalog.load("estimate_and_time").empty  # the run before's must not stand there


def test_the_report_shows_what_is_known_when_it_is_written(monkeypatch, catalog) -> None:
    clock = Clock(monkeypatch, catalog)
    estimate = pd.DataFrame({"node": ["sft.finetune"], "part": ["sft"], "seconds": [10.0]})
    catalog["estimate"] = estimate.assign(configuration=configuration_of(catalog))
    report = Pipeline([node(lambda x: x, "sft.finetune.out", "report", name="create_report")])
    hook = UsageHook()
    hook.before_pipeline_run({}, SFT + report, catalog)
    finetune, create_report = (SFT + report).nodes
    hook.before_node_run(finetune)
    clock.now += 20
    hook.after_node_run(finetune)
    assert not catalog["estimate_and_time"].exists()
    hook.before_node_run(create_report)
    assert catalog.load("estimate_and_time")["ratio"].tolist() == [2, 2]


def test_where_the_log_goes_changes_no_estimate_and_a_seed_does(catalog) -> None:
    before = configuration_of(catalog)
    catalog["parameters"] = {"seed": 7, "log": "json", "mlflow_run_id": "x"}
    assert configuration_of(catalog) == before
    catalog["parameters"] = {"seed": 8, "log": "text"}
    assert configuration_of(catalog) != before
