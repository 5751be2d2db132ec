"""Policies: versioned directories with safetensors, configuration and tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from kedro.io.core import DatasetError

from rest_pg.checksums import (
    COMPLETE,
    check_policy,
    files_of,
    mark_complete,
    passes,
    policy_fingerprint,
)
from rest_pg.config import QueryKind
from rest_pg.datasets.base import ORIGIN, StoredDataset, text_of, write_origin
from rest_pg.object_store import ObjectStore
from rest_pg.records import PolicyCheckpoint
from rest_pg.temporary import temporary_name

TRAINED_WITH = "rest_pg.json"
"""In a policy's directory: what those who ask it need to know of its training, and no model library reads."""


class PolicyDataset(StoredDataset):
    """A versioned language model: a directory with safetensors, configuration and tokenizer.

    Saving moves the directory that the node left into place and marks it complete, last. What is
    loaded is a handle: the weights are read by the back-end that uses them.
    """

    def load(self) -> PolicyCheckpoint:
        """Return the handle; raise ``DatasetError`` if a file is missing or damaged."""
        path = self._newest()
        self._check(path)
        policy = PolicyCheckpoint(path, query=_query_of(path))
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
            if data.query:
                text = json.dumps({"retrieval": {"query": data.query}})
                (partial / TRAINED_WITH).write_text(text, encoding="utf-8")
            write_origin(self.origin, partial / ORIGIN)
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
            return of_store == text_of(copy / COMPLETE) and passes(check_policy, copy)

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

    def _content_of(self, path: Path) -> str | None:
        return policy_fingerprint(PolicyCheckpoint(path)) if (path / COMPLETE).is_file() else None


def _query_of(path: Path) -> Literal["", "given", "request"]:
    """Return the kind of query that a policy was trained with; empty if it doesn't say."""
    try:
        found = json.loads((path / TRAINED_WITH).read_text(encoding="utf-8"))["retrieval"]["query"]
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path / TRAINED_WITH} can't be read: {error!r}") from error
    if found not in get_args(QueryKind):
        raise DatasetError(
            f"{path / TRAINED_WITH} names the query {found!r}, and {' or '.join(get_args(QueryKind))} was "
            "expected: a newer version of this project may have saved the policy"
        )
    kind: Literal["given", "request"] = found
    return kind


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
