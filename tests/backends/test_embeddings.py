from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Malicious, build_tokenizer
from transformers import BertConfig, BertModel

from rest_pg.backends import embeddings
from rest_pg.backends.embeddings import Embedder


class Letters:
    """Counts a, b and c; reads four characters at once, and notes what it was shown."""

    max_seq_length = 6

    def __init__(self) -> None:
        self.seen: list[str] = []

    def tokenizer(self, text: str, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": [(i, i + 1) for i in range(len(text))]}

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        self.seen += texts
        return np.array([[t.count(letter) for letter in "abc"] for t in texts], dtype=np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Letters:
    letters = Letters()
    monkeypatch.setattr(embeddings, "load_embedding_model", lambda name, max_tokens: letters)
    return letters


def embedder(directory: Path, name: str = "letters") -> Embedder:
    return Embedder(name, normalize=False, directory=str(directory))


def test_each_text_is_embedded_once_over_all_runs(model: Letters, tmp_path: Path) -> None:
    texts = ["aab", "abcabc", "aab"]
    first = embedder(tmp_path).embed_chunks(texts)
    assert model.seen == ["aab", "abca", "bc"]
    again = embedder(tmp_path).embed_chunks([*texts, "c"])
    assert model.seen == ["aab", "abca", "bc", "c"]
    assert [v.tolist() for v in first] == [[[2, 1, 0]], [[2, 1, 1], [0, 1, 1]], [[2, 1, 0]]]
    assert [v.tolist() for v in again] == [v.tolist() for v in first] + [[[0, 0, 1]]]
    assert again[0].dtype == np.float32


def test_an_interruption_costs_one_portion(
    model: Letters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "PORTION", 2)
    encode = model.encode

    def interrupted(texts: list[str], **options: Any) -> np.ndarray:
        if "c" in texts:
            raise KeyboardInterrupt
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder(tmp_path).embed_chunks(["a", "abcab", "c"])
    monkeypatch.setattr(model, "encode", encode)
    found = embedder(tmp_path).embed_chunks(["c", "abcab", "a"])
    assert [v.tolist() for v in found] == [[[0, 0, 1]], [[2, 1, 1], [0, 1, 0]], [[1, 0, 0]]]
    assert model.seen == ["a", "abca", "b", "c"]


def test_a_damaged_file_is_made_anew(model: Letters, tmp_path: Path) -> None:
    embedder(tmp_path).embed_chunks(["aab"])
    (kept,) = tmp_path.rglob("*.parquet")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5])
    assert embedder(tmp_path).embed_chunks(["aab"])[0].tolist() == [[2, 1, 0]]
    assert model.seen == ["aab", "aab"]
    assert kept.read_bytes() == whole


def test_another_model_takes_nothing_over_and_no_text_is_kept(
    model: Letters, tmp_path: Path
) -> None:
    embedder(tmp_path).embed_chunks(["abc"])
    embedder(tmp_path, "other").embed_chunks(["abc"])
    assert model.seen == ["abc", "abc"]
    assert not any(b"abc" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_directory_is_named_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = embeddings._identity(str(tmp_path))
    embeddings._identity.cache_clear()
    weights.write_bytes(b"two")
    assert embeddings._identity(str(tmp_path)) != first
    assert embeddings._identity("hub/name") == "hub/name"


def test_lack_of_memory_names_the_batch(model: Letters, monkeypatch) -> None:
    def lack(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "encode", lack)
    with pytest.raises(MemoryError, match="while embedding: lower batch_size of the embedder"):
        Embedder("letters").embed(["a"])


def test_pickled_weights_of_an_embedding_model_are_never_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    BertModel(
        BertConfig(
            vocab_size=258,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(directory)
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    embeddings.load_embedding_model.cache_clear()
    assert Embedder(str(directory), max_tokens=64).embed(["a"]).shape == (1, 16)
    (directory / "model.safetensors").unlink()
    torch.save({"x": Malicious(tmp_path / "ran")}, directory / "pytorch_model.bin")
    embeddings.load_embedding_model.cache_clear()
    with pytest.raises(ValueError, match=r"embedding model .*/model can't be loaded.*safetensors"):
        Embedder(str(directory), max_tokens=64).embed(["b"])
    assert not (tmp_path / "ran").exists()
