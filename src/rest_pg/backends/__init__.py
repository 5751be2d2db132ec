"""Engines behind the protocols: the only place that imports heavy libraries."""

import os

# oneDNN, which multiplies for torch on CPUs, keeps what it compiled for each shape, and every row of another
# length is another dozen shapes. Its 1,024 were 0.4 GB in training; these hold a model's layers, at the same speed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# On recent NVIDIA GPUs torch may ask cuDNN for attention first, which by PyTorch's users' reports plans anew for
# every shape: here for the length of each prompt and row.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
