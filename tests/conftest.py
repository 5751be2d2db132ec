"""Tiny models built in place: two layers, random weights, no network."""

from __future__ import annotations

import os
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rest_pg.records import Document, Example, PolicyCheckpoint

MODEL_TYPES = ("llama", "qwen2", "qwen3", "smollm3", "mistral", "gemma2", "gemma3_text")
EXTRAS = {
    "mistral": {"sliding_window": 5},
    "gemma2": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,  # low, so that a missing cap would show
    },
    "gemma3_text": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
}

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def build_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: a token per byte, two special ones, and those that are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


def build_policy(
    path: Path,
    model_type: str = "llama",
    seed: int = 0,
    merges: tuple[tuple[str, str], ...] = (),
    **other_sizes: object,
) -> PolicyCheckpoint:
    """Save a random model of two layers, with grouped-query attention where the type has it."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(*merges)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "initializer_range": 0.3,  # wide, so that attention really decides the next token
    }
    sizes |= EXTRAS.get(model_type, {}) | other_sizes
    config = AutoConfig.for_model(model_type, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return PolicyCheckpoint(path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """MLflow puts the database of one test into the environment: it is nobody's wish for the next one."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Policies that no test saves must not pile up in the system's directory."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyCheckpoint:
    return build_policy(tmp_path_factory.mktemp("policy"))


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place),))


def document(number: int, text: str, user: str = "ann", **fields: str) -> Document:
    return Document(document_id=f"{user}-{number}", user_id=user, text=text, **fields)


def example(number: int = 1, **fields: object) -> Example:
    values: dict[str, object] = {
        "example_id": f"e{number}",
        "user_id": "ann",
        "split": "train",
        "input": "Write a passage about the harbour.",
        "query": "harbour",
        "reference": "The harbour is open. We repaired the pier.",
        "profile": (
            document(1, "I like the harbour. Ships come and go."),
            document(2, "The hills are green. I walk there."),
        ),
    }
    return Example(**(values | fields))  # type: ignore[arg-type]
