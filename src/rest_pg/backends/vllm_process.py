"""vLLM's own processes: started, talked with from a thread of this one, and ended for certain."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import subprocess
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import psutil
import torch

Result = TypeVar("Result")

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # a fork would copy the locks of threads that have computed here already
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
END_SECONDS = 20.0


class VllmProcess:
    """A running ``AsyncLLM``. Its work is awaited in a thread, so that it runs under Jupyter too."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Start it, after giving back what accelerator memory this process kept.

        Args:
            arguments: vLLM's engine arguments.

        Raises:
            Exception: whatever vLLM says; nothing is left of it then.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="vllm", daemon=True).start()
        self._guard: subprocess.Popen[bytes] | None = None
        self.engine: Any = None
        before = _children(psutil.Process())
        try:
            self.engine = self.call(_start(arguments))
        finally:
            self._processes = _children(psutil.Process()) - before
            if self.engine is None:
                self.close(at_once=True)
        self._guard = _start_guard(self._processes)

    def submit(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Begin some work with the engine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do some work with the engine, and return its result."""
        return self.submit(work).result()

    def close(self, *, at_once: bool = False) -> None:
        """End all of it; ``at_once`` where it can't be expected to answer."""
        processes = self._processes | {c for p in self._processes for c in _children(p)}
        if at_once:
            _kill(processes)
        if self.engine is not None:
            with suppress(Exception):  # what is dead may fail in any way, and all of it ends below
                self.engine.shutdown()
            self.engine = None
        _kill(processes)
        psutil.wait_procs(processes, timeout=END_SECONDS)
        if self._guard is not None:
            self._guard.communicate(b"done\n")
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _start(arguments: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.is_cpu():
        # a prompt that is read in parts takes back a draw, which a CPU's random generator can't
        arguments = {"enable_chunked_prefill": False} | dict(arguments)
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, trust_remote_code=False))


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
    """Have a shell end vLLM's processes if this one is killed: they would wait for it for ever."""
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
