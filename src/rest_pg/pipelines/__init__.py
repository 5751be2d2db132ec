"""The pipelines, in the order of the data: each holds its wiring, its nodes and what they use."""
