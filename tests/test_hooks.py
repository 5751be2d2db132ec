import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import build_policy
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from mlflow.tracking import MlflowClient
from pluggy import PluginManager

from rest_pg.backends.judges import RubricJudge
from rest_pg.checksums import COMPLETE
from rest_pg.config import (
    Decoding,
    ExampleParams,
    ExpectationParams,
    LongLampParams,
    MaximizationParams,
    PreferenceParams,
    SelectionParams,
)
from rest_pg.datasets import PolicyDataset
from rest_pg.datasets.mlflow import DescriptionDataset
from rest_pg.datasets.sources.documents import DocumentsDataset
from rest_pg.hooks import mlflow_run
from rest_pg.hooks.directory import DirectoryHook
from rest_pg.hooks.interrupt import InterruptedRun, InterruptHook
from rest_pg.hooks.mlflow_run import ForeignRun, MlflowLastHook, MlflowRunHook, MlflowStoreHook
from rest_pg.hooks.parameters import EnvironmentHook, ParametersHook
from rest_pg.hooks.provenance import LineageHook, git_commit
from rest_pg.hooks.selection import SelectionHook
from rest_pg.runtime.session import RunParameters
from rest_pg.settings import CONFIG_LOADER_ARGS


@pytest.fixture
def store(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("t", artifact_location=str(tmp_path / "artifacts"))
    mlflow.set_experiment("t")
    yield
    while mlflow.active_run():
        mlflow.end_run()
    ForeignRun.note()


def test_parameters_are_flat_and_a_changed_one_becomes_a_tag(store, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", {"sft": {"epochs": 2}, "long": "x" * 900})
    with mlflow.start_run() as run:
        ParametersHook().before_pipeline_run()
    monkeypatch.setattr(RunParameters, "values", {"sft": {"epochs": 3}})
    with mlflow.start_run(run_id=run.info.run_id):
        ParametersHook().before_pipeline_run()
    data = mlflow.get_run(run.info.run_id).data
    assert data.params == {"sft.epochs": "2"}
    assert data.tags["param.sft.epochs"] == "3"
    assert data.tags["param.long"] == "x" * 900


def test_a_run_is_tagged_with_code_data_and_policies(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", {"data_format": "documents"})
    git = shutil.which("git")
    assert git is not None
    (tmp_path / "raw.jsonl").write_text("{}")
    commands = (
        ["init", "-q"],
        ["add", "raw.jsonl"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one"],
    )
    for arguments in commands:
        subprocess.run([git, "-C", str(tmp_path), *arguments], check=True)
    catalog = DataCatalog()
    catalog["raw_documents"] = DocumentsDataset(filepath=str(tmp_path / "raw.jsonl"))
    catalog["policy_1"] = PolicyDataset(filepath=str(tmp_path / "policies"))
    pipeline = Pipeline([node(lambda r: r, "raw_documents", "policy_1", name="n")])
    hook, given = LineageHook(), {"project_path": str(tmp_path)}
    built = build_policy(tmp_path / "built")
    with mlflow.start_run() as run:
        hook.before_pipeline_run(given, pipeline, catalog)
        catalog.save("policy_1", built)
        hook.after_dataset_saved("policy_1", built)
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert re.fullmatch("[0-9a-f]{12}", tags["git_commit"])
    assert re.fullmatch("raw_documents [0-9a-f]{16}", tags["data_version"])
    assert tags["pipelines"] == "__default__"
    marker = (tmp_path / "policies" / COMPLETE).read_bytes()
    assert tags["policy.policy_1"] == hashlib.sha256(marker).hexdigest()[:12]
    (tmp_path / "raw.jsonl").write_text("{ }")
    assert git_commit(tmp_path) == tags["git_commit"] + "+"


def test_a_run_is_described_once_its_result_is_known(store) -> None:
    dataset = DescriptionDataset()
    dataset.save("nobody reads this: there is no run")
    with mlflow.start_run() as run:
        assert not dataset.exists()
        dataset.save("**It improves.**")
        assert dataset.exists()
    assert mlflow.get_run(run.info.run_id).data.tags["mlflow.note.content"] == "**It improves.**"


@pytest.mark.parametrize(
    ("rejected", "preference", "budget", "refused"),
    [
        (0, None, 1, None),
        (1, PreferenceParams(beta=0.1, likelihood=0.2), 2, None),
        (1, None, 2, "rejected_per_prompt=1 .* set it to 0"),
        (0, PreferenceParams(beta=0.1, likelihood=0.2), 2, "rejected_per_prompt=0 .* null"),
        (1, PreferenceParams(beta=0.1, likelihood=0.2), 1, "samples_per_prompt=1 leaves no pair"),
    ],
)
def test_pairs_are_selected_and_learnt_from_or_the_run_doesnt_start(
    rejected, preference, budget, refused
) -> None:
    selection = SelectionParams(
        threshold=0.0,
        relative_to="prompt_mean",
        max_per_prompt=1,
        weighting="uniform",
        rejected_per_prompt=rejected,
    )
    maximization = MaximizationParams.model_validate(
        {"start": "sft", "epochs": 1, "batch_size": 1, "learning_rate": 1e-3, "max_tokens": 64}
        | {"preference": preference}
    )
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    expectation = ExpectationParams.model_validate(
        {"samples_per_prompt": budget, "decoding": decoding}
    )
    names = ["params:selection", "params:maximization", "params:expectation"]
    values = (selection, maximization, expectation)
    catalog = DataCatalog({k: MemoryDataset(v) for k, v in zip(names, values, strict=True)})
    pipeline = Pipeline([node(lambda a, b, c: a, names, "x", name="n")])
    if refused:
        with pytest.raises(ValueError, match=refused):
            SelectionHook().before_pipeline_run(pipeline, catalog)
    else:
        SelectionHook().before_pipeline_run(pipeline, catalog)


def test_a_failure_says_how_to_go_on_and_leaves_no_run_open(store, caplog) -> None:
    run = mlflow.start_run()
    with caplog.at_level("INFO", logger=mlflow_run.__name__):
        MlflowRunHook().before_pipeline_run()
        assert caplog.messages == [
            f"MLflow run {run.info.run_name}, mlflow_run_id={run.info.run_id}"
        ]
        MlflowRunHook().on_pipeline_error(
            ValueError("no disk"),
            {"env": "own", "pipeline_names": ["sft"], "runtime_params": {"seed": 3}},
        )
    MlflowLastHook().on_pipeline_error(ValueError("no disk"))
    assert (
        "kedro run --only-missing-outputs --env own --pipelines sft "
        f"--params seed=3,mlflow_run_id={run.info.run_id}"
    ) in caplog.text
    assert mlflow.active_run() is None
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"


@pytest.fixture
def heard() -> Iterator[None]:
    """Python's own handling of Ctrl-C, which a shell takes from background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_run_as_an_error_does_and_a_second_one_at_once(heard) -> None:
    hook = InterruptHook()
    hook.before_pipeline_run()
    with pytest.raises(InterruptedRun, match="SIGINT") as stopped:
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.exit_code == 130
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    hook.before_pipeline_run()
    hook.after_pipeline_run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_background_job_goes_on_ignoring_ctrl_c(heard) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hook = InterruptHook()
    hook.before_pipeline_run()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    hook.after_pipeline_run()


def test_a_stopped_run_is_no_failed_one(store) -> None:
    run = mlflow.start_run()
    MlflowLastHook().on_pipeline_error(InterruptedRun(signal.SIGTERM))
    assert mlflow.get_run(run.info.run_id).info.status == "KILLED"


def test_each_training_seed_is_where_its_namespace_looks(monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", {"study": {"seeds": [3, 5]}})
    catalog = DataCatalog()
    ParametersHook().after_catalog_created(catalog)
    assert [catalog.load(f"params:study_seeds.{seed}") for seed in (3, 5)] == [3, 5]


@pytest.mark.parametrize(("threshold", "refused"), [(0.75, False), (0.76, True)])
def test_no_sample_is_further_above_its_prompts_mean_than_the_others_allow(
    threshold: float, refused: bool
) -> None:
    selection = SelectionParams(
        threshold=threshold, relative_to="prompt_mean", max_per_prompt=1, weighting="uniform"
    )
    catalog = DataCatalog()
    catalog["params:selection"] = selection
    catalog["params:expectation"] = ExpectationParams(
        samples_per_prompt=4, decoding=Decoding(temperature=1, top_p=1, max_new_tokens=8)
    )  # rewards 1, 0, 0 and 0: 1 is 0.75 above their mean
    names = ["params:selection", "params:expectation"]
    pipeline = Pipeline([node(lambda s, e: s, names, "x", name="n")])
    if refused:
        with pytest.raises(ValueError, match=r"threshold=0.76 can keep nothing.*=4 .*0.75 above"):
            SelectionHook().before_pipeline_run(pipeline, catalog)
    else:
        SelectionHook().before_pipeline_run(pipeline, catalog)


@pytest.mark.parametrize(
    ("aggregation", "threshold", "relative_to", "refused"),
    [
        ("expected", 1.0, "zero", True),
        ("expected", 0.9, "zero", False),
        ("expected", 1.0, "prompt_mean", False),
        ("argmax", 1.0, "zero", False),
    ],
)
def test_a_threshold_that_keeps_nothing_is_refused_before_any_work(
    tmp_path, aggregation: str, threshold: float, relative_to: str, refused: bool
) -> None:
    (tmp_path / "judge.jinja").write_text("{{ response }}")
    judge = RubricJudge(template=str(tmp_path / "judge.jinja"), aggregation=aggregation)
    selection = SelectionParams(
        threshold=threshold, relative_to=relative_to, max_per_prompt=1, weighting="uniform"
    )
    catalog = DataCatalog()
    catalog["reward"] = MemoryDataset(judge, copy_mode="assign")
    catalog["params:selection"] = selection
    pipeline = Pipeline([node(lambda r, s: r, ["reward", "params:selection"], "x", name="n")])
    if refused:
        with pytest.raises(ValueError, match=r"threshold=1.0 can keep nothing.*argmax"):
            SelectionHook().before_pipeline_run(pipeline, catalog)
    else:
        SelectionHook().before_pipeline_run(pipeline, catalog)


@pytest.mark.parametrize(("env", "typed"), [("longlamp", True), ("tests", False)])
def test_parameters_are_typed_by_the_pipelines_of_their_environment(
    env, typed, monkeypatch
) -> None:
    """Whatever pipelines were there before the session knew its environment."""
    project = Path(__file__).parents[1]
    monkeypatch.setattr(RunParameters, "values", None)
    monkeypatch.chdir(project)
    bootstrap_project(project)
    assert "create_examples" in {node.name for node in pipelines["data_ingestion"].nodes}
    context = KedroContext(
        project_path=project,
        config_loader=OmegaConfigLoader(str(project / "conf"), env=env, **CONFIG_LOADER_ARGS),
        env=env,
        package_name="rest_pg",
        hook_manager=PluginManager("kedro"),
    )
    ParametersHook().after_context_created(context)
    assert isinstance(context.params.get("longlamp"), LongLampParams) is typed
    assert isinstance(context.params["examples"], ExampleParams) is not typed


PROJECT = Path(__file__).parents[1]


def context(
    env: str | None = None, conf: Path = PROJECT / "conf", **runtime: object
) -> KedroContext:
    loader = OmegaConfigLoader(str(conf), env=env, runtime_params=runtime, **CONFIG_LOADER_ARGS)
    return KedroContext(
        project_path=conf.parent,
        config_loader=loader,
        env=env,
        package_name="rest_pg",
        hook_manager=PluginManager("kedro"),
        runtime_params=runtime,
    )


@pytest.mark.parametrize(
    ("env", "given", "said"),
    [
        (None, {"n_iteration": 3}, r"n_iteration \(--params\): did you mean n_iterations"),
        (None, {"seeed": 8}, r"seeed \(--params\): did you mean seed,"),
        (None, {"sft": {"epoch": 3}}, r"sft.epoch \(--params\): did you mean sft.epochs"),
        (None, {"sft": {"lora": {"rank": 3}}}, r"sft.lora.rank \(--params\)"),
        (None, {"epochs": 3}, r"epochs .* did you mean (sft|maximization).epochs"),
        (None, {"seed": {"x": 3}}, r"seed.x \(--params\)"),
        (None, {"unheard": {"of": 1}}, r"unheard.of \(--params\)"),
        (
            None,
            {"expectation": {"decoding": {"top_pp": 1}}},
            "did you mean expectation.decoding.top_p",
        ),
        (None, {"examples": {"examples_per_user": {"trian": 3}}}, "examples_per_user.train"),
        (None, {"experiments": {"path_effect": {"path": 3}}}, "experiments.path_effect.paths"),
        (None, {"mail": "x"}, "which only --env mail reads"),
        ("own", {"documents": 2024}, "documents is a text, and 2024 is none"),
        ("own", {"documents": False}, "documents is a text, and False is none"),
        ("longlamp", {"longlamp_path": 83}, "longlamp_path is a text"),
        (None, {"policy": 1.0}, "policy is a text"),
    ],
)
def test_a_parameter_that_does_not_exist_stops_a_session(env, given, said, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", None)
    with pytest.raises(ValueError, match=said):
        ParametersHook().after_context_created(context(env, **given))
    assert RunParameters.values is None


@pytest.mark.parametrize("env", sorted(p.name for p in (PROJECT / "conf").iterdir() if p.is_dir()))
def test_every_parameter_of_every_environment_exists(env: str, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "values", None)
    given = {
        "mlflow_run_id": "0a",
        "world_size": 2,
        "policy": None,
        "requests": "r.jsonl",
        "sft": {"lora": None, "optimizer": "adafactor", "max_steps": 3},
        "plan": {"judge": {"hidden_size": 3}},
        "longlamp": {"task": "mixed"},
    }
    ParametersHook().after_context_created(context(env, **given))


def test_a_misspelt_parameter_of_an_environment_s_file_is_refused(tmp_path) -> None:
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "own" / "parameters_more.yml").write_text("sft: {epoch: 3}\n_anchor: 1\n")
    with pytest.raises(ValueError, match=r"sft.epoch \(conf/own\): did you mean sft.epochs"):
        ParametersHook().after_context_created(context("own", tmp_path / "conf"))


def test_the_groups_are_those_of_the_pipelines_nodes() -> None:
    """A model that is missing from GROUPS would leave its names unchecked."""
    from typing import get_type_hints

    from rest_pg.config import GROUPS, Params

    bootstrap_project(PROJECT)
    for node_ in sum(pipelines.values(), Pipeline([])).nodes:
        function = getattr(node_.func, "func", node_.func)
        try:
            hints = get_type_hints(function)
        except TypeError:
            continue
        names = [hint for hint in hints.items() if isinstance(hint[1], type)]
        typed = {name for name, kind in names if issubclass(kind, Params)}
        for name in node_.inputs:
            key = name.removeprefix("params:")
            if name != key and key in typed:
                assert GROUPS[key] is hints[key], key


@pytest.mark.parametrize(
    ("env", "said"), [("tets", "Did you mean tests"), ("zzz", "It has base, cluster")]
)
def test_an_environment_that_does_not_exist_is_refused(env: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"there is no environment {env!r}.*{said}"):
        EnvironmentHook().after_context_created(context(env))
    EnvironmentHook().after_context_created(context("own"))
    EnvironmentHook().after_context_created(context(None))


def test_another_ones_run_stays_open(store) -> None:
    with mlflow.start_run() as theirs:
        MlflowStoreHook().after_context_created(context())
        with mlflow.start_run(nested=True) as ours:
            MlflowLastHook().on_pipeline_error(ValueError("no disk"))
        assert mlflow.active_run().info.run_id == theirs.info.run_id
        MlflowRunHook().after_pipeline_run()
        assert mlflow.active_run().info.run_id == theirs.info.run_id
        command = MlflowRunHook()
        command.on_pipeline_error(ValueError("no disk"), {})
    assert mlflow.get_run(ours.info.run_id).info.status == "FAILED"
    assert mlflow.get_run(theirs.info.run_id).info.status == "FINISHED"


def test_a_run_that_is_refused_before_its_first_node_is_a_failed_one(store) -> None:
    run = mlflow.start_run()
    before = MlflowLastHook().before_pipeline_run()
    next(before)
    with pytest.raises(ValueError, match="refused"):
        before.throw(ValueError("refused"))
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"


def test_the_database_is_the_projects_unless_the_environment_names_one(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def found() -> tuple[str, str, bool]:
        created = context()
        MlflowStoreHook().after_context_created(created)
        settings = created.config_loader["mlflow"]
        experiment = settings["tracking"]["experiment"]
        place = "artifact_location" in experiment["create_experiment_kwargs"]
        return settings["server"]["mlflow_tracking_uri"], experiment["name"], place

    own = (f"sqlite:///{PROJECT}/mlflow.db", "rest-pg", True)
    assert found() == own
    # MLflow puts what it is told into the environment: that is no wish of the user's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own[0])
    assert found() == own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert found() == (f"sqlite:///{tmp_path}/other.db", "mine", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert found() == ("http://127.0.0.1:5000", "mine", False)


@pytest.mark.parametrize("damage", ["noise", "cut", "directory"])
def test_a_damaged_database_is_named_with_its_remedy(store, tmp_path, monkeypatch, damage) -> None:
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    MlflowStoreHook().after_context_created(context())
    whole = database.read_bytes()
    if damage == "noise":
        database.write_bytes(b"\0" * 4096 + whole[4096:])
    elif damage == "cut":
        database.write_bytes(whole[: len(whole) // 2])
    else:
        database.unlink()
        database.mkdir()
    with pytest.raises(ValueError, match=rf"{database} is damaged .* Move it away \(mv "):
        MlflowStoreHook().after_context_created(context())


def test_a_new_database_is_whole_or_not_there(tmp_path, monkeypatch) -> None:
    """A run that is killed while MLflow makes its tables leaves nothing that MLflow can't open."""
    database = tmp_path / "new" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            MlflowStoreHook().after_context_created(context())
    assert list(database.parent.iterdir()) == []
    MlflowStoreHook().after_context_created(context())
    assert list(database.parent.iterdir()) == [database]
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    assert [e.name for e in client.search_experiments()] == ["Default"]


def test_a_run_works_in_the_project_and_returns(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(RunParameters, "project", None)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    hook = DirectoryHook()
    for end in (hook.after_pipeline_run, hook.on_pipeline_error):
        before = hook.before_pipeline_run({"project_path": str(tmp_path)})
        next(before)
        assert Path.cwd() == tmp_path
        with pytest.raises(StopIteration):
            before.send(None)
        end()
        assert Path.cwd() == tmp_path / "notebooks"
    before = hook.before_pipeline_run({"project_path": str(tmp_path)})
    next(before)
    with pytest.raises(ValueError, match="refused"):
        before.throw(ValueError("refused"))
    assert Path.cwd() == tmp_path / "notebooks"
