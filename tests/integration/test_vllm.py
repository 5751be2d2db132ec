"""Against real vLLM, on the CPU: `make test-vllm` makes its environment and runs these."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import build_policy
from kedro.config import OmegaConfigLoader
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rest_pg.backends import likelihood
from rest_pg.backends.engines import close_engines
from rest_pg.backends.judges import RubricJudge
from rest_pg.backends.models import EMBEDDED, import_model
from rest_pg.backends.protocols import Generation, GenerationRequest, Generator, Target
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import Decoding, ResponseFormat
from rest_pg.hooks.cleanup import EngineHook
from rest_pg.records import PolicyCheckpoint, Sample
from rest_pg.responses import parse_generation

pytest.importorskip("vllm", reason="make test-vllm has an environment with it")

from rest_pg.backends.vllm_generator import VllmGenerator

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Heads that vLLM's attention has on the CPU."""
ENGINE = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True}
GREEDY = Decoding(temperature=0, top_p=1, max_new_tokens=12)
NUCLEUS = Decoding(temperature=0.9, top_p=0.9, max_new_tokens=12)
SHARED = "The harbour is open. We repaired the pier, and the ships come and go. "
REQUESTS = [
    GenerationRequest(example_id="e0", prompt=SHARED + "Who sails?", seeds=(5, 6, 7)),
    GenerationRequest(example_id="e1", prompt="a", seeds=(8,)),
    GenerationRequest(example_id="e2", prompt=SHARED * 3, seeds=(9, 10)),
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[PolicyCheckpoint]:
    """Two policies that are built alike and answer differently."""
    return [
        build_policy(tmp_path_factory.mktemp(f"policy_{seed}"), seed=seed, **SIZES)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def generator() -> Iterator[VllmGenerator]:
    """One engine for the tests that leave it running."""
    yield VllmGenerator(ENGINE, stall_seconds=120)
    close_engines()


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def engine_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "VLLM" in " ".join(p.cmdline())]


def plain(policy: PolicyCheckpoint, prompt: str) -> list[int]:
    """What transformers writes, greedily."""
    model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(policy.path)(prompt, return_tensors="pt").input_ids
    return model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()


def ours(policy: PolicyCheckpoint, decoding: Decoding = GREEDY) -> list[Generation]:
    return SharedPrefixGenerator(dtype="float32").generate(policy, REQUESTS, decoding)


def test_greedy_text_is_that_of_transformers(generator, policies) -> None:
    written = generator.generate(policies[0], REQUESTS, GREEDY)
    tokenizer = AutoTokenizer.from_pretrained(policies[0].path)
    for generation in written:
        prompt = next(r.prompt for r in REQUESTS if r.example_id == generation.example_id)
        expected = plain(policies[0], prompt)
        assert generation.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert generation.n_tokens == len(expected)
    assert written == ours(policies[0])
    direct = ResponseFormat(reasoning=False)
    assert [parse_generation(g, direct).text for g in written] == [g.text for g in written]


def test_a_sample_ends_where_ours_does(generator, policies, tmp_path: Path) -> None:
    shutil.copytree(policies[0].path, tmp_path / "ending")
    ending = PolicyCheckpoint(tmp_path / "ending")
    (file,) = ending.path.glob("generation_config.json")
    values = json.loads(file.read_text())
    # the sixth token that it writes behind the first prompt becomes an end token beside its own
    end = plain(policies[0], REQUESTS[0].prompt)[5]
    file.write_text(json.dumps(values | {"eos_token_id": [1, end]}))
    written = generator.generate(ending, REQUESTS, GREEDY)
    assert written == ours(ending)
    assert written[0].finished
    assert written[0].n_tokens <= 6


def test_samples_depend_on_their_seeds(generator, policies) -> None:
    first = generator.generate(policies[0], REQUESTS, NUCLEUS)
    assert first == generator.generate(policies[0], REQUESTS, NUCLEUS)
    assert len({g.text for g in first if g.example_id == "e0"}) == 3
    alone = GenerationRequest(example_id="e0", prompt=REQUESTS[0].prompt, seeds=(6,))
    (again,) = generator.generate(policies[0], [alone], NUCLEUS)
    assert again.text == first[1].text


def test_a_new_policy_is_loaded_in_place_and_answers_as_itself(
    generator, policies, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = [ours(policy) for policy in policies]
    assert expected[0] != expected[1]
    assert generator.generate(policies[0], REQUESTS, GREEDY) == expected[0]
    assert "can't show" not in caplog.text
    before = engine_processes()
    for number in (1, 0):
        caplog.clear()
        assert generator.generate(policies[number], REQUESTS, GREEDY) == expected[number]
        assert "loaded in place" in caplog.text
    assert engine_processes() == before


def test_weights_are_compared_in_bfloat16_too(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    generator = VllmGenerator(ENGINE | {"dtype": "bfloat16"}, stall_seconds=120)
    for seed in (0, 1):
        # it has biases
        policy = build_policy(tmp_path / str(seed), "qwen2", seed=seed, **SIZES)
        generator.generate(policy, REQUESTS, GREEDY)
    close_engines()
    assert "can't show" not in caplog.text
    assert "loaded in place" in caplog.text


def test_prompts_are_never_read_in_parts(policies) -> None:
    """A part of a prompt would take back a draw, which fails with a seed per sample on the CPU."""
    narrow = VllmGenerator(ENGINE | {"max_num_batched_tokens": 512}, stall_seconds=120)
    requests = [
        GenerationRequest(example_id=f"e{i}", prompt=SHARED * 5 + str(i), seeds=(i, i + 1))
        for i in range(4)
    ]
    written = narrow.generate(policies[0], requests, NUCLEUS)
    close_engines()
    assert len(written) == 8
    assert all(g.n_tokens for g in written)


def test_what_is_too_long_names_the_limit(generator, policies) -> None:
    request = GenerationRequest(example_id="e", prompt="a" * 501, seeds=(1,))
    with pytest.raises(ValueError, match="513 tokens, and vLLM's max_model_len is 512: raise it"):
        generator.generate(policies[0], [request], GREEDY)
    assert engine_processes() == []


FAILED = r"(?s)vLLM can't be started on .* lower gpu_memory_utilization"


def test_what_vllm_refuses_is_reported(policies) -> None:
    with pytest.raises(RuntimeError, match=FAILED):
        VllmGenerator(ENGINE | {"max_model_len": 10**9}).generate(policies[0], REQUESTS, GREEDY)
    assert engine_processes() == []


def test_a_start_that_fails_leaves_nothing(policies, tmp_path: Path) -> None:
    damaged = PolicyCheckpoint(Path(shutil.copytree(policies[0].path, tmp_path / "damaged")))
    file = damaged.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RuntimeError, match=FAILED):
        VllmGenerator(ENGINE).generate(damaged, REQUESTS, GREEDY)
    assert engine_processes() == []


class _Stopper(threading.Thread):
    """Stops vLLM's processes as soon as they write, once or each time."""

    def __init__(self, generator: VllmGenerator, times: int) -> None:
        super().__init__(daemon=True)
        self.engine, self.times, self.stopped = generator._engine, times, 0

    def run(self) -> None:
        seen = 0
        while self.stopped < self.times:
            time.sleep(0.01)
            if self.engine._n_tokens <= seen or not engine_processes():
                continue
            for process in engine_processes():
                process.send_signal(signal.SIGSTOP)
            seen, self.stopped = self.engine._n_tokens + len(REQUESTS), self.stopped + 1


LONG = Decoding(temperature=0, top_p=1, max_new_tokens=300)


def test_a_stall_is_ended_and_tried_once_more(policies, caplog: pytest.LogCaptureFixture) -> None:
    generator = VllmGenerator(ENGINE, stall_seconds=8)
    stopper = _Stopper(generator, times=1)
    stopper.start()
    written = generator.generate(policies[0], REQUESTS, LONG)
    assert stopper.stopped == 1
    assert "no token for 8 s: ended, and tried once more" in caplog.text
    assert written == ours(policies[0], LONG)
    close_engines()
    assert engine_processes() == []


def test_a_second_stall_is_reported_and_leaves_nothing(policies) -> None:
    generator = VllmGenerator(ENGINE, stall_seconds=8)
    _Stopper(generator, times=2).start()
    with pytest.raises(RuntimeError, match=r"failed twice: .*no token for 8 s.*stall_seconds=8"):
        generator.generate(policies[0], REQUESTS, LONG)
    assert engine_processes() == []


def test_adapters_answer_as_the_merged_model_does(policies, tmp_path: Path) -> None:
    """A policy may be LoRA adapters beside a model; two of them must not be taken for each other."""
    generator = VllmGenerator(ENGINE, stall_seconds=120)
    for seed in (2, 3):
        adapters, merged = _train_adapters(policies[0], tmp_path / str(seed), seed)
        assert generator.generate(adapters, REQUESTS, GREEDY) == ours(merged)
        assert ours(merged) != ours(policies[0])
    # the model alone is no set of adapters: it takes an engine of its own
    assert generator.generate(policies[0], REQUESTS, GREEDY) == ours(policies[0])
    close_engines()


def _train_adapters(
    base: PolicyCheckpoint, path: Path, seed: int
) -> tuple[PolicyCheckpoint, PolicyCheckpoint]:
    """Save random adapters beside a policy, as PEFT does, and the policy that they make."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    beside = get_peft_model(model, config)
    beside.peft_config["default"].base_model_name_or_path = str(base.path)
    beside.save_pretrained(path / "adapters")
    beside.merge_and_unload().save_pretrained(path / "merged")
    for name in ("adapters", "merged"):
        AutoTokenizer.from_pretrained(base.path).save_pretrained(path / name)
    shutil.copy(base.path / "config.json", path / "adapters")
    return PolicyCheckpoint(path / "adapters"), PolicyCheckpoint(path / "merged")


KILLED = """
import sys, time
from pathlib import Path

if __name__ == "__main__":
    from rest_pg.backends.protocols import GenerationRequest
    from rest_pg.backends.vllm_generator import VllmGenerator
    from rest_pg.config import Decoding
    from rest_pg.records import PolicyCheckpoint

    generator = VllmGenerator({engine}, stall_seconds=120)
    request = GenerationRequest(example_id="e", prompt="ships", seeds=(1,))
    decoding = Decoding(temperature=0, top_p=1, max_new_tokens=4)
    generator.generate(PolicyCheckpoint(Path({path!r})), [request], decoding)
    print("PIDS", *[p.pid for p in generator._engine._process._processes], flush=True)
    time.sleep(100)
"""


def test_a_killed_run_takes_its_engine_along(policies, tmp_path: Path) -> None:
    script, log = tmp_path / "run.py", tmp_path / "log"
    script.write_text(KILLED.format(engine=ENGINE, path=str(policies[0].path)))
    with log.open("w") as output:
        run = subprocess.Popen([sys.executable, str(script)], stdout=output, stderr=output)
    while "PIDS" not in log.read_text():
        assert run.poll() is None, log.read_text()
        time.sleep(0.2)
    line = next(line for line in log.read_text().splitlines() if line.startswith("PIDS"))
    processes = [psutil.Process(int(number)) for number in line.split()[1:]]
    assert processes
    run.kill()
    run.wait()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_the_embedded_model_answers_as_ours_does() -> None:
    policy = import_model(EMBEDDED)
    generator = VllmGenerator(ENGINE, stall_seconds=120)
    written = generator.generate(policy, REQUESTS, GREEDY)
    close_engines()
    assert written == ours(policy)
    shutil.rmtree(policy.path)


@pytest.mark.parametrize("fails", [False, True])
def test_no_engine_outlives_its_node(policies, fails: bool) -> None:
    """The generator comes from conf/vllm, as in a run, and the hook is the project's own."""
    entry = OmegaConfigLoader("conf", base_env="base", default_run_env="vllm")["catalog"][
        "generator"
    ]
    entry["arguments"]["generator"]["arguments"]["engine"] = ENGINE
    entry["arguments"]["directory"] = str(policies[0].path.parent / f"shards_{fails}")
    seen: list[int] = []

    def draw(generator: Generator, policy: PolicyCheckpoint) -> int:
        written = generator.generate(policy, REQUESTS, GREEDY)
        seen.append(len(engine_processes()))
        if fails:
            raise ValueError("something else")
        return len(written)

    catalog = DataCatalog.from_config({"generator": entry})
    catalog["policy"] = policies[0]
    hooks = _create_hook_manager()
    hooks.register(EngineHook())
    pipeline = Pipeline([node(draw, ["generator", "policy"], "n")])
    if fails:
        with pytest.raises(ValueError, match="something else"):
            SequentialRunner().run(pipeline, catalog, hooks)
    else:
        SequentialRunner().run(pipeline, catalog, hooks)
    assert seen[0] > 0
    assert engine_processes() == []


def test_the_judge_scores_as_in_process(policies, monkeypatch) -> None:
    scorer = {
        "backend": "rest_pg.backends.vllm_generator.VllmLevelScorer",
        "arguments": {"engine": ENGINE | {"max_model_len": 4096}},
    }
    judged_both_ways(policies[1], scorer, monkeypatch)
    close_engines()


def judged_both_ways(policy: PolicyCheckpoint, scorer: dict, monkeypatch) -> None:
    """Score by the shipped rubric, in process and by an engine; both must agree."""
    monkeypatch.setattr(likelihood, "supports_bfloat16", lambda: False)
    likelihood.load_scoring_model.cache_clear()
    targets = {
        "a": Target(input="a passage", reference="we sail"),
        "b": Target(input="a letter", reference="hills"),
    }
    samples = [_sample("a", "we row"), _sample("b", "green"), _sample("a", ""), _sample("a", "10")]
    template, model = "conf/base/prompts/judge.jinja", str(policy.path)
    here = RubricJudge(template, model, "expected").score(samples, targets)
    there = RubricJudge(template, model, "expected", scorer=scorer).score(samples, targets)
    assert here[2].reward == there[2].reward == 0
    assert len({round(score.reward, 3) for score in here}) == 4
    for one, other in zip(here, there, strict=True):
        assert other.reward == pytest.approx(one.reward, abs=1e-4)
        assert other.components == pytest.approx(one.components, abs=1e-4)


def _sample(example_id: str, response: str) -> Sample:
    return Sample(
        example_id=example_id,
        sample_index=0,
        text=response,
        reasoning_path="",
        response=response,
        malformed="",
        finished=True,
        n_tokens=1,
    )
