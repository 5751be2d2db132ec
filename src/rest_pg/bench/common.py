"""What every benchmark needs: a policy that never ends, real prompts, and fair pairs of timings."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rest_pg.backends.models import EMBEDDED, import_model, load_tokenizer, supports_bfloat16
from rest_pg.datasets.sources.sotu import SotuDataset
from rest_pg.prompts import count_tokens
from rest_pg.records import PolicyCheckpoint

logger = logging.getLogger(__name__)

COLUMNS = ["loop", "case", "peer", "ours", "theirs", "unit", "ratio"]
UNUSED_TOKEN = "<reponame>"
"""A token of the embedded model that ordinary text never holds."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the table: medians of both sides; the ratio is above 1 where ours is faster."""

    loop: str
    case: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    """Least and greatest ratio of the repeats, each taken side by side."""


Side = Callable[[], int]
"""Does the work once, and returns how much it did."""


def compare(
    loop: str, case: str, peer: str, unit: str, ours: Side, theirs: Side, repeats: int
) -> Comparison:
    """Time both sides in turns, the order swapped each time.

    Args:
        loop: sampling, judging, training or iteration.
        case: its size.
        peer: who the other side is.
        unit: ``tokens/s`` (work by time) or ``s``.
        ours: our side.
        theirs: the peer's.
        repeats: timings of each side.

    Raises:
        RuntimeError: both sides did different amounts of work.
    """
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    work: dict[str, int] = {}
    sides = [("ours", ours), ("theirs", theirs)]
    for repeat in range(repeats):
        for name, side in sides if repeat % 2 == 0 else reversed(sides):
            started = time.perf_counter()
            work[name] = side()
            times[name].append(time.perf_counter() - started)
            logger.info("%s %s: %s took %.2f s", loop, case, name, times[name][-1])
    if work["ours"] != work["theirs"]:
        raise RuntimeError(f"{loop} {case}: ours did {work['ours']}, {peer} {work['theirs']}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    show = {
        name: work[name] / seconds if unit == "tokens/s" else seconds
        for name, seconds in medians.items()
    }
    return Comparison(
        loop,
        case,
        peer,
        show["ours"],
        show["theirs"],
        unit,
        medians["theirs"] / medians["ours"],
        (min(ratios), max(ratios)),
    )


@lru_cache(maxsize=1)
def base_policy() -> PolicyCheckpoint:
    """The embedded model, as the default run starts from it."""
    return import_model(EMBEDDED)


@lru_cache(maxsize=1)
def endless_policy() -> PolicyCheckpoint:
    """The embedded model with an end token that it never writes: all engines do the same work."""
    target = Path(tempfile.mkdtemp(prefix="rest-pg-bench-"))
    shutil.copytree(base_policy().path, target, dirs_exist_ok=True)
    tokenizer: Any = load_tokenizer(PolicyCheckpoint(target))
    tokenizer.eos_token = UNUSED_TOKEN
    tokenizer.save_pretrained(target)
    for name in ("config.json", "generation_config.json"):
        path = target / name
        values = json.loads(path.read_text(encoding="utf-8"))
        values["eos_token_id"] = tokenizer.eos_token_id
        path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    load_tokenizer.__globals__["_tokenizer"].cache_clear()
    return PolicyCheckpoint(target)


@lru_cache(maxsize=1)
def _speeches() -> list[str]:
    return [record["text"] for record in SotuDataset().load()]


def texts(n: int, n_tokens: int, offset: int = 0) -> list[str]:
    """Return n different stretches of real speeches, of about ``n_tokens`` tokens each."""
    tokenizer = load_tokenizer(base_policy())
    found = []
    for speech in _speeches()[offset:]:
        words = speech.split()
        low, high = 1, len(words)
        if count_tokens(tokenizer, speech) < n_tokens:
            continue
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            if count_tokens(tokenizer, " ".join(words[:middle])) <= n_tokens:
                low = middle
            else:
                high = middle - 1
        found.append(" ".join(words[:low]))
        if len(found) == n:
            return found
    raise ValueError(f"fewer than {n} speeches have {n_tokens} tokens")


def product_rate(dtype: torch.dtype, rows: int = 2048, size: int = 2048) -> float:
    """Measure this machine's matrix product, in GFLOP/s: the bound of everything here."""
    a, b = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * rows * size * size / statistics.median(seconds[2:]) / 1e9


def read_rate(n_bytes: int = 2**28) -> float:
    """Measure how fast this machine reads its memory, in GB/s, by a sum that all cores share."""
    numbers = torch.zeros(n_bytes // 4)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return n_bytes / statistics.median(seconds[2:]) / 1e9


def machine() -> str:
    """Name the machine as far as it matters here."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    rates = f"float32 products {product_rate(torch.float32):.0f} GFLOP/s"
    if supports_bfloat16():
        rates += f", bfloat16 {product_rate(torch.bfloat16):.0f}"
    rates += f", memory {read_rate():.0f} GB/s"
    return f"{os.cpu_count()} cores, {model}, {rates}, torch {torch.__version__.partition('+')[0]}"


def rows_of(comparisons: Sequence[Comparison]) -> list[list[Any]]:
    """Return the rows of ``bench.csv``, in the order of :data:`COLUMNS`."""
    return [
        [c.loop, c.case, c.peer, round(c.ours, 3), round(c.theirs, 3), c.unit, round(c.ratio, 2)]
        for c in comparisons
    ]
