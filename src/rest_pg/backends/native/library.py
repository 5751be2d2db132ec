"""The compiled library: found in the user's cache, or made there."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("decode.cpp")
COMPILERS = ("c++", "g++", "clang++")
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "fma")
AMX = ("amx-tile", "amx-bf16")
"""Products of whole tiles, on processors that have them: ten times as fast there."""
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp")

logger = logging.getLogger(__name__)


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Layer(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "qkv output gate_up down qkv_bias"),
        *_fields(ctypes.c_void_p, "norm mlp_norm query_norm key_norm"),
        *_fields(ctypes.c_int32, "rotary window"),
    )


class Model(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = (
        *_fields(ctypes.c_int32, "layers hidden heads kv_heads head_size intermediate vocabulary"),
        *_fields(ctypes.c_float, "epsilon scale"),
        ("layer", ctypes.POINTER(Layer)),
        *_fields(ctypes.c_void_p, "embedding head norm"),
        *_fields(ctypes.c_void_p, "prefix_keys prefix_values suffix_keys suffix_values"),
        *_fields(ctypes.c_int32, "groups rows prefix_tokens suffix_tokens"),
    )


class Step(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = (
        ("rows", ctypes.c_int32),
        *_fields(ctypes.c_void_p, "token slot at group prefix_length cosine sine logits"),
    )


class Prompt(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = (
        *_fields(ctypes.c_int32, "tokens slot"),
        *_fields(ctypes.c_void_p, "token cosine sine logits"),
    )


class Draw(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = (
        *_fields(ctypes.c_int32, "rows vocabulary"),
        *_fields(ctypes.c_float, "temperature top_p"),
        *_fields(ctypes.c_void_p, "logits row uniform token accepted"),
    )


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL | None:
    """Return the library, compiled if need be; None where it can't be, and the log says why."""
    if torch.cuda.is_available() or not torch.cpu._is_avx512_bf16_supported():
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("decoding in PyTorch, which takes two to three times as long: %s", error)
        return None
    library.rest_pg_decoder.argtypes = [ctypes.POINTER(Model), ctypes.c_int32]
    library.rest_pg_decoder.restype = ctypes.c_void_p
    library.rest_pg_step.argtypes = [ctypes.c_void_p, ctypes.POINTER(Step)]
    library.rest_pg_read.argtypes = [ctypes.c_void_p, ctypes.POINTER(Prompt)]
    library.rest_pg_draw.argtypes = [ctypes.POINTER(Draw)]
    library.rest_pg_close.argtypes = [ctypes.c_void_p]
    return library


def _compiled() -> Path:
    """Compile the source into the cache, under a name that says what it was made of."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler is installed ({', '.join(COMPILERS)})")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    # the system has to let a process use tiles; asked for here, it holds for all of its threads
    instructions = (*INSTRUCTIONS, *(AMX if torch.cpu._init_amx() else ()))
    flags = (*FLAGS, *(f"-m{i}" for i in instructions))
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    made_of = b"\0".join([*(p.read_bytes() for p in sources), version, " ".join(flags).encode()])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rest-pg"
    target = home / f"decode-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        made = Path(scratch, "decode.so")
        run = subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", str(made)],
            check=False,
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise OSError(f"{compiler} can't compile {SOURCE.name}: {run.stderr.strip()[-500:]}")
        os.replace(made, target)
    return target
