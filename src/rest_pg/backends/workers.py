"""Work in several processes that share a process group: started, watched and ended by the caller.

One process per GPU (NCCL), or on CPUs any number (gloo). They meet at a file and talk over the loopback
interface, so that no port of this machine is open to others.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from signal import SIG_DFL, SIGINT, SIGKILL, SIGTERM, Signals, signal
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from rest_pg.progress import Audience, track

Result = TypeVar("Result")

POLL_SECONDS = 0.5
"""Between two looks at the workers: how fast one's end is seen, and the bar moves."""


def rank() -> int:
    """Return this process's place in its group; 0 where there is none."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the processes of this group; 1 where there is none."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def from_rank_0(make: Callable[[], Result]) -> Result:
    """Return what ``make`` returns in rank 0, which alone calls it."""
    box = [make() if rank() == 0 else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def loopback() -> str:
    """Return the name of the network interface that only this machine can reach."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def run_in_workers(n: int, work: Callable[[], Result], task: str, total: int, unit: str) -> Result:
    """Call ``work`` in ``n`` new processes of one group, and return what it returned in rank 0.

    Args:
        n: processes.
        work: can be pickled; learns its part from :func:`rank` and :func:`world_size`.
        task: what rank 0 tracks, shown here.
        total: units of it.
        unit: see above.

    Raises:
        RuntimeError: a worker ended before its work was done: its rank and exit are named, and the
            others are ended.
        ValueError: there are fewer GPUs than workers.
    """
    if torch.cuda.is_available() and n > torch.cuda.device_count():
        raise ValueError(
            f"world_size={n} is more than the {torch.cuda.device_count()} GPUs of this machine: lower it"
        )
    heard = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="rest-pg-workers-") as scratch:
        bar = track(task, total, unit)
        results: list[Result] = []

        def listen() -> None:
            while not heard.empty():
                done, result = heard.get()
                if done is None:
                    results.append(result)
                else:
                    bar.update(done - bar.done)

        context = start_processes(_work, (n, scratch, work, task, heard), nprocs=n, join=False)
        try:
            while not context.join(timeout=POLL_SECONDS):
                listen()
            listen()
            return results[0]
        except (ProcessExitedException, ProcessRaisedException, IndexError) as error:
            raise RuntimeError(_ends(context, str(error), task)) from error
        finally:
            for process in context.processes:
                process.kill()
                process.join()
            bar.close()


def _ends(context: ProcessContext, error: str, task: str) -> str:
    """Say which ranks ended and how: those that were killed first, for others fail by missing them."""
    codes = {place: process.exitcode or 0 for place, process in enumerate(context.processes)}
    ended = sorted((code, place) for place, code in codes.items() if code not in (0, -SIGTERM))
    named = [
        f"rank {place} ({Signals(-code).name if code < 0 else f'exit {code}'})"
        for code, place in ended
    ]
    killed = any(code == -SIGKILL for code, _ in ended)
    return (
        f"{task} ended early: {', '.join(named) or 'rank 0 (exit 0)'} of {len(codes)} workers: "
        f"{error.strip().splitlines()[-1]}. The others were ended."
        + (" Systems that lack memory send SIGKILL: lower world_size." if killed else "")
    )


def _work(place: int, n: int, scratch: str, work: Callable[[], Any], task: str, heard: Any) -> None:
    """Be one of the workers: join the group, do the work, and tell what rank 0 returns."""
    signal(SIGINT, SIG_DFL)  # sent by a terminal, or when the caller has died
    Audience.bars = False
    if place == 0:
        Audience.listeners.append(
            lambda told, done, _: heard.put((done, None)) if told == task else None
        )
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(place)
    threads = max(1, torch.get_num_threads() // n)
    torch.set_num_threads(threads)
    own = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.update(GLOO_SOCKET_IFNAME=loopback(), OMP_NUM_THREADS=str(threads))
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback())
    distributed.init_process_group(
        # gloo beside NCCL: gathering a sharded model into this machine's memory needs it
        "cuda:nccl,cpu:gloo" if gpu else "gloo",
        init_method=f"file://{scratch}/meeting",
        rank=place,
        world_size=n,
    )
    result = work()
    if place == 0:
        heard.put((None, result))
    distributed.barrier()
    distributed.destroy_process_group()
