"""The few datasets that Kedro lacks: typed records, policy checkpoints, back-ends, raw sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from kedro.io.core import AbstractDataset, AbstractVersionedDataset, DatasetError, Version
from kedro.utils import load_obj
from pydantic import TypeAdapter, ValidationError

from rest_pg.records import PolicyCheckpoint

COMPLETE = "complete.json"
"""Written last into a policy's directory: the size and SHA-256 of each of its files."""


class RecordsDataset(AbstractVersionedDataset[list[Any], list[Any]]):
    """A list of records of one type as JSON Lines: one record a line, checked on load.

    Lines are split at ``\\n`` only: U+2028 and its kin may stand inside a text. Files are written to
    a temporary name, synced and renamed, so that a file under its own name is always whole.
    """

    def __init__(
        self,
        *,
        filepath: str,
        record: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Store records of the class at the dotted path ``record`` in ``filepath``."""
        super().__init__(PurePosixPath(filepath), version, exists_function=os.path.exists)
        self._record = load_obj(record)
        self._adapter: TypeAdapter[Any] = TypeAdapter(self._record)
        self.metadata = metadata

    def load(self) -> list[Any]:
        """Return the records; raise ``DatasetError`` naming the file, line and field at fault."""
        path = Path(self._get_load_path())
        records = []
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    records.append(self._adapter.validate_json(line))
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"])) or "line"
                    raise DatasetError(
                        f"{path}, line {number}, {where}: {first['msg']}, found "
                        f"{str(first['input'])[:80]!r}. Delete this version and run again."
                    ) from error
        return records

    def save(self, data: list[Any]) -> None:
        """Write the records, all or nothing."""
        path = Path(self._get_save_path())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for record in data:
                file.write(json.dumps(self._adapter.dump_python(record, mode="json")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "record": self._record, "version": self._version}

    def _exists(self) -> bool:
        try:
            return Path(self._get_load_path()).is_file()
        except DatasetError:
            return False


class PolicyDataset(AbstractVersionedDataset[PolicyCheckpoint, PolicyCheckpoint]):
    """A versioned language model: a directory with safetensors, configuration and tokenizer.

    Saving moves the directory that the node left into place and marks it complete, last. What is
    loaded is a handle: the weights are read by the back-end that uses them.
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Store policies below the directory ``filepath``."""
        super().__init__(PurePosixPath(filepath), version, exists_function=os.path.exists)
        self.metadata = metadata

    def load(self) -> PolicyCheckpoint:
        """Return the handle; raise ``DatasetError`` if a file is missing or of another size."""
        path = Path(self._get_load_path())
        check_policy(path)
        return PolicyCheckpoint(path)

    def save(self, data: PolicyCheckpoint) -> None:
        """Move ``data.path`` here, and mark it complete."""
        target = Path(self._get_save_path())
        check_is_model(data.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.move(data.path, partial)
        mark_complete(partial)
        partial.replace(target)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}

    def _exists(self) -> bool:
        try:
            check_policy(Path(self._get_load_path()))
        except DatasetError:
            return False
        return True


def check_is_model(path: Path) -> None:
    """Raise ``DatasetError`` unless ``path`` is a directory with a config and safetensors."""
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise DatasetError(
            f"{path} is not a model directory: it must hold config.json and *.safetensors. "
            "Name a directory that save_pretrained wrote."
        )


def mark_complete(path: Path) -> None:
    """Write the size and SHA-256 of each file of a policy, synced to disk."""
    files = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name != COMPLETE:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    with (path / COMPLETE).open("w", encoding="utf-8") as marker:
        json.dump({"files": files}, marker, indent=2)
        marker.flush()
        os.fsync(marker.fileno())


def check_policy(path: Path) -> None:
    """Raise ``DatasetError`` if a policy's directory is not whole."""
    try:
        files = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{path} has no readable {COMPLETE}: it was not saved to the end. "
            "Delete it, then run again with --only-missing-outputs."
        ) from error
    for name, expected in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else -1
        if found != expected["bytes"]:
            raise DatasetError(
                f"{path / name} holds {found} bytes, and {expected['bytes']} were saved. "
                "Delete this version, then run again with --only-missing-outputs."
            )


class SamplesTableDataset(AbstractDataset[dict[str, list[Any]], None]):
    """A table of samples in the MLflow run at hand, which its page shows and filters.

    In a run that goes on, a table that is there already is left as it is.
    """

    def __init__(self, *, artifact_file: str, metadata: dict[str, Any] | None = None) -> None:
        """Name the table's file among the run's artifacts."""
        self._artifact_file = artifact_file
        self.metadata = metadata

    def load(self) -> None:
        """Raise ``DatasetError``: tables are for people."""
        raise DatasetError(f"{self._artifact_file} is written for MLflow's page, and never read")

    def save(self, data: dict[str, list[Any]]) -> None:
        """Log the table by its columns; without an MLflow run there is nothing to do."""
        run = mlflow.active_run()
        if run is None:
            return
        logged = mlflow.get_run(run.info.run_id).data.tags.get("mlflow.loggedArtifacts", "")
        if self._artifact_file not in logged:
            mlflow.log_table(data, self._artifact_file)

    def _describe(self) -> dict[str, Any]:
        return {"artifact_file": self._artifact_file}


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
        self._arguments = arguments or {}
        self.metadata = metadata

    def load(self) -> Any:
        """Return a new instance; raise ``DatasetError`` naming the argument at fault."""
        try:
            return load_obj(self._backend)(**self._arguments)
        except (AttributeError, ImportError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self._backend} can't be built with {self._arguments}: {error}. "
                "Mend its entry in catalog.yml."
            ) from error

    def save(self, data: Any) -> None:
        """Refuse: a back-end is configuration, not data."""
        raise DatasetError(f"{self._backend} is built from catalog.yml and can't be saved")

    def _describe(self) -> dict[str, Any]:
        return {"backend": self._backend, "arguments": self._arguments}

    def _exists(self) -> bool:
        return True
