"""Engines behind the protocols: the only place that imports heavy libraries."""
