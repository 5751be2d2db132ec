"""vLLM in process: started when it is needed, with the weights asked for, and ended for certain.

vLLM works in processes of its own. This side hands it tokens, watches what comes back, and ends those
processes when a node ends, when something fails, and when nothing comes back any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import importlib.util
import logging
import os
import subprocess
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psutil
import torch

from rest_pg.backends.engines import Ask, Written, closed, opened
from rest_pg.backends.vllm_weights import Weights, compare_weights
from rest_pg.progress import Track, track
from rest_pg.records import PolicyCheckpoint

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

INSTALL = "pip install 'rest-pg[vllm]'"
DEFAULTS: dict[str, Any] = {
    "dtype": "bfloat16",
    "enable_prefix_caching": True,  # all samples of a prompt share its keys and values
    "generation_config": "vllm",  # else a model's own file would change how samples are drawn
    "disable_log_stats": True,
    "worker_extension_cls": "rest_pg.backends.vllm_worker.WeightReader",
}
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # a fork would copy the locks of threads that have computed here already
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
POLL_SECONDS = 0.2
END_SECONDS = 20.0


class EngineStalledError(RuntimeError):
    """An engine has written nothing for too long."""


class VllmEngine:
    """One vLLM engine, for one policy at a time; see :class:`~rest_pg.backends.engines.Engine`."""

    def __init__(self, arguments: Mapping[str, Any], stall_seconds: float) -> None:
        """Take what to start it with; it starts at the first text.

        Args:
            arguments: vLLM's own engine arguments, such as ``tensor_parallel_size``; they win over
                :data:`DEFAULTS`.
            stall_seconds: without any token, after which it counts as stalled.

        Raises:
            ValueError: ``stall_seconds`` isn't positive, or vLLM isn't installed.
        """
        if stall_seconds <= 0:
            raise ValueError(f"stall_seconds={stall_seconds} is not positive: raise it")
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"vLLM isn't installed: {INSTALL}")
        self._arguments, self._stall_seconds = dict(arguments), stall_seconds
        self._engine: Any = None
        self._weights: Weights | None = None
        self._processes: set[psutil.Process] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._n_asked = self._n_tokens = 0

    def write(
        self, policy: PolicyCheckpoint, asks: Sequence[Ask], task: str
    ) -> list[list[Written]]:
        """Go on from every text, each seed drawn by its own generator.

        Raises:
            ValueError: a text with what is to be written is longer than ``max_model_len``.
            RuntimeError: vLLM can't be started, or stalled or died twice, or holds other weights.
        """
        done: dict[tuple[int, int], Written] = {}
        bar = track(task, sum(len(ask.seeds) for ask in asks), "sample")
        try:
            for retries in (1, 0):
                try:
                    self._load(Weights.of(policy))
                    self._check_lengths(asks)
                    self._watch(self._write_all(asks, done), done, bar)
                    break
                except _failures() as error:
                    self.close(at_once=True)
                    if not retries:
                        raise RuntimeError(self._explain(error)) from error
                    logger.warning("%s: ended, and tried once more", _say(error))
        except BaseException:
            self.close()
            raise
        finally:
            bar.close()
        return [[done[i, j] for j in range(len(ask.seeds))] for i, ask in enumerate(asks)]

    def close(self, *, at_once: bool = False) -> None:
        """End the engine and all of its processes; ``at_once`` where it can't be expected to answer."""
        engine, self._engine, self._weights = self._engine, None, None
        processes = self._processes | {c for p in self._processes for c in _children(p)}
        if at_once:
            _kill(processes)
        if engine is not None:
            with suppress(Exception):  # what is dead may fail in any way, and all of it ends below
                engine.shutdown()
        _kill(processes)
        psutil.wait_procs(processes, timeout=END_SECONDS)
        self._processes = set()
        if self._guard is not None:
            self._guard.communicate(b"done\n")
            self._guard = None
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        closed(self)

    # ---- weights -------------------------------------------------------------------------------

    def _load(self, weights: Weights) -> None:
        """Have the engine hold these weights: as it is, in place, or started anew."""
        if self._engine is not None and weights == self._weights:
            return
        if self._engine is None or not self._load_in_place(weights):
            self.close()
            self._start(weights)
            differing, unknown = self._compare(weights)
            if differing:
                raise RuntimeError(
                    f"vLLM holds other weights than {weights.model}: {len(differing)}, such as "
                    f"{differing[0]}. Leave engine arguments out that change them."
                )
            if unknown:
                logger.info("%d weights of vLLM can't be compared with their file", len(unknown))
        self._weights = weights

    def _start(self, weights: Weights) -> None:
        """Start on these weights, after giving back what accelerator memory this process kept."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        opened(self)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="vllm", daemon=True).start()
        before = _children(psutil.Process())
        arguments = DEFAULTS | weights.engine_arguments() | self._arguments
        try:
            self._engine = self._call(_start_engine(arguments))
        except Exception as error:
            raise RuntimeError(
                f"vLLM can't be started on {weights.model} ({_say(error)}); its own messages above say "
                "why. Where memory is short: lower gpu_memory_utilization or max_model_len, or raise "
                "tensor_parallel_size, under engine in catalog.yml."
            ) from error
        finally:
            self._processes = _children(psutil.Process()) - before
        self._guard = _start_guard(self._processes)

    def _load_in_place(self, weights: Weights) -> bool:
        """Put a policy's weights into the running engine; false if it has to be started anew."""
        if self._weights is None or not weights.fit(self._weights):
            return False
        if weights.adapter is not None:
            return True  # each request names it
        try:
            arguments = {"weights_path": str(weights.model)}
            self._call(self._engine.collective_rpc("reload_weights", kwargs=arguments))
            if not self._call(self._engine.reset_prefix_cache()):
                raise RuntimeError("its cache holds keys and values of the policy before")
        except Exception as error:
            logger.info("vLLM can't load weights in place (%s): started anew", _say(error))
            return False
        if any(self._compare(weights)):
            logger.info("vLLM can't show that it holds %s: started anew", weights.model)
            return False
        logger.info("vLLM holds the weights of %s, loaded in place", weights.model)
        return True

    def _compare(self, weights: Weights) -> tuple[list[str], list[str]]:
        """Return which weights differ from the file, and which can't be told."""
        if self._engine.vllm_config.parallel_config.world_size > 1:
            return [], ["all of them: each worker holds a part"]
        held = self._call(self._engine.collective_rpc("digest_weights"))
        return compare_weights(weights.model, held[0])

    # ---- writing -------------------------------------------------------------------------------

    def _check_lengths(self, asks: Sequence[Ask]) -> None:
        longest = max((len(a.tokens) + a.sampling["max_tokens"] for a in asks), default=0)
        limit = self._engine.model_config.max_model_len
        if longest > limit:
            raise ValueError(
                f"a prompt with what is written behind it takes {longest} tokens, and vLLM's "
                f"max_model_len is {limit}: raise it, or lower prompt.max_tokens or max_new_tokens"
            )

    def _watch(self, work: Coroutine[Any, Any, None], done: Mapping[Any, Any], bar: Track) -> None:
        """Wait for work as long as tokens come, and show how far it is."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        idle, before = 0.0, self._n_tokens
        try:
            while not future.done():
                concurrent.futures.wait([future], timeout=POLL_SECONDS)
                # by turns, not by the clock: this process may have been stopped itself
                idle = idle + POLL_SECONDS if self._n_tokens == before else 0.0
                bar.count_tokens(self._n_tokens - before)
                bar.update(len(done) - bar.done)
                before = self._n_tokens
                if idle > self._stall_seconds:
                    raise EngineStalledError(f"no token for {self._stall_seconds:g} s")
            future.result()
        finally:
            future.cancel()

    async def _write_all(self, asks: Sequence[Ask], done: dict[tuple[int, int], Written]) -> None:
        """Write what isn't done yet, all at once: vLLM decides what runs beside what."""
        tasks = [
            asyncio.create_task(self._write_one(ask, seed, (i, j), done))
            for i, ask in enumerate(asks)
            for j, seed in enumerate(ask.seeds)
            if (i, j) not in done
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _write_one(
        self, ask: Ask, seed: int, place: tuple[int, int], done: dict[tuple[int, int], Written]
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **ask.sampling,
            seed=seed if ask.sampling["temperature"] > 0 else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        assert self._weights is not None
        self._n_asked += 1
        written = Written()
        async for output in self._engine.generate(
            {"type": "token", "prompt_token_ids": list(ask.tokens)},
            params,
            str(self._n_asked),
            lora_request=self._weights.lora_request(),
        ):
            (part,) = output.outputs
            written.tokens += part.token_ids
            self._n_tokens += len(part.token_ids)
            written.ended = part.finish_reason == "stop"
            if part.logprobs:
                last = part.logprobs[-1]
                written.log_probabilities = {token: own.logprob for token, own in last.items()}
        done[place] = written

    def _explain(self, error: BaseException) -> str:
        return (
            f"vLLM failed twice: {_say(error)}. If it is only slow (long prompts, a first compilation), "
            f"raise stall_seconds={self._stall_seconds:g}; else lower max_num_seqs or "
            "gpu_memory_utilization under engine in catalog.yml. --only-missing-outputs goes on from "
            "the last shard that was kept."
        )

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._running()).result()


async def _start_engine(arguments: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.is_cpu():
        # a prompt that is read in parts takes back a draw, which a CPU's random generator can't
        arguments = {"enable_chunked_prefill": False} | dict(arguments)
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _failures() -> tuple[type[Exception], ...]:
    """Return what a fresh engine may well not meet again."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineStalledError, EngineDeadError


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.run_until_complete(_cancel_rest())
    loop.close()


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _children(process: psutil.Process) -> set[psutil.Process]:
    """Return what runs below a process, but for Python's own, which outlives every engine."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                    found.add(child)
    return found


def _start_guard(processes: set[psutil.Process]) -> subprocess.Popen[bytes]:
    """Have a shell end the engine's processes if this one is killed: vLLM's would wait for it for ever."""
    numbers = " ".join(str(process.pid) for process in processes)
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read word || kill -9 {numbers}"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
