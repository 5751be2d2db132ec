"""The few datasets that Kedro lacks: typed records, policy checkpoints, back-ends, raw sources."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial, wraps
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

from rest_pg.checksums import (
    COMPLETE,
    AnyPath,
    check_policy,
    check_seal,
    files_of,
    mark_complete,
    passes,
    policy_fingerprint,
    put_sealed,
    seal_of,
    sync,
)
from rest_pg.freshness import Origin
from rest_pg.object_store import ObjectStore, open_store
from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import temporary_name

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
            f"{filepath} is on {protocol}://, and a back-end keeps its work in progress (shards, checkpoints, "
            "embeddings) on a filesystem: name a directory; nodes of a cluster need one that all of them mount."
        )
    return PurePosixPath(path)


class _Kept(AbstractVersionedDataset[Any, Any]):
    """What is kept with its checksums, on this machine's filesystem or in an object store."""

    origin: Origin | None = None
    """What makes this data in the run at hand, as its hook says; none: nothing is known."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
    ) -> None:
        """Store at ``filepath``, or in versions below it.

        Args:
            filepath: a path, or an address of an object store that fsspec knows (``s3://bucket/…``).
            version: Kedro's.
            metadata: Kedro's.
            credentials: of an object store, as its fsspec class takes them.
            fs_args: more of that class's arguments.
        """
        self._store, path = open_store(filepath, {**(fs_args or {}), **(credentials or {})})
        super().__init__(
            PurePosixPath(path),
            version,
            exists_function=self._has if self._store else os.path.exists,
            glob_function=self._store.glob if self._store else None,
        )
        self.metadata = metadata

    def _has(self, path: str) -> bool:
        """Whether the store has what makes a version valid."""
        assert self._store is not None
        return self._store.has(path)

    def _fetch(self, store: ObjectStore, path: PurePosixPath) -> Path:
        """Bring the copy of what the store has up to date, and return it."""
        raise NotImplementedError

    def _newest(self) -> Path:
        """Return where the data to be loaded lie on this machine."""
        path = self._get_load_path()
        return Path(path) if self._store is None else self._fetch(self._store, path)

    def _check(self, path: Path) -> None:
        """Raise ``DatasetError`` unless what lies here is whole, byte for byte."""
        raise NotImplementedError

    def _exists(self) -> bool:
        try:
            self._check(self._newest())
        except DatasetError:  # or there is no version
            return False
        return self.origin is None or self.stored_origin() == self.origin

    def stored_origin(self) -> Origin | None:
        """Return what made the data that is there; none if that isn't known, or there is none."""
        try:
            return Origin.from_json(self._origin_of(self._newest()).read_text(encoding="utf-8"))
        except (DatasetError, OSError, ValueError, TypeError):
            return None

    def _origin_of(self, path: Path) -> Path:
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        path = self._store.address(self._filepath) if self._store else self._filepath
        return {"filepath": path, "version": self._version}


class _SealedFile(_Kept):
    """A file that is whole or not there, with its checksum beside it.

    It is written to a temporary name, synced, sealed (``<file>.sha256``) and renamed: whatever is
    interrupted leaves the version before, or the new one. A file that doesn't match its seal is never read, and counts
    as missing, so that ``--only-missing-outputs`` makes it anew; so does one that something else made
    than would make it now (``<file>.origin.json`` against :attr:`origin`).
    """

    def _read(self, path: Path) -> Any:
        raise NotImplementedError

    def _write(self, path: Path, data: Any) -> None:
        raise NotImplementedError

    def load(self) -> Any:
        """Return the data; raise ``DatasetError`` naming a file that is damaged."""
        path = self._newest()
        self._check(path)
        return self._read(path)

    def save(self, data: Any) -> None:
        """Write the data, all or nothing."""
        place = self._get_save_path()
        path = self._store.copy_of(place) if self._store else Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            self._write(temporary, data)
            origin = {origin_of(path): self.origin.to_json() if self.origin else None}
            store = self._store
            if store is None:
                put_sealed(temporary, path, beside=origin)
            else:
                put_sealed(
                    temporary,
                    path,
                    beside=origin,
                    known=store.text(seal_of(place)) or "",  # another machine may have saved it
                    done=lambda part: store.put(place.with_name(part.name)),
                )
        finally:
            temporary.unlink(missing_ok=True)

    def _fetch(self, store: ObjectStore, path: PurePosixPath) -> Path:
        copy = store.copy_of(path)
        if store.text(seal_of(path)) != _text(seal_of(copy)) or not passes(check_seal, copy):
            for part in (path, seal_of(path)):
                store.fetch(part, store.copy_of(part))
        store.fetch(origin_of(path), origin_of(copy))
        return copy

    def _check(self, path: Path) -> None:
        check_seal(path)

    def _origin_of(self, path: Path) -> Path:
        return origin_of(path)


class SealedDataset(_SealedFile):
    """Any of Kedro's datasets that keep one file, sealed: figures, tables, plots, texts."""

    def __init__(
        self,
        *,
        filepath: str,
        dataset: dict[str, Any],
        **kept: Any,
    ) -> None:
        """Store what ``dataset`` (its type and arguments, without a path) reads and writes."""
        super().__init__(filepath=filepath, **kept)
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
        return self._at(self._newest()).preview(*args, **kwargs)

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"dataset": self._dataset}


class RecordsDataset(_SealedFile):
    """A list of records of one type as JSON Lines: one record a line, checked on load.

    Lines are split at ``\\n`` only: U+2028 and its kin may stand inside a text.
    """

    def __init__(
        self,
        *,
        filepath: str,
        record: str,
        **kept: Any,
    ) -> None:
        """Store records of the class at the dotted path ``record`` in ``filepath``."""
        super().__init__(filepath=filepath, **kept)
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
        with self._newest().open(encoding="utf-8", newline="\n") as lines:
            records = [json.loads(line) for line in islice(lines, nrows)]
        columns = list(records[0]) if records else []
        rows = [[_cut(record[name]) for name in columns] for record in records]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"record": self._record}


def _cut(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def origin_of(path: AnyPath) -> AnyPath:
    """Return where it stands what made a file."""
    return path.with_name(path.name + ORIGIN)


def _write_origin(origin: Origin | None, path: Path) -> None:
    """Write what made the data; where nobody says, nothing of an earlier version may stay."""
    if origin is None:
        path.unlink(missing_ok=True)
        return
    temporary = temporary_name(path)
    temporary.write_text(origin.to_json(), encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


class PolicyDataset(_Kept):
    """A versioned language model: a directory with safetensors, configuration and tokenizer.

    Saving moves the directory that the node left into place and marks it complete, last. What is
    loaded is a handle: the weights are read by the back-end that uses them.
    """

    def load(self) -> PolicyCheckpoint:
        """Return the handle; raise ``DatasetError`` if a file is missing or damaged."""
        path = self._newest()
        self._check(path)
        policy = PolicyCheckpoint(path)
        if self._store is None:
            return policy
        address = self._store.address(self._get_load_path())
        return replace(policy, address=address, fingerprint=policy_fingerprint(policy))

    def save(self, data: PolicyCheckpoint) -> None:
        """Move ``data.path`` here, and mark it complete."""
        place = self._get_save_path()
        target = self._store.copy_of(place) if self._store else Path(place)
        check_is_model(data.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = temporary_name(target)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.move(data.path, partial)
            _write_origin(self.origin, partial / ORIGIN)
            mark_complete(partial)
            _move_into_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if self._store:
            self._store.remove(place / COMPLETE)  # of a version that is replaced
            for name in (*files_of(target), COMPLETE):
                self._store.put(place / name)

    def _has(self, path: str) -> bool:
        return super()._has(f"{path}/{COMPLETE}")

    def _fetch(self, store: ObjectStore, path: PurePosixPath) -> Path:
        copy = store.copy_of(path)

        def is_current() -> bool:
            of_store = store.text(path / COMPLETE)
            return of_store == _text(copy / COMPLETE) and passes(check_policy, copy)

        if is_current():
            return copy
        partial = temporary_name(copy)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            store.fetch(path / COMPLETE, partial / COMPLETE)
            for name in files_of(partial):
                store.fetch(path / name, partial / name)
            if not is_current():  # another process may have been quicker
                _move_into_place(partial, copy)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return copy

    def _check(self, path: Path) -> None:
        check_policy(path)

    def _origin_of(self, path: Path) -> Path:
        return path / ORIGIN


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename a directory, in the place of another if there is one, onto which it can't be renamed."""
    if target.exists():
        target.rename(replaced := temporary_name(target.with_name(f"{target.name}.old")))
        partial.replace(target)
        shutil.rmtree(replaced)
    else:
        partial.replace(target)


def check_is_model(path: Path) -> None:
    """Raise ``DatasetError`` unless ``path`` is a directory with a config and safetensors."""
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise DatasetError(
            f"{path} is not a model directory: it must hold config.json and *.safetensors. "
            "Name a directory that save_pretrained wrote."
        )


def at_hand(policy: PolicyCheckpoint) -> PolicyCheckpoint:
    """Return a policy that can be read here: another machine's is fetched from the store that it is in.

    Raises:
        DatasetError: it isn't whole there, can't be reached, or was replaced by another.
    """
    if not policy.address:
        return policy
    if policy.path.is_dir() and policy_fingerprint(policy) == policy.fingerprint:
        return policy
    found = PolicyDataset(filepath=policy.address).load()
    if found.fingerprint != policy.fingerprint:
        raise DatasetError(
            f"{policy.address} is another policy than when this work was given out: run again, and "
            "keep versions of it (versioned: true)"
        )
    return found


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
