"""Which nodes each parameter, file and piece of code makes run again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from pydantic import BaseModel

from rest_pg import pipeline_registry
from rest_pg.config import LongLampParams
from rest_pg.datasets import RecordsDataset
from rest_pg.freshness import Origin, backend_key, code_of, flatten, origins_of
from rest_pg.hooks import provenance
from rest_pg.hooks.provenance import FreshnessHook
from rest_pg.records import Document
from rest_pg.runtime.session import RunParameters

PROJECT = Path(__file__).parents[1]

FIRST = {
    "seed": [
        "create_examples",
        "count_records",
        "finetune",
        "sample_responses",
        "select_samples",
        "maximize",
        "sample_held_out",
        "create_results",
        "create_report",
    ],
    "passages": ["read_documents"],
    "bad_records": ["read_documents"],
    "examples": ["create_examples", "count_records"],
    "retrieval": ["retrieve_profiles", "describe_data", "finetune", "maximize"],
    "base_policy": ["import_policy"],
    "prompt": ["create_prompts", "create_direct_prompts"],
    "response_format": [
        "create_prompts",
        "create_sft_examples",
        "sample_responses",
        "create_training_examples",
        "evaluation.sft.sample_held_out",
        "evaluation.iteration_1.sample_held_out",
    ],
    "direct_response_format": ["create_direct_prompts", "evaluation.base.sample_held_out"],
    "sft": ["finetune"],
    "expectation": ["sample_responses"],
    "selection": ["select_samples"],
    "maximization": ["maximize"],
    "evaluation": ["sample_held_out", "create_results"],
}
"""The nodes that read each parameter, by hand; what follows from them is the graph's."""


def parameters() -> dict[str, Any]:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    return {**loader["parameters"], "n_iterations": 1}


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> tuple[Pipeline, DataCatalog]:
    """The whole method with one iteration, and the real catalog; nothing is loaded."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(RunParameters, "values", parameters())
    loader = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="local")
    catalog = DataCatalog.from_config(loader["catalog"])
    put(catalog, parameters())
    return pipeline_registry.register_pipelines()["__default__"], catalog


def put(catalog: DataCatalog, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        catalog[f"params:{name}"] = MemoryDataset(value)


def change(value: Any) -> Any:
    return {bool: lambda v: not v, str: lambda v: f"{v}!", type(None): lambda v: 1}.get(
        type(value), lambda v: v + 1
    )(value)


def with_leaf(values: Any, path: list[str], value: Any) -> Any:
    return {**values, path[0]: with_leaf(values[path[0]], path[1:], value)} if path else value


def test_each_parameter_makes_exactly_what_depends_on_it_stale(method) -> None:
    pipeline, catalog = method
    names = [n.name for n in pipeline.nodes]
    before = origins_of(pipeline, catalog)
    seen = set()
    for dotted, value in flatten({name: parameters()[name] for name in FIRST}).items():
        group = dotted.split(".")[0]
        put(catalog, with_leaf(parameters(), dotted.split("."), change(value)))
        after = origins_of(pipeline, catalog)
        reads = [n for n in names for f in FIRST[group] if n == f or n.endswith(f".{f}")]
        assert {n for n in names if before[n] != after[n]} == {
            n.name for n in pipeline.from_nodes(*reads).nodes
        }, dotted
        first = after[reads[0]].changes(before[reads[0]])
        assert first == [f"{dotted} was {value!r}, and is {change(value)!r}"]
        seen.add(group)
    used = {d.removeprefix("params:") for d in pipeline.inputs() if d.startswith("params:")}
    assert seen == used


def test_each_parameter_of_longlamp_makes_its_reading_stale(monkeypatch) -> None:
    monkeypatch.chdir(PROJECT)
    loader = OmegaConfigLoader(
        str(PROJECT / "conf"),
        base_env="base",
        default_run_env="longlamp",
        runtime_params={"longlamp_path": "DIR"},
    )
    values = {**loader["parameters"], "n_iterations": 1}
    monkeypatch.setattr(RunParameters, "values", values)
    catalog = DataCatalog.from_config(loader["catalog"])
    pipeline = pipeline_registry.register_pipelines()["__default__"]
    put(catalog, values)
    before = origins_of(pipeline, catalog)
    leaves = flatten({"longlamp": values["longlamp"]})
    assert len(leaves) == len(LongLampParams.model_fields) + 2  # max_examples has three
    for dotted, value in leaves.items():
        put(catalog, with_leaf(values, dotted.split("."), change(value)))
        after = origins_of(pipeline, catalog)
        assert {n for n in before if before[n] != after[n]} == {
            n.name for n in pipeline.from_nodes("read_examples").nodes
        }, dotted


OTHERS = {
    "study": 14,
    "exploration": 7,
    "starts": 6,
    "shuffled_profiles": 5,
    "forced_paths": 4,
    "path_effect": 5,
    "calibration": 2,
    "plan": 14,
    "inference": 5,
    "ship": 9,
}
"""Pipelines beside the method, and how many groups of parameters each reads of those that are configured."""


@pytest.mark.parametrize("name", OTHERS)
def test_each_parameter_of_another_pipeline_makes_exactly_what_reads_it_stale(
    method, name: str
) -> None:
    _, catalog = method
    pipeline = pipeline_registry.register_pipelines()[name]
    readers: dict[str, list[str]] = {}
    for own in pipeline.nodes:
        for source in own.inputs:
            if source.startswith("params:") and source.removeprefix("params:") in parameters():
                readers.setdefault(source.removeprefix("params:"), []).append(own.name)
    assert len(readers) == OTHERS[name]
    catalog["params:study_seeds.7"] = MemoryDataset(7)
    before = origins_of(pipeline, catalog)
    for dotted, value in flatten({group: parameters()[group] for group in readers}).items():
        put(catalog, with_leaf(parameters(), dotted.split("."), change(value)))
        after = origins_of(pipeline, catalog)
        behind = pipeline.from_nodes(*readers[dotted.split(".")[0]])
        assert {n for n in before if before[n] != after[n]} == {n.name for n in behind.nodes}, (
            dotted
        )


def test_another_iteration_makes_its_own_nodes_and_the_tables_stale(method, monkeypatch) -> None:
    pipeline, catalog = method
    before = origins_of(pipeline, catalog)
    monkeypatch.setattr(RunParameters, "values", parameters() | {"n_iterations": 2})
    after = origins_of(pipeline_registry.register_pipelines()["__default__"], catalog)
    new = {name for name in after if "iteration_2" in name}
    assert after.keys() - before.keys() == new
    assert len(new) == 8 + 5  # of an iteration, and of its evaluation
    assert {name for name in before if before[name] != after[name]} == {
        "evaluation.create_results",
        "evaluation.create_report",
        "evaluation.describe_run",
        "evaluation.log_results",
    }


def test_other_data_make_everything_but_the_base_policy_stale(monkeypatch) -> None:
    monkeypatch.chdir(PROJECT)
    found = []
    for environment in ("local", "longlamp"):
        loader = OmegaConfigLoader(
            str(PROJECT / "conf"),
            base_env="base",
            default_run_env=environment,
            runtime_params={"longlamp_path": "DIR"},
        )
        values = {**parameters(), "data_format": loader["parameters"]["data_format"]}
        values["longlamp"] = loader["parameters"].get("longlamp")
        monkeypatch.setattr(RunParameters, "values", values)
        catalog = DataCatalog.from_config(loader["catalog"])
        put(catalog, values)
        found.append(origins_of(pipeline_registry.register_pipelines()["__default__"], catalog))
    before, after = found
    assert {n for n in before if before[n] == after.get(n)} == {"import_policy"}


def test_a_model_counts_by_what_is_in_it(tmp_path: Path) -> None:
    """Not by when it was written, and not by its size: a fine-tuned one has the same."""
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    described = {"backend": "rest_pg.backends.judges.RubricJudge", "arguments": {}}
    described["arguments"] = {"model": str(weights.parent)}
    keys = []
    for content, time in ((b"one", 1e9), (b"one", 2e9), (b"two", 2e9)):
        weights.write_bytes(content)
        os.utime(weights, (time, time))
        keys.append(backend_key(described))
    assert keys[0] == keys[1] != keys[2]


def test_nothing_changes_where_nothing_was_changed(method) -> None:
    pipeline, catalog = method
    assert origins_of(pipeline, catalog) == origins_of(pipeline, catalog)


def test_a_template_and_a_back_end_count_and_where_work_is_kept_does_not(tmp_path: Path) -> None:
    template = tmp_path / "judge.jinja"
    template.write_text("one")
    arguments = {
        "engine": {"backend": "rest_pg.backends.judges.RubricJudge", "max_rows": 4},
        "template": str(template),
        "directory": "a",
    }
    described = {"backend": "rest_pg.backends.resumable.ResumableReward", "arguments": arguments}
    key = backend_key(described)
    assert key == backend_key(described | {"arguments": arguments | {"directory": "b"}})
    assert key == backend_key(described | {"arguments": arguments | {"stall_seconds": 9}})
    other = {**arguments, "engine": {**arguments["engine"], "max_rows": 5}}
    assert key != backend_key(described | {"arguments": other})
    template.write_text("two")
    assert key != backend_key(described)


def test_code_counts_and_its_comments_do_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for name, source in {
        "first_code": "def f():\n    return 1\n",
        "second_code": 'def f():\n    """Says."""\n    return 1  # one\n',
        "third_code": "def f():\n    return 2\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
        digests.append(code_of(__import__(name).f))
    assert digests[0] == digests[1] != digests[2]


def document(text: str) -> Document:
    return Document(user_id="a", document_id="a-1", text=text, title=None, date=None)


def chain(tmp_path: Path, size: int) -> tuple[Pipeline, DataCatalog]:
    """One parameter, two nodes behind each other, two files."""
    pipeline = Pipeline(
        [
            node(_repeat, ["params:size"], "first", name="first_node"),
            node(_copy, "first", "second", name="second_node"),
        ]
    )
    catalog = DataCatalog()
    catalog["params:size"] = MemoryDataset(size)
    for name in ("first", "second"):
        catalog[name] = RecordsDataset(
            filepath=str(tmp_path / f"{name}.jsonl"), record="rest_pg.records.Document"
        )
    return pipeline, catalog


def _repeat(size: int) -> list[Document]:
    return [document("x" * size)]


def _copy(first: list[Document]) -> list[Document]:
    return first


def run(tmp_path: Path, size: int) -> list[str]:
    """Go on with the chain; return what ran."""
    pipeline, catalog = chain(tmp_path, size)
    FreshnessHook().before_pipeline_run({"only_missing_outputs": True}, pipeline, catalog)
    ran = []
    for step in pipeline.nodes:
        if not all(catalog.exists(output) for output in step.outputs):
            loaded = {name: catalog.load(name) for name in step.inputs}
            for name, data in step.run(loaded).items():
                catalog.save(name, data)
            ran.append(step.name)
    return ran


def test_what_is_stale_runs_again_with_its_reason_and_what_is_not_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path, 1) == ["first_node", "second_node"]
    assert run(tmp_path, 1) == []
    with caplog.at_level("INFO", logger="rest_pg.hooks.provenance"):
        assert run(tmp_path, 2) == ["first_node", "second_node"]
    assert "what first_node made (size was 1, and is 2)" in caplog.text
    assert "and 1 nodes behind" in caplog.text
    assert run(tmp_path, 2) == []
    (tmp_path / "second.jsonl").unlink()
    assert run(tmp_path, 2) == ["second_node"]


class Size(BaseModel):
    times: int
    unit: int = 1


def _repeat_sized(size: Size) -> list[Document]:
    return _repeat(size.times)


def test_a_run_of_a_later_part_warns_of_what_was_changed_and_of_no_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, catalog = chain(tmp_path, 1)
    first = node(_repeat_sized, "params:size", "first", name="first_node")
    whole = Pipeline([first, *whole.only_nodes("second_node").nodes])
    catalog["params:size"] = MemoryDataset(Size(times=1))
    FreshnessHook().before_pipeline_run({}, whole, catalog)
    catalog.save("first", _repeat(1))
    monkeypatch.setattr(provenance, "pipelines", {"__default__": whole})
    # as Kedro has it for the nodes of another pipeline: without the model, so without its defaults
    catalog["params:size"] = MemoryDataset({"times": 1})
    for times, warned in ((1, False), (2, True)):
        monkeypatch.setattr(RunParameters, "values", {"size": Size(times=times)})
        FreshnessHook().before_pipeline_run({}, whole.only_nodes("second_node"), catalog)
        assert ("(size.times was 1, and is 2)" in caplog.text) == warned
        assert ("was run with something else" in caplog.text) == warned


def test_a_file_that_doesnt_say_what_made_it_is_made_anew(tmp_path: Path) -> None:
    run(tmp_path, 1)
    (tmp_path / "first.jsonl.origin.json").write_text("{}")
    assert run(tmp_path, 1) == ["first_node"]


def test_an_origin_survives_its_file() -> None:
    origin = Origin("c", {"a.b": 1.5, "c": None}, {"x": "d"})
    assert Origin.from_json(origin.to_json()) == origin
    assert origin.digest != Origin("c", {"a.b": 1.5, "c": None}, {"x": "e"}).digest
