"""What every stored dataset shares: versions, checksums, what made it, and object stores."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import (
    AbstractVersionedDataset,
    DatasetError,
    Version,
    VersionNotFoundError,
    get_protocol_and_path,
)

from rest_pg.checksums import AnyPath, check_seal, passes, put_sealed, seal_of, sync
from rest_pg.freshness import Origin
from rest_pg.object_store import ObjectStore, open_store
from rest_pg.temporary import temporary_name

ORIGIN = ".origin.json"
"""Suffix of the file, beside a data file, that says what made it."""


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


class StoredDataset(AbstractVersionedDataset[Any, Any]):
    """What is kept with its checksums, on this machine's filesystem or in an object store."""

    origin: Origin | None = None
    """What makes this data in the run at hand, as its hook says; none: nothing is known."""
    is_stale = False
    """Whether what is there was made otherwise, or from other versions, than it would be now; set by the hook."""

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
        """Return where the data to be loaded lie on this machine.

        Raises:
            VersionNotFoundError: there is no version, or not the one that the run is to load.
        """
        path = self._get_load_path()
        if self._version and not self._exists_function(str(path)):
            raise VersionNotFoundError(
                f"{self._filepath} has no version {path.parent.name}, or had none when this run started: run "
                "the pipeline that makes it first"
            )
        return Path(path) if self._store is None else self._fetch(self._store, path)

    def _check(self, path: Path) -> None:
        """Raise ``DatasetError`` unless what lies here is whole, byte for byte."""
        raise NotImplementedError

    def _exists(self) -> bool:
        try:
            self._check(self._newest())
        except DatasetError:  # or there is no version
            return False
        if self.is_stale:
            return False
        return self.origin is None or self.stored_origin() == self.origin

    def stored_content(self) -> str | None:
        """Return the checksum of the data that would be loaded, as it was saved; none if there is none."""
        try:
            return self._content_of(self._newest())
        except (DatasetError, OSError, ValueError):
            return None

    def _content_of(self, path: Path) -> str | None:
        raise NotImplementedError

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


class SealedFileDataset(StoredDataset):
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
        if store.text(seal_of(path)) != text_of(seal_of(copy)) or not passes(check_seal, copy):
            for part in (path, seal_of(path)):
                store.fetch(part, store.copy_of(part))
        store.fetch(origin_of(path), origin_of(copy))
        return copy

    def _check(self, path: Path) -> None:
        check_seal(path)

    def _origin_of(self, path: Path) -> Path:
        return origin_of(path)

    def _content_of(self, path: Path) -> str | None:
        return (text_of(seal_of(path)) or "").partition(" ")[0] or None


def origin_of(path: AnyPath) -> AnyPath:
    """Return where it stands what made a file."""
    return path.with_name(path.name + ORIGIN)


def write_origin(origin: Origin | None, path: Path) -> None:
    """Write what made the data; where nobody says, nothing of an earlier version may stay."""
    if origin is None:
        path.unlink(missing_ok=True)
        return
    temporary = temporary_name(path)
    temporary.write_text(origin.to_json(), encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def text_of(path: Path) -> str | None:
    """Return a small file's text; none if it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
