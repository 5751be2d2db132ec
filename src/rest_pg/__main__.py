"""Run the packaged project: ``rest-pg --pipelines …`` takes what ``kedro run`` takes.

``rest-pg doctor`` is ``kedro doctor``, and so with every command of :mod:`rest_pg.cli`.
"""

import sys
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project

from rest_pg.cli import cli


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the pipelines named on the command line."""
    package_name = Path(__file__).parent.name
    configure_project(package_name)
    kwargs["standalone_mode"] = not hasattr(sys, "ps1")
    named = cli.commands.get(sys.argv[1]) if len(sys.argv) > 1 and not args else None
    if named is not None:
        return named(sys.argv[2:], **kwargs)
    return find_run_command(package_name)(*args, **kwargs)


if __name__ == "__main__":
    main()
