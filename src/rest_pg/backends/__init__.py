"""Engines behind the protocols: the only place that imports heavy libraries."""

import os

# oneDNN, which multiplies for torch on CPUs, keeps what it compiled for each shape, and every row of another
# length is another dozen shapes. Its 1,024 were 0.4 GB in training; these hold a model's layers, at the same speed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
