"""Benchmarks against what peers do: ratios in one run, medians, the machine named (``make bench``)."""
