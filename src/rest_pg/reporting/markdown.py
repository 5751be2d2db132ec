"""Names and texts within Markdown, shown as they are: the hub and MLflow render it, with HTML and links."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import yaml


def escape_markdown(value: object) -> str:
    """Return a value as one line of Markdown that shows its characters literally."""
    text = escape(" ".join(str(value).split()), quote=False)
    text = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)  # rouge_1 needs none
    # addresses become links by themselves; what begins a line may begin a heading or a list
    text = re.sub(r"(?<=:)//|(?<=www)\.", lambda m: "".join(f"&#{ord(c)};" for c in m[0]), text)
    return re.sub(r"^(\d*)([#+\-=.)])", lambda m: f"{m[1]}&#{ord(m[2])};", text)


def code_span(value: object) -> str:
    """Return a value as code within a line; it may hold backticks."""
    text = " ".join(str(value).split())
    fence = "`" * (_longest_run(text) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def code_block(text: str) -> str:
    """Return a text as a block of code; it may hold fences of its own."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def yaml_scalar(value: object) -> str:
    """Return a value as a quoted YAML string on one line, for a card's front matter."""
    style: dict[str, Any] = {"default_style": '"', "allow_unicode": True, "width": float("inf")}
    return str(yaml.safe_dump(str(value), **style)).rstrip("\n")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
