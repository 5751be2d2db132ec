"""vLLM in process: started when it is needed, with the weights asked for, and watched while it writes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from rest_pg.backends.engines import Ask, Written, closed, opened
from rest_pg.backends.vllm_process import VllmProcess
from rest_pg.backends.vllm_weights import Weights, differing_weights
from rest_pg.progress import Track, track
from rest_pg.records import PolicyCheckpoint

logger = logging.getLogger(__name__)

INSTALL = "pip install 'rest-pg[vllm]'"
DEFAULTS: dict[str, Any] = {
    "dtype": "bfloat16",
    "enable_prefix_caching": True,  # all samples of a prompt share its keys and values
    "generation_config": "vllm",  # else a model's own file would change how samples are drawn
    "disable_log_stats": True,
    "worker_extension_cls": "rest_pg.backends.vllm_worker.WeightReader",
}
POLL_SECONDS = 0.2

Done = dict[tuple[int, int], Written]
"""What is written so far, by the number of the text and of the seed."""


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
            ValueError: ``stall_seconds`` isn't positive, vLLM isn't installed, or ``trust_remote_code`` is
                among the arguments.
        """
        if "trust_remote_code" in arguments:
            raise ValueError(
                "engine.trust_remote_code would run code of a model's maker: remove it"
            )
        if stall_seconds <= 0:
            raise ValueError(f"stall_seconds={stall_seconds} is not positive: raise it")
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"vLLM isn't installed: {INSTALL}")
        self._arguments, self._stall_seconds = dict(arguments), stall_seconds
        self._process: VllmProcess | None = None
        self._weights: Weights | None = None
        self._n_asked = self._n_tokens = 0

    def write(
        self, policy: PolicyCheckpoint, asks: Sequence[Ask], task: str
    ) -> list[list[Written]]:
        """Go on from every text, each seed drawn by its own generator.

        Raises:
            ValueError: a text with what is to be written is longer than ``max_model_len``.
            RuntimeError: vLLM can't be started, or stalled or died twice.
        """
        done: Done = {}
        bar = track(task, sum(len(ask.seeds) for ask in asks), "sample")
        try:
            for retries in (1, 0):
                try:
                    process = self._load(Weights.of(policy))
                    self._check_lengths(process, asks)
                    self._watch(process, self._write_all(process, asks, done), done, bar)
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
        process, self._process, self._weights = self._process, None, None
        if process is not None:
            process.close(at_once=at_once)
        closed(self)

    # ---- weights -------------------------------------------------------------------------------

    def _load(self, weights: Weights) -> VllmProcess:
        """Have the engine hold these weights: as it is, in place, or started anew."""
        if self._process is not None and weights == self._weights:
            return self._process
        if self._process is None or not self._load_in_place(self._process, weights):
            self.close()
            self._process = self._start(weights)
            opened(self)
            if found := _not_shown(self._process, weights):
                logger.info("vLLM, just started on %s, can't show %s", weights.model, found)
        self._weights = weights
        return self._process

    def _start(self, weights: Weights) -> VllmProcess:
        try:
            return VllmProcess(DEFAULTS | weights.engine_arguments() | self._arguments)
        except Exception as error:
            raise RuntimeError(
                f"vLLM can't be started on {weights.model} ({_say(error)}); its own messages above say "
                "why. Where memory is short: lower gpu_memory_utilization or max_model_len, or raise "
                "tensor_parallel_size, under engine in catalog.yml."
            ) from error

    def _load_in_place(self, process: VllmProcess, weights: Weights) -> bool:
        """Put a policy's weights into the running engine; false if it has to be started anew."""
        if self._weights is None or not weights.fit(self._weights):
            return False
        if weights.adapter is not None:
            return True  # each request names it
        try:
            arguments = {"weights_path": str(weights.model)}
            process.call(process.engine.collective_rpc("reload_weights", kwargs=arguments))
            if not process.call(process.engine.reset_prefix_cache()):
                raise RuntimeError("its cache holds keys and values of the policy before")
        except Exception as error:
            logger.info("vLLM can't load weights in place (%s): started anew", _say(error))
            return False
        if found := _not_shown(process, weights):
            logger.info("vLLM can't show %s of %s: started anew", found, weights.model)
            return False
        logger.info("vLLM holds the weights of %s, loaded in place", weights.model)
        return True

    # ---- writing -------------------------------------------------------------------------------

    def _check_lengths(self, process: VllmProcess, asks: Sequence[Ask]) -> None:
        longest = max((len(a.tokens) + a.sampling["max_tokens"] for a in asks), default=0)
        limit = process.engine.model_config.max_model_len
        if longest > limit:
            raise ValueError(
                f"a prompt with what is written behind it takes {longest} tokens, and vLLM's "
                f"max_model_len is {limit}: raise it, or lower prompt.max_tokens or max_new_tokens"
            )

    def _watch(
        self, process: VllmProcess, work: Coroutine[Any, Any, None], done: Done, bar: Track
    ) -> None:
        """Wait for work as long as tokens come, and show how far it is."""
        future = process.submit(work)
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

    async def _write_all(self, process: VllmProcess, asks: Sequence[Ask], done: Done) -> None:
        """Write what isn't done yet, all at once: vLLM decides what runs beside what."""
        tasks = [
            asyncio.create_task(self._write_one(process, ask, seed, (i, j), done))
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
        self, process: VllmProcess, ask: Ask, seed: int, place: tuple[int, int], done: Done
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
        async for output in process.engine.generate(
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


def _not_shown(process: VllmProcess, weights: Weights) -> str:
    """Say which weights can't be shown to be those of the file; empty if all of them are."""
    if process.engine.vllm_config.parallel_config.world_size > 1:
        return "its weights (each worker holds a part)"
    held = process.call(process.engine.collective_rpc("digest_weights"))
    found = differing_weights(weights.model, held[0])
    return f"{len(found)} of its weights, such as {found[0]}," if found else ""


def _failures() -> tuple[type[Exception], ...]:
    """Return what a fresh engine may well not meet again."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineStalledError, EngineDeadError


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
