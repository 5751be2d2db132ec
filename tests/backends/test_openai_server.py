import logging
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from completions_server import CompletionsServer
from conftest import build_policy
from requests import Response
from test_rewards import sample

from rest_pg.backends import likelihood
from rest_pg.backends.judges import RubricJudge
from rest_pg.backends.openai_server import (
    ServerError,
    Servers,
    ServersGenerator,
    policy_name,
    retry_after,
)
from rest_pg.backends.protocols import GenerationRequest, Target
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import Decoding
from rest_pg.records import PolicyCheckpoint

GREEDY = Decoding(temperature=0, top_p=1, max_new_tokens=12)
NUCLEUS = Decoding(temperature=0.9, top_p=0.9, max_new_tokens=12)
REQUESTS = [
    GenerationRequest(example_id="e0", prompt="ships in the bay", seeds=(5, 6, 7)),
    GenerationRequest(example_id="none", prompt="nothing is asked for", seeds=()),
    GenerationRequest(example_id="e1", prompt="a", seeds=(8,)),
    GenerationRequest(example_id="e2", prompt="green hills, far", seeds=(9, 10)),
]


@pytest.fixture
def servers(policy) -> Iterator[list[CompletionsServer]]:
    running = [CompletionsServer(policy, name) for name in ("left", "right")]
    yield running
    for server in running:
        server.close()


def generator(*servers: CompletionsServer, **options) -> ServersGenerator:
    return ServersGenerator([server.address for server in servers], **options)


@pytest.mark.parametrize("shows_tokens", [True, False])
def test_greedy_text_is_that_of_our_own_generator(policy, servers, shows_tokens: bool) -> None:
    for server in servers:
        server.shows_tokens = shows_tokens
    written = generator(*servers).generate(policy, REQUESTS, GREEDY)
    ours = SharedPrefixGenerator(dtype="float32").generate(policy, REQUESTS, GREEDY)
    if shows_tokens:
        assert written == ours
    else:  # tokens are counted again from a text that may hold broken characters
        assert [g.text for g in written] == [g.text for g in ours]
        assert all(g.n_tokens >= 1 for g in written)


def test_one_request_asks_for_all_samples_of_a_prompt(policy, servers) -> None:
    written = generator(servers[0]).generate(policy, REQUESTS, NUCLEUS)
    assert [(g.example_id, g.sample_index) for g in written] == [
        *(("e0", 0), ("e0", 1), ("e0", 2)),
        *(("e1", 0), ("e2", 0), ("e2", 1)),
    ]
    asked = {tuple(body["prompt"]): body for body in servers[0].requests}
    assert sorted(body["n"] for body in asked.values()) == [1, 2, 3]
    assert {body["seed"] for body in asked.values()} == {5, 8, 9}
    assert len({g.text for g in written if g.example_id == "e0"}) == 3
    assert written == generator(servers[0]).generate(policy, REQUESTS, NUCLEUS)


def test_requests_are_spread_over_the_servers(policy, servers) -> None:
    for server in servers:
        server.delay = 0.05
    many = [GenerationRequest(example_id=str(i), prompt=f"p{i}", seeds=(i,)) for i in range(8)]
    written = generator(*servers, requests_per_server=1).generate(policy, many, GREEDY)
    assert [g.example_id for g in written] == [str(i) for i in range(8)]
    assert all(len(server.requests) >= 2 for server in servers)


def test_a_request_that_fails_is_tried_once_more_elsewhere(policy, servers, caplog) -> None:
    servers[0].failures = 100
    expected = SharedPrefixGenerator(dtype="float32").generate(policy, REQUESTS, GREEDY)
    assert generator(*servers).generate(policy, REQUESTS, GREEDY) == expected
    assert f"{servers[0].address}/completions answered 500" in caplog.text


def test_a_request_that_fails_twice_names_the_server(policy, servers) -> None:
    servers[0].failures = 2
    with pytest.raises(ServerError, match=rf"failed twice: {servers[0].address}.* answered 500"):
        generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)


def test_a_request_at_fault_is_not_asked_again(policy, servers) -> None:
    servers[0].refuses = True
    with pytest.raises(ServerError, match=rf"^{servers[0].address}/completions answered 400"):
        generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)
    assert len(servers[0].requests) == 1


def test_a_busy_server_is_asked_again_when_it_says(policy, servers, monkeypatch) -> None:
    waited: list[float] = []
    sleep = lambda seconds: waited.append(seconds) if seconds else None  # noqa: E731  (the server's own is 0)
    monkeypatch.setattr("rest_pg.backends.openai_server.time.sleep", sleep)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    servers[0].busy = ["7", soon, past, "0"]
    expected = SharedPrefixGenerator(dtype="float32").generate(policy, REQUESTS[:1], GREEDY)
    assert generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY) == expected
    assert waited[0] == 7
    assert 80 < waited[1] <= 90
    assert waited[2:] == [0.5, 0.5]
    assert len(servers[0].requests) == 5


def test_a_server_that_is_busy_for_too_long_is_not_waited_for(policy, servers) -> None:
    servers[0].busy = ["3600", "3600"]
    with pytest.raises(
        ServerError, match=r"asks to wait for 3600 s, and 30 s are left of timeout_"
    ):
        generator(servers[0], timeout_seconds=30).generate(policy, REQUESTS[:1], GREEDY)


@pytest.mark.parametrize("value", ["", "soon", "-3", "1e3", "\u0663"])
def test_a_wait_that_says_nothing_is_none(value: str) -> None:
    response = Response()
    response.status_code, response.headers["Retry-After"] = 429, value
    assert retry_after(response) is None
    response.status_code, response.headers["Retry-After"] = 500, "3"
    assert retry_after(response) is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"text": None}, id="null"),
        pytest.param({"text": 5}, id="number"),
        pytest.param({"text": ["a"]}, id="list"),
        pytest.param({"text": {"content": "a"}}, id="object"),
        pytest.param({"finish_reason": None}, id="no reason"),
        pytest.param({"index": None}, id="no index"),
        pytest.param({"token_ids": 5}, id="tokens"),
    ],
)
@pytest.mark.parametrize("shows_tokens", [True, False])
def test_what_is_no_text_is_no_sample(policy, servers, changes, shows_tokens: bool) -> None:
    servers[0].changes, servers[0].shows_tokens = changes, shows_tokens
    with pytest.raises(ServerError, match=rf"{servers[0].address} answered what can't be read"):
        generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)


@pytest.mark.parametrize("answer", [{}, {"choices": None}, {"choices": [None]}, {"choices": "x"}])
def test_an_answer_without_choices_names_the_server(policy, servers, monkeypatch, answer) -> None:
    ask = Servers._ask_server

    def asked(self: Servers, method: str, url: str, body=None):
        return answer if url.endswith("/completions") else ask(self, method, url, body)

    monkeypatch.setattr(Servers, "_ask_server", asked)
    with pytest.raises(ServerError, match=rf"{servers[0].address} answered what can't be read"):
        generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)


def test_a_server_that_never_answers_is_given_up_by_name(policy, servers) -> None:
    servers[0].delay = 30
    with pytest.raises(
        ServerError, match=rf"{servers[0].address}.*ReadTimeout.*timeout_seconds=0.2"
    ):
        generator(servers[0], timeout_seconds=0.2).generate(policy, REQUESTS[:1], GREEDY)


def test_a_server_that_is_not_there_is_named(policy) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServerError, match=rf"{address}/models didn't answer \(ConnectionError\)"):
        ServersGenerator([address]).generate(policy, REQUESTS, GREEDY)


def test_another_policy_is_refused_before_any_prompt_is_sent(
    policy, servers, tmp_path: Path
) -> None:
    other = build_policy(tmp_path / "other", seed=1)
    with pytest.raises(ServerError, match=rf"{servers[0].address} serves left, and .*vllm serve /"):
        generator(servers[0]).generate(other, REQUESTS, GREEDY)
    assert servers[0].requests == []


def test_a_policy_is_known_by_its_name_or_its_files(policy, servers, tmp_path: Path) -> None:
    # on another machine the path says nothing, and the name is made of the content
    servers[0].root, servers[0].name = "/models/far/away", policy_name(policy)
    assert generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)
    copy = PolicyCheckpoint(Path(shutil.copytree(policy.path, tmp_path / "copy")))
    servers[0].name = "something"
    with pytest.raises(ServerError, match="serves something"):
        generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)
    servers[0].root = str(copy.path)
    assert generator(servers[0]).generate(policy, REQUESTS[:1], GREEDY)


def test_a_server_that_cannot_load_says_so_by_name(policy, servers, tmp_path: Path) -> None:
    other = build_policy(tmp_path / "other", seed=1)
    with pytest.raises(ServerError, match=rf"answered 404.*{servers[0].address} can't load"):
        generator(servers[0], load_policies=True).generate(other, REQUESTS, GREEDY)


def test_a_key_is_read_from_the_environment(policy, servers, monkeypatch) -> None:
    monkeypatch.setenv("OWN_KEY", "abc")
    generator(servers[0], key_variable="OWN_KEY").generate(policy, REQUESTS[:1], GREEDY)
    assert servers[0].headers == ["Bearer abc"]


def test_the_judge_scores_as_in_process(policy, servers, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(likelihood, "supports_bfloat16", lambda: False)
    likelihood.load_scoring_model.cache_clear()
    template = tmp_path / "judge.jinja"
    template.write_text("{{ input }}/{{ fence }}/{{ reference }}/{{ response }}/{{ levels[0] }}:")
    targets = {"a": Target(input="a passage", reference="we sail")}
    samples = [sample("we row"), sample("", "empty_response"), sample("green"), sample("10")]
    scorer = {
        "backend": "rest_pg.backends.openai_server.ServersLevelScorer",
        "arguments": {"servers": [server.address for server in servers]},
    }
    model = str(policy.path)
    ours = RubricJudge(str(template), model, "expected").score(samples, targets)
    theirs = RubricJudge(str(template), model, "expected", scorer=scorer).score(samples, targets)
    for one, other in zip(ours, theirs, strict=True):
        assert other.reward == pytest.approx(one.reward, abs=1e-4)
        assert other.components == pytest.approx(one.components, abs=1e-4)


@pytest.mark.parametrize(
    ("servers", "options", "message"),
    [
        pytest.param([], {}, "must be URLs", id="none"),
        pytest.param(["127.0.0.1:8000"], {}, "must be URLs", id="no scheme"),
        pytest.param(["http://h/v1"], {"timeout_seconds": 0}, "must be positive", id="time"),
    ],
)
def test_bad_arguments_are_refused(servers, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ServersGenerator(servers, **options)


logging.getLogger("urllib3").setLevel(logging.WARNING)
