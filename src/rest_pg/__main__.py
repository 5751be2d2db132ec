"""Run the packaged project: ``rest-pg --pipelines …`` takes what ``kedro run`` takes.

``rest-pg doctor`` is ``kedro doctor``.
"""

import sys
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project

from rest_pg.cli import doctor


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the pipelines named on the command line."""
    package_name = Path(__file__).parent.name
    configure_project(package_name)
    kwargs["standalone_mode"] = not hasattr(sys, "ps1")
    if sys.argv[1:2] == ["doctor"] and not args:
        return doctor(sys.argv[2:], **kwargs)
    return find_run_command(package_name)(*args, **kwargs)


if __name__ == "__main__":
    main()
