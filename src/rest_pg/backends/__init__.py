"""Engines behind the protocols: the only place that imports heavy libraries."""

import os

# oneDNN, which multiplies for torch on CPUs, keeps what it compiled for each shape, and every row of another
# length is another dozen shapes. Its 1,024 were 0.4 GB in training; these hold a model's layers, at the same speed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# On recent NVIDIA GPUs torch asks cuDNN for attention first, which plans for every shape anew: for the length of each
# prompt and row, at nearly a second each, and in GPU memory that torch doesn't count. Its other kernels plan nothing.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
