"""A run loads the versions that were there when it started, and those that it wrote itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click
from kedro.io import DataCatalog
from kedro.io.core import (
    AbstractVersionedDataset,
    Version,
    VersionNotFoundError,
    generate_timestamp,
)


class VersionInFuture(click.ClickException):
    """A version is later than any that could be written now: it would always be taken for the newest."""


def pin_versions(catalog: DataCatalog, names: Iterable[str], written: Iterable[str]) -> None:
    """Have each versioned dataset load the version that is the newest now, whatever others write meanwhile.

    What the run saves sorts after every version that is there. A session that was opened earlier than the
    newest version was written saves under the time now.

    Args:
        catalog: its datasets.
        names: those that the run may load or save.
        written: those that it may save.

    Raises:
        VersionInFuture: a dataset that the run may save has a version later than the time now.
    """
    versioned = {name: d for name in sorted(names) if (d := _versioned(catalog.get(name)))}
    newest = {name: newest_version(dataset) for name, dataset in versioned.items()}
    save = _save_version(versioned)
    for name in sorted(set(written) & versioned.keys()):
        found = newest[name] or ""
        if found >= save:
            save = generate_timestamp()
        while found == save:  # in the same millisecond
            save = generate_timestamp()
        if found > save:
            raise VersionInFuture(
                f"{name} has the version {found}, and the clock of this machine says {save}: what is written "
                "now would never count as the newest. Set the clock. If it is right, move "
                f"{versioned[name]._get_versioned_path(found).parent} away."
            )
    for name, dataset in versioned.items():
        chosen = dataset._version.load if dataset._version else None
        # where there is none yet, none that another run writes later may be taken
        dataset._version = Version(chosen or newest[name] or save, save)


def _versioned(dataset: Any) -> AbstractVersionedDataset[Any, Any] | None:
    found = isinstance(dataset, AbstractVersionedDataset) and dataset._version
    return dataset if found else None


def _save_version(versioned: Mapping[str, AbstractVersionedDataset[Any, Any]]) -> str:
    """Return the version that the session gave its datasets."""
    given = {d._version.save for d in versioned.values() if d._version and d._version.save}
    return max(given, default=None) or generate_timestamp()


def load_own(dataset: Any) -> None:
    """Have a dataset load what this run is about to save."""
    versioned = _versioned(dataset)
    if versioned is not None:
        own = versioned.resolve_save_version()
        versioned._version = Version(own, own)


def newest_version(dataset: AbstractVersionedDataset[Any, Any]) -> str | None:
    """Return a dataset's newest version; none if it has none."""
    try:
        return max(dataset.list_versions(full_path=False), default=None)
    except VersionNotFoundError:
        return None
