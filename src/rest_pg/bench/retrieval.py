"""Retrieval over a million documents: the memory and time that the store and the search take.

``python -m rest_pg.bench.retrieval``. The vectors are random, for nothing here depends on what they say; how fast
a model makes them is measured on a sample of real speeches.
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from rest_pg.backends.embeddings import PORTION, Embedder, Vectors
from rest_pg.backends.retrievers import EmbeddingRetriever
from rest_pg.datasets.sources.sotu import SotuDataset
from rest_pg.records import Document, Example

logger = logging.getLogger(__name__)

USERS, DOCUMENTS, SIZE, K = 10_000, 100, 384, 5
SAMPLE, WORDS = 64, 190
"""Texts that are really embedded, and their words: some 250 tokens."""


def run() -> None:
    """Measure, and log the figures."""
    embedder = Embedder()
    speeches = [" ".join(str(r["text"]).split()[:WORDS]) for r in SotuDataset().load()]
    embedder.embed_chunks(speeches[-1:])
    started = time.perf_counter()
    embedder.embed_chunks(speeches[:SAMPLE])
    _say(f"embedding {SAMPLE} texts of {WORDS} words", started)
    with tempfile.TemporaryDirectory(prefix="rest-pg-retrieval-") as scratch:
        names = [f"{user}/{document}" for user in range(USERS) for document in range(DOCUMENTS)]
        _fill(scratch, [*names, *(f"query {user}" for user in range(USERS))])
        size = sum(file.stat().st_size for file in Path(scratch).rglob("*.parquet"))
        logger.info("the store takes %.2f GB on disk", size / 1e9)
        examples = [_example(user, names) for user in range(USERS)]
        started = time.perf_counter()
        profiles = EmbeddingRetriever(directory=scratch).retrieve(examples, K)
        _say(
            f"{USERS} queries of {DOCUMENTS} documents each, the store's reading included", started
        )
    assert [len(profile.documents) for profile in profiles] == [K] * USERS
    whole = _vectors(USERS * DOCUMENTS)
    started = time.perf_counter()
    for query in whole[:10]:
        np.argpartition(whole @ query, -K)
    _say(f"10 queries of all {len(whole)} documents as one matrix", started)


def _fill(directory: str, names: list[str]) -> None:
    """Write vectors where a retriever looks for those of these texts."""
    store = Embedder(directory=directory)._store()
    started = time.perf_counter()
    for start in range(0, len(names), PORTION):
        part = names[start : start + PORTION]
        store.add(dict(zip(part, _vectors(len(part))[:, None], strict=True)))
    _say(f"writing {len(names)} vectors", started)


def _vectors(n: int) -> Vectors:
    vectors = np.random.default_rng(n).standard_normal((n, SIZE), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _example(user: int, names: list[str]) -> Example:
    own = names[user * DOCUMENTS : (user + 1) * DOCUMENTS]
    profile = tuple(Document(document_id=n, user_id=str(user), text=n) for n in own)
    return Example(
        example_id=str(user),
        user_id=str(user),
        split="test",
        input="",
        query=f"query {user}",
        reference="",
        profile=profile,
    )


def _say(what: str, started: float) -> None:
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    logger.info("%s: %.1f s; at most %.2f GB so far", what, seconds, peak)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run()
