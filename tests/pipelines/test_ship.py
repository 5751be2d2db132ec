import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
import uvicorn
import yaml
from conftest import build_policy, document, example
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from load import ask, load, request
from mlflow.tracking import MlflowClient
from starlette.testclient import TestClient

from rest_pg.config import (
    BasePolicyParams,
    Decoding,
    EvaluationParams,
    MaximizationParams,
    PromptParams,
    ResponseFormat,
    RetrievalParams,
    SelectionParams,
    ShipParams,
)
from rest_pg.datasets import BackendDataset, PolicyDataset
from rest_pg.pipelines.data_ingestion.statistics import describe_data
from rest_pg.pipelines.inference.pipeline import create_pipeline as create_inference
from rest_pg.pipelines.ship.nodes import compare, gather_settings, score_by_example
from rest_pg.pipelines.ship.pipeline import create_pipeline
from rest_pg.records import PolicyCheckpoint
from rest_pg.serving.entrypoint import create_app, most_bytes
from rest_pg.serving.writer import WriterSettings

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "shipping.md").read_text(encoding="utf-8")
TEMPLATE = "instruction: {{ instruction }}\ncontext: {{ context }}\nanswer:"
EVALUATION = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=0.95, max_new_tokens=8),
    n_bootstrap=200,
)
SHIP = ShipParams(
    name="writer",
    limits={"max_requests": 2, "max_documents": 4, "max_characters": 600},
    traces=False,
    license="apache-2.0",
    data_license="unknown",
    language="en",
)
ENGINE = {
    "backend": "rest_pg.backends.shared_prefix.SharedPrefixGenerator",
    "arguments": {"max_rows": 2, "dtype": "float32"},
}
REWARD = {
    "backend": "rest_pg.backends.rewards.CompositeReward",
    "arguments": {"weights": {"rouge_1": 1.0}},
}
REQUEST = {"user": "zoe", "request": "Write about the pier.", "documents": ["The pier.", "Hills."]}


def metrics(rewards: list[float]) -> pd.DataFrame:
    rows = [
        {"user_id": f"u{i // 2}", "example_id": f"e{i}", "split": "validation", "reward": reward}
        for i, reward in enumerate(rewards)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def sealed_policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyCheckpoint:
    place = tmp_path_factory.mktemp("sealed")
    dataset = PolicyDataset(filepath=str(place / "policy_1"))
    dataset.save(build_policy(place / "built"))
    return dataset.load()


class Kept(MemoryDataset):
    """Stays after the nodes that read it."""

    def _release(self) -> None:
        pass


def ship(
    policy: PolicyCheckpoint, rewards: list[float], reward: dict[str, Any] = REWARD
) -> dict[str, Any]:
    """Run the whole pipeline in an MLflow run; return what it registered, its trace and its cards."""
    validation = example(
        1, split="validation", profile=(document(1, "The pier."), document(2, "Hills."))
    )
    result = {"mean": 0.3, "ci_low": 0.2, "ci_high": 0.4, "n_users": 6, "n_examples": 12}
    results = pd.DataFrame(
        [
            {"system": "iteration_1", "split": "test", "metric": "reward"} | result,
            {"system": "iteration_1", "split": "test", "metric": "reward_minus_sft"}
            | result
            | {"ci_low": -0.1},
        ]
    )
    retriever = BackendDataset(backend="rest_pg.backends.retrievers.Bm25Retriever").load()
    values = {
        "policy_1": policy,
        "retriever": retriever,
        "generator": BackendDataset(
            backend="rest_pg.backends.resumable.ResumableGenerator",
            arguments={"generator": ENGINE, "directory": "not used by what is served"},
        ).load(),
        "reward": BackendDataset(**reward).load(),
        "response_template": TEMPLATE,
        "examples": [validation],
        "results": results,
        "data_statistics": describe_data([validation], RetrievalParams(k=2)),
        "evaluation.iteration_1.metrics": metrics(rewards),
        "params:retrieval": RetrievalParams(k=2),
        "params:prompt": PromptParams(max_tokens=200, system=""),
        "params:response_format": ResponseFormat(reasoning=False),
        "params:evaluation": EVALUATION,
        "params:base_policy": BasePolicyParams(source="embedded"),
        "params:selection": SelectionParams(
            threshold=0.0, relative_to="prompt_mean", max_per_prompt=1, weighting="uniform"
        ),
        "params:maximization": MaximizationParams(
            start="sft", epochs=1, batch_size=1, learning_rate=1e-4, max_tokens=64
        ),
        "params:ship": SHIP,
        "params:seed": 7,
    }
    catalog = DataCatalog({k: MemoryDataset(v, copy_mode="assign") for k, v in values.items()})
    catalog["ship.registered_model"] = Kept(copy_mode="assign")
    with mlflow.start_run():
        outputs = SequentialRunner().run(create_pipeline("policy_1"), catalog)
    kept = {"ship.registered_model": catalog.load("ship.registered_model")}
    return kept | {name: dataset.load() for name, dataset in outputs.items()}


@pytest.fixture(scope="module")
def shipped(
    sealed_policy: PolicyCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """Shipped in turn: the first, one that isn't certainly better, one that is, and one judged otherwise."""
    before = mlflow.get_tracking_uri()
    home = tmp_path_factory.mktemp("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("ship", artifact_location=str(home / "artifacts"))
    )
    rewards = [0.1, 0.2, 0.3, 0.4]
    yield [
        ship(sealed_policy, rewards),
        ship(sealed_policy, [0.2, 0.1, 0.4, 0.3]),
        ship(sealed_policy, [reward + 0.05 for reward in rewards]),
        ship(sealed_policy, [0.9] * 4, REWARD | {"arguments": {"weights": {"rouge_l": 1.0}}}),
    ]
    mlflow.set_tracking_uri(before)


def test_only_a_certain_gain_makes_a_champion(shipped: list[dict[str, Any]]) -> None:
    registered = [found["ship.registered_model"] for found in shipped]
    assert [r["version"] for r in registered] == ["1", "2", "3", "4"]
    assert [r["aliases"] for r in registered] == [
        ["newest", "champion"],
        ["newest"],
        ["newest", "champion"],
        ["newest"],
    ]
    assert "it stays" in registered[1]["verdict"]
    assert registered[2]["verdict"].startswith("+0.0500 [+0.0500, +0.0500] over the champion, ver")
    assert "it was scored by another reward" in registered[3]["verdict"]
    assert "version 4 of writer, as newest" in shipped[3]["shipping_description"]
    client = MlflowClient()
    assert client.get_model_version_by_alias("writer", "champion").version == 3
    first = client.get_model_version("writer", "1")
    assert first.tags["policy"] == registered[0]["policy"]
    assert first.description.startswith("# writer")


def test_neither_other_examples_nor_a_single_user_make_a_champion() -> None:
    own, other = score_by_example(metrics([0.1, 0.2])), score_by_example(metrics([0.1]))
    verdict, won = compare(own, other, EVALUATION, 7, "version 1")
    assert not won
    assert "other validation examples" in verdict
    assert not compare(score_by_example(metrics([0.3])), other, EVALUATION, 7, "version 1")[1]


def test_nothing_is_pickled_and_nobody_is_named(shipped: list[dict[str, Any]]) -> None:
    kept = Path(mlflow.artifacts.download_artifacts("models:/writer@champion"))
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.suffix for path in files}.isdisjoint({".pkl", ".pickle", ".bin", ".pt"})
    assert any(path.suffix == ".safetensors" for path in files)
    scores = pd.read_parquet(kept / "artifacts" / "validation.parquet")
    assert not scores["user"].str.contains("u0").any()
    card = (kept / "artifacts" / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["model-index"][0]["results"][0]["metrics"][0] == {"type": "reward", "value": 0.3}
    assert "gains nothing certain" in card
    assert "ann" not in card.split()
    data = yaml.safe_load(
        (kept / "artifacts" / "dataset_card.md").read_text("utf-8").split("---")[1]
    )
    assert data["license"] == "unknown"


def test_one_answer_is_traced_from_retrieval_to_score(shipped: list[dict[str, Any]]) -> None:
    (trace,) = mlflow.search_traces(
        run_id=mlflow.search_runs(order_by=["start_time"])["run_id"][0], return_type="list"
    )
    names = [span.name for span in trace.data.spans]
    # without reasoning there is no part to reason in
    assert names == ["answer", "retrieve", "prompt", "respond", "score"]
    assert set(trace.data.spans[-1].outputs) == {"reward", "components"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(shipped: list[dict[str, Any]]) -> Iterator[str]:
    """MLflow's scoring server with the champion, on a free port of this machine."""
    model = mlflow.pyfunc.load_model("models:/writer@champion")
    port = free_port()
    config = uvicorn.Config(create_app(model), host="127.0.0.1", port=port, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/invocations"
    running.should_exit = True
    thread.join(timeout=10)


def test_a_hundred_requests_from_eight_clients(server: str) -> None:
    met = load(server)
    assert met.statuses == {200: 100}, met.describe()
    rows = [answer["predictions"][0] for answer in met.answers]
    assert [row["user_id"] for row in rows] == [f"user {i}" for i in range(100)]
    # what is written depends on the seed alone, not on who asks at the same time
    texts = [{rows[i]["response"] for i in range(100) if i % 3 == seed} for seed in range(3)]
    assert [len(own) for own in texts] == [1, 1, 1]
    assert len(set.union(*texts)) == 3


def test_the_server_writes_what_the_inference_pipeline_writes(
    server: str, sealed_policy: PolicyCheckpoint
) -> None:
    values = {
        "requests": [REQUEST],
        "retriever": BackendDataset(backend="rest_pg.backends.retrievers.Bm25Retriever").load(),
        "base_policy": sealed_policy,
        "policy_1": sealed_policy,
        "response_template": TEMPLATE,
        "generator": BackendDataset(**ENGINE).load(),
        "params:retrieval": RetrievalParams(k=2),
        "params:response_format": ResponseFormat(reasoning=False),
        "params:prompt": PromptParams(max_tokens=200, system=""),
        "params:evaluation": EVALUATION,
        "params:seed": 11,
    }
    catalog = DataCatalog({k: MemoryDataset(v, copy_mode="assign") for k, v in values.items()})
    (expected,) = SequentialRunner().run(create_inference("policy_1"), catalog)["answers"].load()
    body = {"dataframe_records": [REQUEST], "params": {"seed": 11}}
    _, answer = ask(server, body)
    (found,) = answer["predictions"]
    assert found["response"] == expected.response
    assert found["documents"] == list(expected.documents)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{no JSON", "Invalid input"),
        ({"dataframe_records": [{"user": "ann"}]}, "request"),
        ({"dataframe_records": [REQUEST | {"request": " "}]}, "expected a text"),
        ({"dataframe_records": [REQUEST | {"documents": []}]}, "at least one text"),
        ({"dataframe_records": [REQUEST | {"documents": [3, 4]}]}, "expected a text or an object"),
        ({"dataframe_records": [REQUEST] * 3}, "above max_requests=2"),
        ({"dataframe_records": [REQUEST | {"documents": ["x"] * 5}]}, "above max_documents=4"),
        ({"dataframe_records": [REQUEST | {"request": "x" * 700}]}, "above max_characters=600"),
        ({"dataframe_records": [REQUEST], "params": {"seed": "x"}}, "seed"),
        ({"dataframe_records": [REQUEST], "params": 5}, "dictionary"),
        ({"dataframe_records": [REQUEST | {"user": None}]}, "user"),
        ({"dataframe_records": [REQUEST | {"request": "\ud800"}]}, "surrogates not allowed"),
        ({"dataframe_records": [5]}, ""),
        ({"dataframe_records": []}, ""),
        ({"dataframe_split": 5}, ""),
        ({"messages": [{"role": "user", "content": "x"}]}, ""),
        ([], ""),
        (b"\xff\xfe", ""),
        (b"", ""),
    ],
)
def test_what_is_malformed_or_too_large_is_the_callers_error(
    server: str, body: Any, message: str
) -> None:
    status, answer = ask(server, body)
    assert 400 <= status < 500
    assert message in json.dumps(answer)
    assert ask(server, {"dataframe_records": [REQUEST]})[0] == 200


def talk(server: str, lines: list[str], body: bytes = b"") -> tuple[int, str]:
    """Send a request as it stands, as no client would; return the status and all that is answered."""
    host, port = server.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    text = answer.decode()
    return int(text.split()[1]), text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "127.0.0.1:5001", "[::1]:80", "LocalHost:1")),
        *(
            (name, 400)
            for name in ("evil.test", "127.0.0.1.evil.test", "localhost@evil.test", "", "0")
        ),
        *((name, 400) for name in ("www.localhost", "[::2]", "localhost:x")),
    ],
)
def test_only_this_machines_own_names_are_answered(server: str, host: str, status: int) -> None:
    for path in ("ping", "version"):
        lines = [f"GET /{path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        assert talk(server, lines)[0] == status


def test_no_body_is_read_for_a_foreign_host(server: str) -> None:
    lines = ["POST /invocations HTTP/1.1", "Host: evil.test", "Content-Length: 50"]
    assert talk(server, [*lines, "Content-Type: application/json", "Connection: close"])[0] == 400


def test_a_request_without_a_host_is_refused(server: str) -> None:
    assert talk(server, ["GET /ping HTTP/1.0"])[0] == 400


def test_a_proxys_name_is_answered_where_it_is_allowed(shipped: list[dict[str, Any]]) -> None:
    app = create_app(mlflow.pyfunc.load_model("models:/writer@champion"), ["*.example.org"])
    with TestClient(app, base_url="http://writer.example.org") as client:
        assert client.get("/ping").status_code == 200
        assert client.get("/ping", headers={"Host": "example.com"}).status_code == 400


@pytest.mark.parametrize("kind", [None, "", " "])
def test_a_body_without_a_content_type_is_the_callers_error(server: str, kind: str | None) -> None:
    body = json.dumps({"dataframe_records": [REQUEST]}).encode()
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += ["Connection: close"] + ([] if kind is None else [f"Content-Type: {kind}"])
    status, text = talk(server, lines, body)
    assert status == 400
    assert "the Content-Type header is missing: send application/json" in text


LIMIT = most_bytes(SHIP.limits)
POST = ["POST /invocations HTTP/1.1", "Host: localhost", "Content-Type: application/json"]


def test_a_body_that_says_it_is_too_large_is_not_waited_for(server: str) -> None:
    status, text = talk(server, [*POST, f"Content-Length: {10 * LIMIT}"], b"{")
    assert status == 413
    assert f"{10 * LIMIT} bytes, and {LIMIT} are the most by ship.limits" in text
    # one that is as large as allowed is read
    body = json.dumps({"dataframe_records": [REQUEST]}).encode().ljust(LIMIT)
    status, text = talk(server, [*POST, f"Content-Length: {LIMIT}", "Connection: close"], body)
    assert status == 200, text


def test_a_body_that_never_ends_is_cut_off(server: str) -> None:
    host, port = server.split("/")[2].split(":")
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join([*POST, "Transfer-Encoding: chunked", "", ""]).encode())
        connection.settimeout(0.05)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1000 * LIMIT and not answer:
                with contextlib.suppress(TimeoutError):
                    sent += connection.send(chunk)
                with contextlib.suppress(TimeoutError):
                    answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    # beside what the system's own buffers hold
    assert sent < 100 * LIMIT
    assert ask(server, {"dataframe_records": [REQUEST]})[0] == 200


def test_a_user_with_one_document_is_answered_from_it(server: str) -> None:
    status, answer = ask(server, {"dataframe_records": [REQUEST | {"documents": ["The pier."]}]})
    assert status == 200
    assert answer["predictions"][0]["documents"] == ["request-1#1"]


def test_a_trace_says_how_many_documents_there_were(shipped: list[dict[str, Any]]) -> None:
    traces = mlflow.search_traces(return_type="list")
    spans = [span for trace in traces for span in trace.data.spans if span.name == "retrieve"]
    assert spans
    for span in spans:
        found = {name: span.attributes[name] for name in ("k", "query", "short_profiles")}
        assert found == {"k": 2, "query": "given", "short_profiles": 0}


def test_what_is_served_keeps_the_query_of_its_training(
    sealed_policy: PolicyCheckpoint, shipped: list[dict[str, Any]]
) -> None:
    kept = Path(mlflow.artifacts.download_artifacts("models:/writer@champion"))
    text = (kept / "artifacts" / "settings.json").read_text("utf-8")
    assert json.loads(text)["retrieval"] == {"k": 2, "query": "given"}
    retriever = BackendDataset(backend="rest_pg.backends.retrievers.Bm25Retriever").load()
    generator = BackendDataset(**ENGINE).load()
    trained = replace(sealed_policy, query="request")
    settings = gather_settings(
        trained,
        *(retriever, generator, RetrievalParams(k=2), PromptParams(max_tokens=200, system="")),
        *(ResponseFormat(reasoning=False), EVALUATION, SHIP, 7),
    )
    assert settings["retrieval"]["query"] == "request"
    # registered before this was kept
    del settings["retrieval"]["query"]
    assert WriterSettings.model_validate(settings).retrieval.query == "given"


def test_a_stream_ends_in_the_answer_itself(shipped: list[dict[str, Any]]) -> None:
    model = mlflow.pyfunc.load_model("models:/writer@champion")
    *pieces, last = model.predict_stream(REQUEST, params={"seed": 5})
    whole = model.predict(pd.DataFrame([REQUEST]), params={"seed": 5})
    assert [last] == whole
    assert "".join(piece["piece"] for piece in pieces).strip() == last["response"]
    assert len(pieces) > 1


def test_what_the_page_asks_and_reads_works(
    server: str, shipped: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"-d '(\{.*?\n\})'", PAGE, re.DOTALL)
    assert found
    status, answer = ask(server, found[1].encode())
    assert status == 200
    shown = re.search(r'^\{"predictions": .*?\}\]\}$', PAGE, re.DOTALL | re.MULTILINE)
    assert shown
    assert set(json.loads(shown[0])["predictions"][0]) == set(answer["predictions"][0])
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    own = code[1].replace("rest-pg-writer", "writer")
    exec(own.replace('mlflow.set_tracking_uri("sqlite:///mlflow.db")', ""), {})
    assert len(capsys.readouterr().out) > 5


@pytest.mark.slow
def test_make_serve_serves_the_champion_on_this_machine_only(
    shipped: list[dict[str, Any]], tmp_path: Path
) -> None:
    makefile = (PROJECT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"^serve: .*\n\t(.*)$", makefile, re.MULTILINE)
    assert recipe
    port, command = free_port(), recipe[1].replace("$(or $(ALIAS),champion)", "champion")
    own = {
        "$(BIN)/": f"{Path(sys.executable).parent}/",
        "$(TRACKING)": "sqlite:///mlflow.db",
        "sqlite:///mlflow.db": mlflow.get_tracking_uri(),
        "rest-pg-writer": "writer",
        "5001": str(port),
    }
    for name, value in own.items():
        assert name in command
        command = command.replace(name, value)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["bash", "-c", command], stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_for(port, process)
        asked = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        listening = {c.laddr for p in asked for c in p.net_connections() if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", port)}
        url = f"http://127.0.0.1:{port}/invocations"
        met = load(url)
        assert met.statuses == {200: 100}, met.describe()
        assert ask(url, b"{no JSON")[0] == 400
        model = mlflow.pyfunc.load_model("models:/writer@champion")
        row, params = load_request(0)
        (expected,) = model.predict(row, params=params)
        assert met.answers[0]["predictions"][0]["response"] == expected["response"]
    finally:
        for child in [*psutil.Process(process.pid).children(True), process]:
            child.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server ended"
        time.sleep(0.2)
    raise AssertionError("the server does not listen")


def load_request(number: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    body = request(number)
    return pd.DataFrame(body["dataframe_records"]), body["params"]


def test_only_the_runs_own_policies_are_shipped() -> None:
    with pytest.raises(ValueError, match=r"policy='study' is none of the run's"):
        create_pipeline("study")
