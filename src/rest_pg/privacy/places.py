"""The files that the catalogs of a project's environments name, on this machine and in object stores."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.project import settings
from omegaconf.resolvers import oc

from rest_pg.checksums import COMPLETE, SEAL
from rest_pg.datasets.base import ORIGIN
from rest_pg.object_store import ObjectStore, open_store, roots_of
from rest_pg.privacy.register import Treatment, treatment_of

BASE = "base"
_PATTERN = re.compile(r"\{[^}]*\}")
_RUNTIME = re.compile(r"runtime_params:\s*([\w.]+)")
_BY_DIRECTORY = {
    Treatment.EMBEDDINGS: "**/*.parquet",
    Treatment.SHARDS: "**/*.jsonl",
    Treatment.CHECKPOINTS: "*/*",
}


@dataclass
class Place:
    """A file, or a policy's directory, that catalogs name."""

    path: Path
    """As it is named: links aren't followed."""
    entry: str
    treatment: Treatment
    environments: set[str] = field(default_factory=set)
    store: ObjectStore | None = None
    key: PurePosixPath | None = None
    """In its object store, whose copy ``path`` is."""
    literal: int = 0
    """Characters of the path that stand in the catalog: the entry with the most names the file."""

    @property
    def version(self) -> str:
        """Return Kedro's version, or an empty text."""
        above = self.path.parent
        return above.name if above.parent.name == self.path.name else ""


@dataclass
class Source:
    """A catalog entry that reads raw data."""

    entry: str
    description: dict[str, Any]
    paths: list[Path]
    environments: set[str] = field(default_factory=set)


@dataclass
class Catalogs:
    """What the catalogs of the environments name."""

    places: dict[Path, Place] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    lists: set[Path] = field(default_factory=set)
    """Where the list of forgotten users is kept."""
    problems: list[str] = field(default_factory=list)
    environments: list[str] = field(default_factory=list)


def environments_of(project: Path, env: str | None) -> list[str]:
    """Return the environments whose data are covered.

    Raises:
        ValueError: ``env`` is none of them.
    """
    conf = project / settings.CONF_SOURCE
    others = (p for p in conf.iterdir() if p.is_dir() and any(p.rglob("*.yml")))
    known = [BASE, *sorted(p.name for p in others if p.name != BASE)]
    if env is None:
        return known
    if env not in known and not (conf / env).is_dir():
        raise ValueError(f"--env {env}: there is no conf/{env}; there are {', '.join(known)}")
    return [env]


def read_catalogs(
    project: Path, env: str | None, runtime: Mapping[str, set[str]] | None = None
) -> Catalogs:
    """Find every file that the catalogs name.

    Args:
        project: its directory.
        env: narrows it to one environment.
        runtime: values that earlier runs gave to runtime parameters, by name.
    """
    found = Catalogs(environments=environments_of(project, env))
    fetched: set[tuple[str, str]] = set()
    for name in found.environments:
        for given in _variants(project, name, runtime or {}):
            try:
                entries = _entries(project, name, given)
                for root in roots_of(entries):
                    if (root.store.prefix, root.path) not in fetched:
                        fetched.add((root.store.prefix, root.path))
                        root.fetch()
            except Exception as error:  # whatever a configuration or a store may raise
                found.problems.append(f"the catalog of {name} can't be read: {error}")
                continue
            for entry, description in entries.items():
                _add(found, project, name, entry, description)
    return found


def _variants(project: Path, env: str, runtime: Mapping[str, set[str]]) -> Iterator[dict[str, str]]:
    """Yield the runtime parameters to read a catalog with: none, and each that an earlier run gave."""
    yield {}
    conf = project / settings.CONF_SOURCE
    files = [p for e in {BASE, env} for p in (conf / e).rglob("catalog*.yml")]
    named = {name for path in files for name in _RUNTIME.findall(path.read_text("utf-8"))}
    for name in sorted(named & runtime.keys()):
        yield from ({name: value} for value in sorted(runtime[name]))


@dataclass
class TrackingSettings:
    """What the environments say of one tracking store."""

    artifacts: str
    experiments: set[str] = field(default_factory=set)
    environments: set[str] = field(default_factory=set)


def read_tracking(project: Path, env: str | None) -> tuple[dict[str, TrackingSettings], list[str]]:
    """Return MLflow's tracking addresses with what is said of each; and what can't be read."""
    found: dict[str, TrackingSettings] = {}
    problems = []
    for name in environments_of(project, env):
        try:
            mlflow = _loader(project, name, {})["mlflow"]
        except MissingConfigException:
            continue
        except Exception as error:  # whatever a configuration may raise
            problems.append(f"the configuration of MLflow of {name} can't be read: {error}")
            continue
        address = str((mlflow.get("server") or {}).get("mlflow_tracking_uri") or "mlruns")
        experiment = (mlflow.get("tracking") or {}).get("experiment") or {}
        create = experiment.get("create_experiment_kwargs") or {}
        place = str(create.get("artifact_location") or "mlartifacts")
        said = found.setdefault(address, TrackingSettings(place))
        said.environments.add(name)
        said.experiments |= {str(experiment["name"])} if experiment.get("name") else set()
    return found, problems


def _loader(project: Path, env: str, given: dict[str, str]) -> OmegaConfigLoader:
    arguments = {"custom_resolvers": {"oc.env": oc.env}} | dict(settings.CONFIG_LOADER_ARGS)
    loader = OmegaConfigLoader(
        str(project / settings.CONF_SOURCE), env=env, runtime_params=given, **arguments
    )
    loader.config_patterns["mlflow"] = ["mlflow*"]
    return loader


def _entries(project: Path, env: str, given: dict[str, str]) -> dict[str, dict[str, Any]]:
    loader = _loader(project, env, given)
    try:
        credentials = loader["credentials"]
    except MissingConfigException:
        credentials = {}
    return {
        name: dict(entry) | _credentials(entry, credentials)
        for name, entry in loader["catalog"].items()
        if isinstance(entry, Mapping) and not name.startswith("_")
    }


def _credentials(entry: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    named = entry.get("credentials")
    return {"credentials": known.get(named)} if isinstance(named, str) else {}


def _add(found: Catalogs, project: Path, env: str, name: str, entry: Mapping[str, Any]) -> None:
    treatment = treatment_of(name, entry)
    if treatment is Treatment.SOURCE:
        paths = [project / p for p in _named(entry, ("filepath", "path"))]
        key = repr(sorted((k, repr(v)) for k, v in entry.items()))
        source = found.sources.setdefault(key, Source(name, dict(entry), paths))
        source.environments.add(env)
    elif treatment is Treatment.FORGOTTEN:
        found.lists |= {project / p for p in _named(entry, ("filepath",))}
    elif treatment in _BY_DIRECTORY:
        for directory in _named(entry, ("directory",)):
            root = project / directory.removeprefix("file://")
            for path in sorted(root.glob(_BY_DIRECTORY[treatment])):
                if not path.name.startswith("."):
                    _keep(found, Place(path, name, treatment, literal=len(directory)), env)
    elif treatment not in (Treatment.CONFIGURATION, Treatment.TRACKING):
        for filepath in _named(entry, ("filepath",)):
            for place in _files(project, name, treatment, filepath, entry):
                _keep(found, place, env)


def _named(value: Any, fields: tuple[str, ...]) -> list[str]:
    """Return the paths that an entry names in some fields, at any depth."""
    if not isinstance(value, Mapping):
        return []
    here = [str(value[f]) for f in fields if isinstance(value.get(f), str)]
    return here + [path for inner in value.values() for path in _named(inner, fields)]


def _keep(found: Catalogs, place: Place, env: str) -> None:
    known = found.places.get(place.path)
    if known is not None:
        place.environments |= known.environments
        if known.literal >= place.literal:
            known.environments.add(env)
            return
    place.environments.add(env)
    found.places[place.path] = place


def _files(
    project: Path, name: str, treatment: Treatment, filepath: str, entry: Mapping[str, Any]
) -> Iterator[Place]:
    options = {**(entry.get("fs_args") or {}), **(entry.get("credentials") or {})}
    store, path = open_store(filepath, options)
    local = str(store.copy_of(path)) if store else str(project / path)
    parts, literal = _PATTERN.split(local), len(_PATTERN.sub("", local))
    pattern = "*".join(glob.escape(part) for part in parts)
    for match in sorted(glob.glob(pattern)):
        for file in _versions(Path(match), treatment):
            key = None if store is None else PurePosixPath(_key(store, path, parts[0], file))
            yield Place(file, name, treatment, set(), store, key, literal)


def _key(store: ObjectStore, path: str, head: str, copy: Path) -> str:
    """Return the path in a store of a copy that lies here."""
    root = str(store.copy_of(""))
    inside = str(copy).removeprefix(root).lstrip("/")
    return f"/{inside}" if path.startswith("/") else inside


def _versions(path: Path, treatment: Treatment) -> Iterator[Path]:
    if path.name.endswith((SEAL, ORIGIN)):
        return
    if treatment is Treatment.POLICY:
        if (path / COMPLETE).exists() or (path / "config.json").exists():
            yield path
        yield from (p for p in sorted(path.glob(f"*/{glob.escape(path.name)}")) if p.is_dir())
    elif path.is_dir():
        inside = sorted(path.glob(f"*/{glob.escape(path.name)}"))
        yield from (p for p in inside if p.is_file() and not p.parent.name.startswith("."))
    elif path.is_file():
        yield path
