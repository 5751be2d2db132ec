"""REST-PG: reasoning-enhanced self-training for personalised long-form text generation."""

__version__ = "0.1.0"
