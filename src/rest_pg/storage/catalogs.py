"""Where the catalogs of all environments keep data, without building a dataset."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.io.core import get_protocol_and_path
from omegaconf.resolvers import oc

COPIES = Path("data/.objects")
"""Copies of objects of stores (``s3://``), by protocol and path."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a project's data and work in progress lie on this machine."""

    outputs: frozenset[Path]
    """Files, or directories with a version each, that a catalog entry names; patterns are filled in."""
    work: frozenset[Path]
    """Directories of back-ends: shards, checkpoints, embeddings."""


def kept_data(project: Path) -> Kept:
    """Find what the catalogs of all environments name below a project.

    Raises:
        ValueError: an environment's catalog cannot be read, so that what it names is unknown.
    """
    outputs: set[Path] = set()
    work: set[Path] = set()
    for environment in sorted(p.name for p in (project / "conf").iterdir() if p.is_dir()):
        loader = OmegaConfigLoader(
            str(project / "conf"),
            env=environment,
            base_env="base",
            default_run_env="local",
            custom_resolvers={"oc.env": oc.env},
        )
        try:
            catalog = loader["catalog"]
        except Exception as error:  # whatever reading and resolving it raises
            raise ValueError(
                f"the catalog of conf/{environment} cannot be read, so that what it names is unknown: {error}"
            ) from error
        for entry in _mappings(catalog):
            if isinstance(path := entry.get("filepath"), str):
                outputs.update(_fill_in(project, path))
            if isinstance(path := entry.get("directory"), str):
                work.add(project / path)
    return Kept(frozenset(outputs), frozenset(work))


def _fill_in(project: Path, filepath: str) -> Iterator[Path]:
    """Yield what is there of a path with names in braces; of a store's, the copies."""
    protocol, path = get_protocol_and_path(filepath)
    local = path if protocol == "file" else str(COPIES / protocol / path.lstrip("/"))
    pattern = "*".join(glob.escape(part) for part in re.split(r"\{[^}]*\}", local))
    yield from (project / found for found in glob.iglob(pattern, root_dir=project))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
