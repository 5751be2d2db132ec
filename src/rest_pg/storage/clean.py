"""What can be removed from a project's data: old versions, unfinished work, temporary files.

Only what the catalogs name and the project wrote is ever listed: time-stamped versions, files with their
checksum beside them, work in directories named by a digest. Users' own files are not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rest_pg.checksums import (
    COMPLETE,
    check_policy,
    check_seal,
    passes,
    policy_fingerprint,
    seal_of,
)
from rest_pg.records import PolicyCheckpoint
from rest_pg.storage.catalogs import Kept, kept_data
from rest_pg.storage.lock import FolderLock
from rest_pg.temporary import RAW, find_temporary, is_abandoned

ORIGIN = ".origin.json"
BASE = "base_policy.json"
"""In a policy of adapters alone: the policy that they belong to."""
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d\.\d{3}Z")
"""Of a version that Kedro named; a version that a person named stays."""
DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Removable:
    """Something that can be removed, for one line of a table."""

    kind: str
    what: str
    """Relative to the project."""
    paths: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        """Return the size of all its files."""
        return sum(map(_size, self.paths))


def clean(project: Path, keep: int, *, tracking: bool, really: bool) -> Iterator[str]:
    """Remove what can go, or only list it; yield what is to be said of it.

    Args:
        project: its directory.
        keep: versions of each dataset that stay.
        tracking: MLflow's store too, unless models are registered in it.
        really: remove, and hold the data folder meanwhile.

    Raises:
        FolderInUse: a run is writing the data.
    """
    lock = FolderLock(project / "data", "kedro clean") if really else nullcontext()
    with lock:
        found = find_removable(project, keep)
        if tracking:
            try:
                found += tracking_store(project)
            except ValueError as error:
                yield str(error)
        if not found:
            yield "There is nothing to remove."
            return
        yield lay_out(found)
        if really:
            remove(found, project)
            yield "Removed."
        else:
            yield "Nothing was removed: `kedro clean --yes`, with the same options, removes this."


def find_removable(project: Path, keep: int) -> list[Removable]:
    """Return what can go if ``keep`` versions of each dataset stay, with all that those were made from.

    Args:
        project: its directory.
        keep: whole versions of each dataset; 0: everything that a run makes goes, also reports and embeddings.
    """
    kept = kept_data(project)
    found = [*_old_versions(project, kept, keep), *_work(kept, keep)]
    if keep == 0:
        found += _unversioned(kept)
    found += [
        ("temporary", p.parent, p) for p in find_temporary(project / "data") if is_abandoned(p)
    ]
    lines: dict[tuple[str, Path], list[Path]] = defaultdict(list)
    for kind, place, path in found:
        if RAW not in _relative(place, project).parts:
            lines[kind, place].append(path)
    return [
        Removable(kind, str(_relative(place, project)), tuple(paths))
        for (kind, place), paths in sorted(lines.items())
    ]


def remove(found: Iterable[Removable], project: Path) -> None:
    """Remove what was found, and directories of ``data/`` that are empty then."""
    for path in (path for removable in found for path in removable.paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in path.parents:
            below = len(_relative(parent, project / "data").parts)
            if not parent.is_relative_to(project / "data") or below < 2 or any(parent.iterdir()):
                break
            parent.rmdir()


def lay_out(found: Sequence[Removable]) -> str:
    """Return a table: what, how many, how large."""
    rows = [(f.kind, f.what, str(len(f.paths)), _show(f.n_bytes)) for f in found]
    rows.append(
        ("all", "", str(sum(len(f.paths) for f in found)), _show(sum(f.n_bytes for f in found)))
    )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{kind:<{widths[0]}}  {what:<{widths[1]}}  {n:>{widths[2]}}  {size:>{widths[3]}}"
        for kind, what, n, size in rows
    )


def _show(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"


def _old_versions(project: Path, kept: Kept, keep: int) -> Iterator[tuple[str, Path, Path]]:
    versions = {
        place: sorted((p for p in place.iterdir() if _is_version(p)), reverse=True)
        for place in kept.outputs
        if place.is_dir()
    }
    needed = {v for place, own in versions.items() for v in _newest(place, own, keep)}
    needed = _with_ancestors(needed, [v for own in versions.values() for v in own], project)
    for place, own in versions.items():
        for version in own:
            if version not in needed:
                yield "old versions" if keep else "versions", place, version


def _is_version(path: Path) -> bool:
    return bool(STAMP.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _newest(place: Path, versions: list[Path], keep: int) -> list[Path]:
    """Return versions, newest first, up to the ``keep``-th that is whole: a damaged one stands for none."""
    n_whole = 0
    for i, version in enumerate(versions):
        if n_whole == keep:
            return versions[:i]
        data = version / place.name
        n_whole += passes(check_policy if data.is_dir() else check_seal, data)
    return versions if keep else []


def _with_ancestors(needed: set[Path], versions: list[Path], project: Path) -> set[Path]:
    """Add the versions that others were made from, and the policies that adapters belong to.

    Adapters may also be a registered model's, among MLflow's artifacts.
    """
    # of equal ones the newest
    by_content = {c: version for version in sorted(versions) if (c := _content(version))}
    by_place = {version.resolve(): version for version in versions}
    models = [p for place in ("mlartifacts", "mlruns") for p in (project / place).rglob(BASE)]
    waiting = [
        *needed,
        *(v for p in models for v in _base_policy(p, project, by_place, by_content)),
    ]
    found: set[Path] = set()
    while waiting:
        version = waiting.pop()
        if version in found:
            continue
        found.add(version)
        waiting += [by_content[c] for c in _inputs(version) if c in by_content]
        waiting += _base_policy(_data(version) / BASE, project, by_place, by_content)
    return found


def _data(version: Path) -> Path:
    return version / version.parent.name


def _content(version: Path) -> str | None:
    """Return the checksum of a version's data, as it was saved; none if it has none."""
    data = _data(version)
    try:
        if data.is_dir():
            return (
                policy_fingerprint(PolicyCheckpoint(data)) if (data / COMPLETE).exists() else None
            )
        return seal_of(data).read_text(encoding="utf-8").split()[0]
    except (OSError, ValueError, IndexError):
        return None


def _inputs(version: Path) -> list[str]:
    """Return the checksums of what a version was made from."""
    data = _data(version)
    file = data / ORIGIN if data.is_dir() else data.with_name(data.name + ORIGIN)
    try:
        return [
            str(content)
            for content in json.loads(file.read_text(encoding="utf-8"))["contents"].values()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _base_policy(
    file: Path, project: Path, by_place: Mapping[Path, Path], by_content: Mapping[str, Path]
) -> list[Path]:
    """Return the version of the policy that adapters name: where it was, else by its checksum."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        place = (project / known["path"]).resolve().parent
        found = by_place.get(place) or by_content.get(known["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [found] if found else []


def _work(kept: Kept, keep: int) -> Iterator[tuple[str, Path, Path]]:
    for root in kept.work:
        for path in root.iterdir() if root.is_dir() else ():
            if not DIGEST.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
                continue
            if any(path.glob("*.parquet")):
                if keep == 0:
                    yield "embeddings", root, path
            elif any(path.glob("*.jsonl")):
                yield "unfinished sampling or scoring", root, path
            else:
                yield "unfinished training", root, path


def _unversioned(kept: Kept) -> Iterator[tuple[str, Path, Path]]:
    for path in kept.outputs:
        if path.is_file() and seal_of(path).is_file():
            for part in (path, path.with_name(path.name + ORIGIN), seal_of(path)):
                if part.exists():
                    yield "tables and pages", path, part


def _relative(path: Path, project: Path) -> Path:
    return path.relative_to(project) if path.is_relative_to(project) else path


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(p.lstat().st_size for p in files if p.is_file())


def tracking_store(project: Path) -> list[Removable]:
    """Return MLflow's database and artifacts, as ``conf/base/mlflow.yml`` names them.

    Raises:
        ValueError: models are registered there, or the database cannot be read.
    """
    database = project / "mlflow.db"
    paths = [p for p in (*project.glob("mlflow.db*"), project / "mlartifacts") if p.exists()]
    if not database.exists():
        return []
    from mlflow import MlflowClient  # noqa: PLC0415  (takes seconds, and is seldom needed)

    try:
        models = MlflowClient(f"sqlite:///{database}").search_registered_models()
    except Exception as error:  # whatever the database's driver raises
        raise ValueError(f"{database} cannot be read, and stays: {error}") from error
    if models:
        names = ", ".join(model.name for model in models)
        raise ValueError(
            f"mlflow.db and mlartifacts stay: models are registered there ({names}). Delete them on MLflow's "
            "page (`make ui`) first, or remove both by hand."
        )
    return [Removable("MLflow's runs", str(_relative(path, project)), (path,)) for path in paths]
