"""``python tests/load.py URL [REQUESTS] [CLIENTS]``: asks a served policy as many users at once would."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

DOCUMENTS = [
    "The harbour froze early this year, and the fleet stayed in. We mended nets and told stories.",
    "Our council met twice about the north pier. I spoke for rebuilding it in stone, as before.",
    "Spring came with fog. Ships waited outside the bar for days, and the pilots earned little.",
    "I walked to the lighthouse today; its keeper has kept a journal for forty years.",
]


@dataclass(frozen=True, slots=True)
class Load:
    """What a number of requests met."""

    statuses: Counter[int]
    seconds: float
    latencies: list[float]
    """In seconds, sorted."""
    answers: list[Any]
    """In the order of the requests."""

    def describe(self) -> str:
        """Say it in a line."""
        half, most = (self.latencies[int(len(self.latencies) * q)] for q in (0.5, 0.95))
        return (
            f"{len(self.answers)} requests in {self.seconds:.1f} s, statuses {dict(self.statuses)}; "
            f"latency {half:.2f} s (median), {most:.2f} s (95%), {self.latencies[-1]:.2f} s (most)"
        )


def request(number: int) -> dict[str, Any]:
    """Return the body of a request that differs from others in its user, and in one of three seeds."""
    row = {
        "user": f"user {number}",
        "request": "Write about the winter at the harbour.",
        "documents": DOCUMENTS,
    }
    return {"dataframe_records": [row], "params": {"seed": number % 3}}


def ask(url: str, body: Any) -> tuple[int, Any]:
    """Send a body, as JSON unless it is bytes; return the status and what the answer holds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=600) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def load(url: str, requests: int = 100, clients: int = 8) -> Load:
    """Ask from several clients at once, each of which sends its next request when it is answered."""

    def timed(number: int) -> tuple[int, Any, float]:
        started = time.perf_counter()
        return *ask(url, request(number)), time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(timed, range(requests)))
    return Load(
        statuses=Counter(status for status, _, _ in done),
        seconds=time.perf_counter() - started,
        latencies=sorted(seconds for _, _, seconds in done),
        answers=[answer for _, answer, _ in done],
    )


if __name__ == "__main__":
    print(load(sys.argv[1], *map(int, sys.argv[2:])).describe())
