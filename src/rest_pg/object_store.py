"""Datasets in an object store (``s3://``, ``gs://``, ``abfs://``: what fsspec knows), through copies here.

An object store has no rename, but an object is there whole or not at all. So a dataset is written on this
machine as any other is, then its objects are put, the one that makes it valid last: a file behind its
checksum, a policy's ``complete.json`` behind its weights. What is loaded comes from the copy, as long as
its checksum is still the store's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from kedro.io.core import DatasetError, get_protocol_and_path

from rest_pg.runtime.session import project_root
from rest_pg.temporary import temporary_name

WEIGHTS = ".safetensors"
COPIES = Path("data/.objects")
"""Below the project: a directory for each protocol, and in it the store's own paths."""


@dataclass(frozen=True)
class ObjectStore:
    """A store, and the copies of its objects that this machine has."""

    protocol: str
    prefix: str
    """Of an address, in front of a path: ``s3://``, or with a host ``sftp://host``."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """fsspec's, credentials among them."""

    @property
    def files(self) -> Any:
        """Return fsspec's filesystem: the same one for the same options."""
        return fsspec.filesystem(self.protocol, **self.options)

    def address(self, path: object) -> str:
        """Return an object's address."""
        return f"{self.prefix}{path}"

    def copy_of(self, path: object) -> Path:
        """Return where an object's copy lies, whether there is one or not.

        Raises:
            DatasetError: the object's key leaves its place, as ``a/../../b`` does.
        """
        check_key(self.address(path), str(path))
        return project_root() / COPIES / self.protocol / str(path).lstrip("/")

    def has(self, path: object) -> bool:
        """Whether there is such an object now: others may have written since the last question."""
        self.files.invalidate_cache()
        return bool(self.files.exists(str(path)))

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that fit a pattern now."""
        self.files.invalidate_cache()
        return [str(path) for path in self.files.glob(pattern)]

    def text(self, path: object) -> str | None:
        """Return a small object's text; none if there is no such object."""
        try:
            return bytes(self.files.cat_file(str(path))).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def fetch(self, path: object, copy: Path) -> None:
        """Copy an object to ``copy``, whole or not at all; without such an object, ``copy`` is removed."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(copy)
        try:
            self.files.get_file(str(path), str(temporary))
            temporary.replace(copy)
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, path: object) -> None:
        """Put an object's copy in its place; without a copy, remove the object."""
        copy = self.copy_of(path)
        if copy.exists():
            self.files.put_file(str(copy), str(path))
        else:
            self.remove(path)

    def remove(self, path: object) -> None:
        """Remove an object, if it is there."""
        if self.has(path):
            self.files.rm_file(str(path))

    def below(self, path: object) -> list[str]:
        """Return the paths of all objects below a path."""
        self.files.invalidate_cache()
        return [str(found) for found in self.files.find(str(path))]


def open_store(filepath: str, options: Mapping[str, Any]) -> tuple[ObjectStore | None, str]:
    """Return the store that an address names, and the path in it; no store for a path of this machine.

    Raises:
        DatasetError: fsspec doesn't know the protocol, a package for it isn't installed, or the path holds
            ``..``.
    """
    protocol, path = get_protocol_and_path(filepath)
    if protocol == "file":
        return None, path
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{filepath} can't be reached: {error}") from error
    path = kind._strip_protocol(filepath)
    check_key(filepath, filepath)
    given = {**kind._get_kwargs_from_urls(filepath), **options}
    return ObjectStore(protocol, filepath.rstrip("/").removesuffix(path), given), path


def check_key(address: str, key: str) -> None:
    """Raise ``DatasetError`` if a key could name a place outside of its copy's: keys are no paths to a store."""
    if ".." in key.replace("\\", "/").split("/"):
        raise DatasetError(
            f"{address} holds '..': its copy on this machine would lie elsewhere. Name it without, or rename the "
            "object."
        )


@dataclass(frozen=True)
class Root:
    """Where datasets of a catalog lie in a store: what is in front of names in braces."""

    store: ObjectStore
    path: str

    @property
    def address(self) -> str:
        """Return its address."""
        return self.store.address(self.path)

    def fetch(self) -> None:
        """Copy the objects of all versions here, but for weights."""
        for path in self.store.below(self.path):
            if not path.endswith(WEIGHTS):
                self.store.fetch(path, self.store.copy_of(path))


def roots_of(entries: Any) -> list[Root]:
    """Return the places in object stores that a catalog's entries name."""
    found: dict[tuple[str, str], Root] = {}
    for entry in _entries(entries):
        options = {**entry.get("fs_args", {}), **_mapping(entry.get("credentials"))}
        known, brace, _ = entry["filepath"].partition("{")
        store, path = open_store(known.rpartition("/")[0] if brace else known, options)
        if store is not None:
            found[store.prefix, path] = Root(store, path.rstrip("/"))
    return list(found.values())


def _entries(value: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return
    if isinstance(value.get("filepath"), str):
        yield value
    for inner in value.values():
        yield from _entries(inner)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
