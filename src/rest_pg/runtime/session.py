"""Parameters of the running session, for code without access to the Kedro context."""

from __future__ import annotations

from typing import Any


class RunParameters:
    """Session parameters for code without access to the Kedro context, such as the pipeline registry."""

    values: dict[str, Any] | None = None
