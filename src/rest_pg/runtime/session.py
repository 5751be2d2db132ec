"""Parameters of the running session, for code without access to the Kedro context."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.project import LOGGING
from kedro.utils import find_kedro_project


class RunParameters:
    """Session parameters for code without access to the Kedro context, such as the pipeline registry."""

    values: dict[str, Any] | None = None
    project: Path | None = None
    """Of the session; none: there was none yet."""


def project_root() -> Path:
    """Return the project that holds the working directory, else the session's, else that directory itself."""
    return find_kedro_project(Path.cwd()) or RunParameters.project or Path.cwd()


def use_project_logging(project: Path) -> None:
    """Log as the project says from outside of its directory too, where Kedro doesn't find its settings.

    Kedro's own settings wrap lines, so that neither a command nor a line of JSON can be copied.
    """
    file = project / "conf" / "logging.yml"
    if os.environ.get("KEDRO_LOGGING_CONFIG") or Path.cwd() == project or not file.is_file():
        return
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    if LOGGING.data != settings:
        LOGGING.configure(settings)
