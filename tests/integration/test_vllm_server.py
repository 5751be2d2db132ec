"""Against a real `vllm serve` on this machine: `make test-vllm` runs these."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import build_policy
from test_vllm import GREEDY, NUCLEUS, REQUESTS, SIZES, judged_both_ways, ours

from rest_pg.backends.openai_server import LOADING, ServerError, ServersGenerator
from rest_pg.records import PolicyCheckpoint

pytest.importorskip("vllm", reason="make test-vllm has an environment with it")

READER = "rest_pg.backends.vllm_worker.WeightReader"


class RunningServer:
    """``vllm serve`` in a process group of its own."""

    def __init__(self, policy: PolicyCheckpoint, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # `vllm serve` by its module: the CPU build's own command looks for a package named vllm
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"),
            str(policy.path),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
            *("--max-model-len", "4096", "--max-num-seqs", "16", "--enforce-eager"),
            # with a seed per request the CPU can't read a prompt in parts
            *("--no-enable-chunked-prefill", "--worker-extension-cls", READER),
        ]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.address = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 240
        while not self._answers():
            assert self._process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.address}/models", timeout=2).ok
        except requests.RequestException:
            return False

    def send(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            self.send(number)
        self._process.wait(timeout=20)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[PolicyCheckpoint]:
    return [
        build_policy(tmp_path_factory.mktemp(f"policy_{seed}"), seed=seed, **SIZES)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def server(policies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(policies[0], tmp_path_factory.mktemp("server") / "log")
    yield running
    running.close()


def test_samples_are_those_of_our_own_generator(server, policies) -> None:
    generator = ServersGenerator([server.address])
    assert generator.generate(policies[0], REQUESTS, GREEDY) == ours(policies[0])
    drawn = generator.generate(policies[0], REQUESTS, NUCLEUS)
    assert drawn == generator.generate(policies[0], REQUESTS, NUCLEUS)
    assert len({g.text for g in drawn if g.example_id == "e0"}) == 3


def test_the_judge_scores_as_in_process(server, policies, monkeypatch) -> None:
    scorer = {
        "backend": "rest_pg.backends.openai_server.ServersLevelScorer",
        "arguments": {"servers": [server.address]},
    }
    judged_both_ways(policies[0], scorer, monkeypatch)


def test_stale_weights_never_answer(server, policies) -> None:
    fixed = ServersGenerator([server.address])
    with pytest.raises(ServerError, match=f"{server.address} serves .*was asked for"):
        fixed.generate(policies[1], REQUESTS, GREEDY)
    loading = ServersGenerator([server.address], load_policies=True)
    for number in (1, 0, 1):
        written = loading.generate(policies[number], REQUESTS, GREEDY)
        assert written == ours(policies[number])
        # what it was started with says nothing any more
        other = policies[1 - number]
        with pytest.raises(ServerError, match="serves policy-"):
            fixed.generate(other, REQUESTS, GREEDY)
    assert ours(policies[0]) != ours(policies[1])


def test_a_policy_of_another_architecture_is_refused(server, tmp_path: Path) -> None:
    other = build_policy(tmp_path / "other", **{**SIZES, "num_hidden_layers": 1})
    with pytest.raises(ServerError, match=f"{server.address} can't") as refused:
        ServersGenerator([server.address], load_policies=True).generate(other, REQUESTS, GREEDY)
    assert LOADING in str(refused.value) or "start it on that policy" in str(refused.value)


def test_a_server_that_hangs_is_given_up_by_name(server, policies) -> None:
    generator = ServersGenerator([server.address], load_policies=True, timeout_seconds=30)
    assert generator.generate(policies[0], REQUESTS, GREEDY) == ours(policies[0])
    server.send(signal.SIGSTOP)
    try:
        hasty = ServersGenerator([server.address], timeout_seconds=2)
        with pytest.raises(ServerError, match=rf"{server.address}.* didn't answer \(ReadTimeout\)"):
            hasty.generate(policies[0], REQUESTS, GREEDY)
    finally:
        server.send(signal.SIGCONT)
    assert generator.generate(policies[0], REQUESTS, GREEDY) == ours(policies[0])
