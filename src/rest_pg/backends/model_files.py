"""Checks of a model before it is used: its files, its weights' names and shapes, its tokenizer, its chat template.

Each check raises :class:`ModelError` with one line that names the model, the fault and the remedy.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from kedro.io.core import DatasetError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rest_pg.checksums import COMPLETE, check_policy
from rest_pg.prompts import end_of_answer

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
ADAPTERS, OUR_ADAPTERS = "adapter_config.json", "base_policy.json"
MODULES = "modules.json"
"""Lists the parts of a sentence-transformers model."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TEMPLATE_SECONDS = 20.0
"""A chat template takes milliseconds; one that takes longer counts as endless."""
COPY = "Copy or download it again, with all of its files."
SAME_CONFIG = "Take the config.json that was saved with these files."
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What transformers, safetensors and tokenizers raise of files that they can't read."""


class ModelError(ValueError):
    """A model can't be used as it is; the message is one line."""

    def __init__(
        self, source: object, fault: str, remedy: str = "", *, embedder: bool = False
    ) -> None:
        """Say what is wrong.

        Args:
            source: the model, as it was named.
            fault: what goes on after "it", without a full stop.
            remedy: a sentence.
            embedder: it is an embedding model.
        """
        self.found, self.remedy = f"{source} {fault}", remedy
        named = f"the embedding model {source} can't be loaded"
        if not embedder:
            named = f"the model {source} can't be loaded as a causal language model"
        super().__init__(f"{named}: it {fault}. {remedy}".strip())


def check_model(source: str) -> None:
    """Check a language model that is a directory, or in the hub's cache while the hub may not be asked.

    No weight is read. A model that the hub has yet to send is checked as it is loaded.

    Raises:
        ModelError: it can't be used.
    """
    place = local_directory(source)
    if place is None:
        return
    check_files(place, source)
    check_tokenizer(*load_tokenizer_and_config(str(place), source), source)
    if not (
        place / ADAPTERS
    ).is_file():  # the weights of our own adapters are checked when they are merged
        _check_names(AutoModelForCausalLM, place, source)


def check_embedder(source: str) -> None:
    """Check a sentence-transformers model, as :func:`check_model` does.

    Raises:
        ModelError: it can't be used.
    """
    place = local_directory(source, embedder=True)
    if place is None:
        return
    check_files(place, source, embedder=True)
    root = place / _transformer_of(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(root), trust_remote_code=False)
        config = AutoConfig.from_pretrained(str(root), trust_remote_code=False)
    except LIBRARY_ERRORS as error:
        raise ModelError(source, unreadable(error), COPY, embedder=True) from error
    _check_vocabulary(tokenizer, config, source, embedder=True)
    _check_names(AutoModel, root, source, embedder=True)


def local_directory(source: str, *, embedder: bool = False) -> Path | None:
    """Return where a model's files are; none if the hub will be asked for them.

    Raises:
        ModelError: the directory isn't there, or the hub may not be asked and its cache lacks the model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    remedy = "Name 'embedded', a hub id, or a directory that save_pretrained wrote."
    if path.is_file():
        raise ModelError(source, "is a file, not a directory", remedy, embedder=embedder)
    inside = source.partition("/")[0]
    if source.startswith((".", "~", "/")) or not HUB_ID.fullmatch(source) or Path(inside).is_dir():
        raise ModelError(source, f"is not there (as {path.absolute()})", remedy, embedder=embedder)
    if not constants.is_offline_mode():
        return None
    cached = try_to_load_from_cache(source, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    fault = "is not in the hub's cache and HF_HUB_OFFLINE is set, nor is it a directory"
    remedy = f"Run `hf download {source}` with the network. {remedy}"
    raise ModelError(source, fault, remedy, embedder=embedder)


def check_files(place: Path, source: str, *, embedder: bool = False) -> None:
    """Check a model's files: present, whole, and no pointers of Git LFS.

    Raises:
        ModelError: one of them is at fault.
    """
    if (place / COMPLETE).is_file():
        try:
            check_policy(place)
        except DatasetError as error:
            fault = f"isn't as it was saved: {first_line(error).rstrip('.')}"
            raise ModelError(source, fault, embedder=embedder) from error
    if (place / ADAPTERS).is_file() and not (place / OUR_ADAPTERS).is_file():
        raise ModelError(
            source,
            f"holds LoRA adapters ({ADAPTERS}), not a whole model",
            "Merge them (merge_and_unload), and name what save_pretrained writes of the result.",
            embedder=embedder,
        )
    for file in sorted(place.rglob("*")):
        if file.is_file() and (fault := _fault_of(file)):
            fault = f"holds {file.relative_to(place)}, which {fault}"
            raise ModelError(source, fault, COPY, embedder=embedder)
    _check_shards(place, source, embedder=embedder)


def _fault_of(file: Path) -> str:
    """Return what is wrong with a file; empty if nothing is known to be."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return "is a pointer of Git LFS (run `git lfs pull` where it was cloned)"
    if file.suffix == ".safetensors":
        try:
            needed = (
                8
                + _header_length(file)
                + max(
                    (entry["data_offsets"][1] for entry in safetensors_header(file).values()),
                    default=0,
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"has {size} bytes and no readable safetensors header: it was cut or damaged"
        if size != needed:
            return f"has {size} bytes, and its header says {needed}: it was cut or damaged"
    if file.suffix == ".json" and not file.name.startswith("."):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is no valid JSON ({error}): it was cut or damaged"
    return ""


def _header_length(file: Path) -> int:
    with file.open("rb") as stream:
        return int.from_bytes(stream.read(8), "little")


def safetensors_header(file: Path) -> dict[str, Any]:
    """Return the entries of a safetensors file's header, by the names of its tensors.

    Raises:
        ValueError: the header isn't whole.
    """
    length = _header_length(file)
    if length > file.stat().st_size - 8:
        raise ValueError(f"{file} ends within its header")
    with file.open("rb") as stream:
        stream.seek(8)
        header: dict[str, Any] = json.loads(stream.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _check_shards(place: Path, source: str, *, embedder: bool) -> None:
    """Compare an index with the files that it names, as transformers would take them."""
    root = place / _transformer_of(place) if embedder else place
    if not (root / "config.json").is_file():
        raise ModelError(source, "holds no config.json", COPY, embedder=embedder)
    if not any(root.glob("*.safetensors")):
        raise ModelError(
            source,
            "holds no *.safetensors (pickled weights are never loaded)",
            "Where you trust its maker, load it elsewhere once, and name what save_pretrained writes.",
            embedder=embedder,
        )
    if (root / WEIGHTS).is_file() or not (root / INDEX).is_file():
        return
    try:
        index: dict[str, str] = json.loads((root / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(index.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            source, f"has no weight_map in {INDEX}", COPY, embedder=embedder
        ) from error
    if missing := [name for name in shards if not (root / name).is_file()]:
        fault = (
            f"lacks {len(missing)} of the {len(shards)} files that {INDEX} lists ({_some(missing)})"
        )
        raise ModelError(source, fault, COPY, embedder=embedder)
    held = {(name, shard) for shard in shards for name in safetensors_header(root / shard)}
    if lost := sorted(set(index.items()) - held):
        fault = f"lacks {lost[0][0]} in {lost[0][1]}, where {INDEX} lists it"
        raise ModelError(source, fault, COPY, embedder=embedder)


def _transformer_of(place: Path) -> str:
    """Return where in a sentence-transformers model its transformer is."""
    try:
        modules = json.loads((place / MODULES).read_text(encoding="utf-8"))
        return str(modules[0]["path"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def _check_names(kind: Any, place: Path, source: str, *, embedder: bool = False) -> None:
    """Compare the names and shapes of a model's weights with those in its files; none is read."""
    with quiet():
        try:
            _, found = kind.from_pretrained(
                place,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except LIBRARY_ERRORS as error:
            raise ModelError(source, unreadable(error), COPY, embedder=embedder) from error
    check_loaded(found, source, embedder=embedder)


def check_loaded(found: Mapping[str, Any], source: str, *, embedder: bool = False) -> None:
    """Check what transformers says of a load (``output_loading_info``).

    Raises:
        ModelError: weights are missing, which it fills with random numbers, have other shapes than the
            configuration says, or belong to layers that the configuration doesn't have.
    """
    # a pooler is no part of a mean over tokens, and many embedding models are saved without it
    missing = [n for n in found["missing_keys"] if not (embedder and n.startswith("pooler."))]
    if missing:
        fault = (
            f"lacks {len(missing)} of its weights ({_some(sorted(missing))}), which would be random "
            "numbers"
        )
        raise ModelError(source, fault, COPY, embedder=embedder)
    for name, *shapes in sorted(found["mismatched_keys"], key=lambda key: str(key[0])):
        held, expected = (list(shape) for shape in shapes)
        fault = f"holds {name} in the shape {held}, and config.json says {expected}"
        raise ModelError(source, fault, SAME_CONFIG, embedder=embedder)
    layers = sorted(n for n in found["unexpected_keys"] if re.search(r"\blayers?\.\d+\.", n))
    if layers and not embedder:
        fault = f"holds layers that config.json doesn't name ({_some(layers)})"
        raise ModelError(source, fault, SAME_CONFIG, embedder=embedder)


def load_tokenizer_and_config(place: str, source: str) -> tuple[Any, Any]:
    """Load a model's tokenizer and configuration.

    Raises:
        ModelError: one of them can't be read.
    """
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False), config
    except LIBRARY_ERRORS as error:
        raise ModelError(source, unreadable(error), COPY) from error


def check_tokenizer(tokenizer: Any, config: Any, source: str) -> None:
    """Check that a tokenizer fits its model, and that its chat template can be used.

    Raises:
        ModelError: a token has no row in the embedding; or the template drops the system's or the user's
            message, doesn't end an answer, or doesn't end itself.
    """
    _check_vocabulary(tokenizer, config, source)
    if not tokenizer.chat_template:
        return
    faults: list[str] = []

    def look() -> None:
        faults.append(_template_fault(tokenizer))

    # a template is a program of the model's maker: it may loop
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(TEMPLATE_SECONDS)
    fault = faults[0] if faults else f"has no end after {TEMPLATE_SECONDS:.0f} seconds"
    if fault:
        remedy = (
            "Mend chat_template.jinja (or the template in tokenizer_config.json) in a copy of it."
        )
        raise ModelError(source, f"has a chat template that {fault}", remedy)


def _check_vocabulary(tokenizer: Any, config: Any, source: str, *, embedder: bool = False) -> None:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and highest >= rows:
        raise ModelError(
            source,
            f"has a tokenizer with ids up to {highest}, and an embedding of {rows} rows",
            "Take the tokenizer that was saved with it, or enlarge the model (resize_token_embeddings).",
            embedder=embedder,
        )


def _template_fault(tokenizer: Any) -> str:
    """Render two conversations, and return what is wrong with them; empty if nothing is."""
    system, user = "probe7system", "probe8user"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    try:
        text = _render(tokenizer, messages)
    except Exception:  # a template raises whatever it likes; this one refuses the system's role
        text = f"{system}"
    if system not in text:
        return "drops the system message (one that raises an error for it would do: the request then holds it)"
    try:
        text = _render(tokenizer, messages[1:])
    except Exception as error:
        return f"refuses a user message ({first_line(error)})"
    if user not in text:
        return "drops the user message"
    if end_of_answer(tokenizer) is None:
        return "doesn't end an answer: no special token, such as the end token, follows it"
    return ""


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out transformers' report of a load, which takes a screen: what is wrong is raised."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def unreadable(error: BaseException) -> str:
    """Return the fault of a model that a library can't read."""
    return f"can't be read ({first_line(error).rstrip('.')})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
