"""Back-ends as catalog entries: the class behind a protocol, and its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io.core import AbstractDataset, DatasetError
from kedro.utils import load_obj

from rest_pg.datasets.base import local_path
from rest_pg.runtime.session import project_root


def _with_local_directories(arguments: Any) -> Any:
    """Return a back-end's arguments, those of the ones within it too, with every directory local."""
    if not isinstance(arguments, dict):
        return arguments
    return {
        name: str(local_path(value))
        if name == "directory" and isinstance(value, str)
        else _with_local_directories(value)
        for name, value in arguments.items()
    }


def _in_project(arguments: Any, root: Path) -> Any:
    """Return arguments whose directories and templates are found from outside the project too."""
    if not isinstance(arguments, dict):
        return arguments
    return {
        name: str(root / value)
        if name in ("directory", "template") and isinstance(value, str)
        else _in_project(value, root)
        for name, value in arguments.items()
    }


class BackendDataset(AbstractDataset[Any, Any]):
    """A back-end built from the catalog: the class behind a protocol, and its arguments.

    The catalog is the only place that names an implementation; nodes see the protocol.
    """

    def __init__(
        self,
        *,
        backend: str,
        arguments: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Build the class at the dotted path ``backend`` with ``arguments``."""
        self._backend = backend
        self._arguments = _with_local_directories(arguments or {})
        self.metadata = metadata

    def load(self) -> Any:
        """Return a new instance; raise ``DatasetError`` naming the argument at fault."""
        root = project_root()
        arguments = self._arguments
        if root != Path.cwd():  # as in a notebook: a run works in the project
            arguments = _in_project(arguments, root)
        try:
            built = load_obj(self._backend)(**arguments)
        except (AttributeError, ImportError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self._backend} can't be built with {self._arguments}: {error}. "
                "Mend its entry in catalog.yml."
            ) from error
        # for whoever has to build it again elsewhere
        built.built_from = {"backend": self._backend, "arguments": self._arguments}
        return built

    def save(self, data: Any) -> None:
        """Refuse: a back-end is configuration, not data."""
        raise DatasetError(f"{self._backend} is built from catalog.yml and can't be saved")

    def _describe(self) -> dict[str, Any]:
        return {"backend": self._backend, "arguments": self._arguments}

    def _exists(self) -> bool:
        return True
