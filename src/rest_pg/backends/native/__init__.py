"""Decoding in machine code on CPUs that multiply bfloat16: one call for a step of all rows.

``decode.cpp`` is compiled once per machine, by the C++ compiler found there. Where there is none, and for
models that it doesn't cover, the same steps run in PyTorch.
"""

from rest_pg.backends.native.decoder import NativeDecoder
from rest_pg.backends.native.library import load_library
from rest_pg.backends.native.weights import NativeWeights, unsupported_reason

__all__ = ["NativeDecoder", "NativeWeights", "load_library", "unsupported_reason"]
