"""How the process takes memory from the system and gives it back."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Have the C library, where it is glibc, keep large blocks for reuse, and give them back at the end.

    A decoding step makes the same large tensors again and again, and each otherwise costs the kernel
    fresh pages: a step of 64 rows took a fifth longer on two CPU cores. Training gains nothing, and
    its varied sizes would leave holes.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_threshold = -1, -3  # their names in malloc.h
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, 1 << 25)
        libc.mallopt(trim_threshold, 1 << 26)
        libc.malloc_trim(0)


@contextmanager
def explain_lack_of_memory(doing: str, remedy: str) -> Iterator[None]:
    """Turn the many errors that say memory has run out into one that says what to lower.

    Raises:
        MemoryError: memory ran out within; the parameter to lower is named.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        # torch has an error of its own on GPUs, and a plain one on the CPU
        known = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(words in text for words in known):
            raise
        raise MemoryError(f"memory ran out while {doing}: {remedy} ({error})") from error


def release_memory() -> None:
    """Give the memory of dropped tensors back to the system."""
    gc.collect()
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
