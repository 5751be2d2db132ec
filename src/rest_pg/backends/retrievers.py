"""Retrievers: which documents of a profile matter for a request (§4.1, and LaMP's baselines)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from rest_pg.backends.embeddings import EMBEDDED, Embedder
from rest_pg.dates import age_key
from rest_pg.records import Example, Profile, RetrievedDocument
from rest_pg.text import words


class EmbeddingRetriever:
    """Nearest documents by embedding; a long document counts by its best chunk.

    The paper uses Contriever: ``embedder: facebook/contriever``, ``normalize: false`` (dot product),
    ``max_tokens: 512``.
    """

    def __init__(
        self,
        embedder: str = EMBEDDED,
        max_tokens: int = 256,
        normalize: bool = True,
        directory: str | None = None,
    ) -> None:
        """Name the embedding model, how it reads, and where embeddings are kept: :class:`Embedder`."""
        self._embedder = Embedder(
            embedder, max_tokens=max_tokens, normalize=normalize, directory=directory
        )

    def retrieve(self, examples: Sequence[Example], k: int) -> list[Profile]:
        """Return each example's k nearest documents, by product of query and document."""
        texts = [d.searched for example in examples for d in example.profile]
        self._embedder.embed_chunks([*texts, *(example.query for example in examples)])
        profiles = []
        for example in examples:
            query = self._embedder.embed([example.query])[0]
            chunks = self._embedder.embed_chunks([d.searched for d in example.profile])
            profiles.append(_top(example, [float((c @ query).max()) for c in chunks], k))
        return profiles


class Bm25Retriever:
    """Documents that share the query's rare words."""

    def retrieve(self, examples: Sequence[Example], k: int) -> list[Profile]:
        """Return each example's k best documents by BM25 within its own profile."""
        # bm25s computes something with JAX, where that is installed, as soon as it is imported; and JAX then
        # takes three quarters of a GPU's memory if it isn't told to take what it needs.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import bm25s  # noqa: PLC0415

        profiles = []
        for example in examples:
            index = bm25s.BM25()
            index.index([words(d.searched) for d in example.profile], show_progress=False)
            scores = index.get_scores(words(example.query))
            profiles.append(_top(example, [float(score) for score in scores], k))
        return profiles


class RecencyRetriever:
    """The newest documents; those without a date come last. The similarity is the rank's inverse."""

    def retrieve(self, examples: Sequence[Example], k: int) -> list[Profile]:
        """Return each example's k latest documents."""
        profiles = []
        for example in examples:
            order = sorted(example.profile, key=lambda d: age_key(d.date), reverse=True)
            rank = {document.document_id: i for i, document in enumerate(order, start=1)}
            scores = [1 / rank[document.document_id] for document in example.profile]
            profiles.append(_top(example, scores, k))
        return profiles


class RandomRetriever:
    """Any documents, drawn by the seed and the example's id: the control of every retriever."""

    def __init__(self, seed: int = 0) -> None:
        """Fix the draw."""
        self._seed = seed

    def retrieve(self, examples: Sequence[Example], k: int) -> list[Profile]:
        """Return k documents of each example, drawn without replacement."""
        profiles = []
        for example in examples:
            digest = hashlib.sha256(f"{self._seed}\0{example.example_id}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            profiles.append(_top(example, generator.random(len(example.profile)).tolist(), k))
        return profiles


def _top(example: Example, similarities: Sequence[float], k: int) -> Profile:
    """Keep the k most similar documents; equal ones keep the profile's order."""
    order = sorted(range(len(similarities)), key=lambda i: -similarities[i])[:k]
    return Profile(
        example_id=example.example_id,
        documents=tuple(
            RetrievedDocument(
                document_id=example.profile[i].document_id,
                text=example.profile[i].text,
                similarity=similarities[i],
            )
            for i in order
        ),
    )
