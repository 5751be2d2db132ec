"""Placing one node function several times with fixed arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any


def bind(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """Fix keyword arguments of a node function, and keep its name and type hints.

    A bare ``partial`` has no hints, and Kedro then passes parameters unchecked, as plain mappings.
    """
    return update_wrapper(partial(function, **fixed), function)
