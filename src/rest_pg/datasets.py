"""The few datasets that Kedro lacks: typed records, policy checkpoints, back-ends, raw sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import (
    AbstractDataset,
    AbstractVersionedDataset,
    DatasetError,
    Version,
    get_protocol_and_path,
)
from kedro.utils import load_obj
from kedro_datasets._typing import TablePreview
from pydantic import TypeAdapter, ValidationError

from rest_pg.freshness import Origin
from rest_pg.records import PolicyCheckpoint

SEAL = ".sha256"
"""Behind a file's name: the file with its checksum, as ``sha256sum --check`` reads it."""
TEMPORARY = ".tmp"
COMPLETE = "complete.json"
"""Written last into a policy's directory: the size and SHA-256 of each of its files."""
ORIGIN = ".origin.json"
"""Behind a file's name: the file that says what made it."""
SHOWN_CHARACTERS = 300
"""Of a value in a preview, at most."""


def local_path(filepath: str) -> PurePosixPath:
    """Return a path of this machine's filesystem; ``file://`` may stand before it.

    Raises:
        DatasetError: another protocol stands before it.
    """
    protocol, path = get_protocol_and_path(filepath)
    if protocol != "file":
        raise DatasetError(
            f"{filepath} is on {protocol}://, where nothing can be renamed into its place: what is kept "
            "here is whole or not there. Name a path of a filesystem; nodes of a cluster need one that "
            "all of them mount."
        )
    return PurePosixPath(path)


class _SealedFile(AbstractVersionedDataset[Any, Any]):
    """A file that is whole or not there, with its checksum beside it.

    It is written to a temporary name, synced, sealed (``<file>.sha256``) and renamed: whatever is
    interrupted leaves the version before. A file that doesn't match its seal is never read, and counts
    as missing, so that ``--only-missing-outputs`` makes it anew; so does one that something else made
    than would make it now (``<file>.origin.json`` against :attr:`origin`).
    """

    origin: Origin | None = None
    """What makes this data in the run at hand, as its hook says; none: nothing is known."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Store at ``filepath``, or in versions below it."""
        super().__init__(local_path(filepath), version, exists_function=os.path.exists)
        self.metadata = metadata

    def _read(self, path: Path) -> Any:
        raise NotImplementedError

    def _write(self, path: Path, data: Any) -> None:
        raise NotImplementedError

    def load(self) -> Any:
        """Return the data; raise ``DatasetError`` naming a file that is damaged."""
        path = Path(self._get_load_path())
        check_seal(path)
        return self._read(path)

    def save(self, data: Any) -> None:
        """Write the data, all or nothing."""
        path = Path(self._get_save_path())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            self._write(temporary, data)
            # seal and origin first: a file without them would look whole after an interruption here
            _seal(temporary, path)
            _write_origin(self.origin, origin_of(path))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _exists(self) -> bool:
        try:
            check_seal(Path(self._get_load_path()))
        except DatasetError:
            return False
        return self.origin is None or self.stored_origin() == self.origin

    def stored_origin(self) -> Origin | None:
        """Return what made the data that is there; none if that isn't known, or there is none."""
        return _read_origin(self, origin_of)


class SealedDataset(_SealedFile):
    """Any of Kedro's datasets that keep one file, sealed: figures, tables, plots, texts."""

    def __init__(
        self,
        *,
        filepath: str,
        dataset: dict[str, Any],
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Store what ``dataset`` (its type and arguments, without a path) reads and writes."""
        super().__init__(filepath=filepath, version=version, metadata=metadata)
        self._dataset = dataset
        shown = getattr(type(self._at(Path(filepath))), "preview", None)
        if shown is not None:
            # kedro-viz tells tables from plots by the return type of the dataset's own method
            self.preview = wraps(shown)(partial(self._preview))

    def _read(self, path: Path) -> Any:
        return self._at(path).load()

    def _write(self, path: Path, data: Any) -> None:
        self._at(path).save(data)

    def _at(self, path: Path) -> Any:
        return AbstractDataset.from_config("sealed", {**self._dataset, "filepath": str(path)})

    def _preview(self, *args: Any, **kwargs: Any) -> Any:
        return self._at(Path(self._get_load_path())).preview(*args, **kwargs)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "dataset": self._dataset, "version": self._version}


class RecordsDataset(_SealedFile):
    """A list of records of one type as JSON Lines: one record a line, checked on load.

    Lines are split at ``\\n`` only: U+2028 and its kin may stand inside a text.
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
        super().__init__(filepath=filepath, version=version, metadata=metadata)
        self._record = load_obj(record)
        self._adapter: TypeAdapter[Any] = TypeAdapter(self._record)

    def _read(self, path: Path) -> list[Any]:
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

    def _write(self, path: Path, data: list[Any]) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for record in data:
                file.write(json.dumps(self._adapter.dump_python(record, mode="json")) + "\n")

    def preview(self, nrows: int = 10) -> TablePreview:
        """Return the first records as kedro-viz shows tables; long texts are cut."""
        path = Path(self._get_load_path())
        with path.open(encoding="utf-8", newline="\n") as lines:
            records = [json.loads(line) for line in islice(lines, nrows)]
        columns = list(records[0]) if records else []
        rows = [[_cut(record[name]) for name in columns] for record in records]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "record": self._record, "version": self._version}


def _cut(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def seal_of(path: Path) -> Path:
    """Return where a file's checksum stands."""
    return path.with_name(path.name + SEAL)


def _seal(temporary: Path, path: Path) -> None:
    """Write the checksum of what is about to take a file's place."""
    _sync(temporary)
    seal = temporary_name(seal_of(path))
    seal.write_text(f"{_digest(temporary)}  {path.name}\n", encoding="utf-8")
    _sync(seal)
    seal.replace(seal_of(path))


def reseal(temporary: Path, path: Path) -> None:
    """Put a changed file in a file's place, with its new checksum if it had one."""
    if seal_of(path).exists():
        _seal(temporary, path)
    temporary.replace(path)


def origin_of(path: Path) -> Path:
    """Return where it stands what made a file."""
    return path.with_name(path.name + ORIGIN)


def _write_origin(origin: Origin | None, path: Path) -> None:
    """Write what made the data; where nobody says, nothing of an earlier version may stay."""
    if origin is None:
        path.unlink(missing_ok=True)
        return
    temporary = temporary_name(path)
    temporary.write_text(origin.to_json(), encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def _read_origin(
    dataset: AbstractVersionedDataset[Any, Any], place: Callable[[Path], Path]
) -> Origin | None:
    try:
        path = place(Path(dataset._get_load_path()))
        return Origin.from_json(path.read_text(encoding="utf-8"))
    except (DatasetError, OSError, ValueError, TypeError):
        return None


def check_seal(path: Path) -> None:
    """Raise ``DatasetError`` unless a file matches its checksum."""
    try:
        expected = seal_of(path).read_text(encoding="utf-8").split()[0]
        found = _digest(path)
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} or its checksum {seal_of(path).name} can't be read: {error}. "
            "Run again with --only-missing-outputs: it is made anew."
        ) from error
    if found != expected:
        raise DatasetError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, and {expected[:12]}… was saved. "
            "Run again with --only-missing-outputs: it is made anew."
        )


def temporary_name(path: Path) -> Path:
    """Return the name that a file or directory has while it is written."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def sweep_temporary(root: Path) -> int:
    """Remove what interrupted runs left half written; what a living process writes stays.

    Returns:
        How many files and directories were removed.
    """
    removed = 0
    for path in root.rglob(f".*{TEMPORARY}"):
        owner = path.name.removesuffix(TEMPORARY).rpartition(".")[2]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            removed += 1
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class PolicyDataset(AbstractVersionedDataset[PolicyCheckpoint, PolicyCheckpoint]):
    """A versioned language model: a directory with safetensors, configuration and tokenizer.

    Saving moves the directory that the node left into place and marks it complete, last. What is
    loaded is a handle: the weights are read by the back-end that uses them.
    """

    origin: Origin | None = None
    """As in the other datasets: what makes this policy in the run at hand."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Store policies below the directory ``filepath``."""
        super().__init__(local_path(filepath), version, exists_function=os.path.exists)
        self.metadata = metadata

    def load(self) -> PolicyCheckpoint:
        """Return the handle; raise ``DatasetError`` if a file is missing or damaged."""
        path = Path(self._get_load_path())
        check_policy(path)
        return PolicyCheckpoint(path)

    def save(self, data: PolicyCheckpoint) -> None:
        """Move ``data.path`` here, and mark it complete."""
        target = Path(self._get_save_path())
        check_is_model(data.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = temporary_name(target)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.move(data.path, partial)
            _write_origin(self.origin, partial / ORIGIN)
            mark_complete(partial)
            if target.exists():  # without versions; a directory can't be renamed onto another
                target.rename(replaced := temporary_name(target.with_name(f"{target.name}.old")))
                partial.replace(target)
                shutil.rmtree(replaced)
            else:
                partial.replace(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}

    def _exists(self) -> bool:
        try:
            check_policy(Path(self._get_load_path()))
        except DatasetError:
            return False
        return self.origin is None or self.stored_origin() == self.origin

    def stored_origin(self) -> Origin | None:
        """Return what made the policy that is there; none if that isn't known, or there is none."""
        return _read_origin(self, lambda path: path / ORIGIN)


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
            _sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
    with (path / COMPLETE).open("w", encoding="utf-8") as marker:
        json.dump({"files": files}, marker, indent=2)
        marker.flush()
        os.fsync(marker.fileno())


def check_policy(path: Path) -> None:
    """Raise ``DatasetError`` if a policy's directory isn't whole, byte for byte."""
    try:
        marker = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        files = {name: (own["bytes"], own["sha256"]) for name, own in marker["files"].items()}
    # a damaged marker may lack any of its names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} has no readable {COMPLETE}: it was not saved to the end. "
            "Delete it, then run again with --only-missing-outputs."
        ) from error
    for name, (size, digest) in files.items():
        file = path / name
        found = file.stat() if file.is_file() else None
        if found is None or found.st_size != size:
            raise DatasetError(
                f"{file} holds {found.st_size if found else 'no'} bytes, and {size} were "
                "saved. Run again with --only-missing-outputs: the policy is made anew."
            )
        if _known_digest(file, found.st_size, found.st_mtime_ns) != digest:
            raise DatasetError(
                f"{file} is damaged: its SHA-256 isn't the one that was saved. "
                "Run again with --only-missing-outputs: the policy is made anew."
            )


def policy_fingerprint(policy: PolicyCheckpoint) -> str:
    """Name a policy by its content: the checksums of its files, or where it has none, its files."""
    marker = policy.path / COMPLETE
    if marker.is_file():
        return hashlib.sha256(marker.read_bytes()).hexdigest()
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in policy.path.iterdir())
    return json.dumps(files)


@lru_cache(maxsize=1024)
def _known_digest(path: Path, size: int, changed: int) -> str:
    """Digest a large file once per process, as long as it doesn't change."""
    return _digest(path)


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
        try:
            built = load_obj(self._backend)(**self._arguments)
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
