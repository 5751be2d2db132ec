"""What MLflow's tracking store keeps of a user: traces, tables, artifacts, parameters, tags, models."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from kedro.utils import find_kedro_project
from mlflow.entities import Run, Trace, ViewType
from mlflow.tracking import MlflowClient

from rest_pg.checksums import COMPLETE
from rest_pg.object_store import open_store
from rest_pg.privacy.identity import Identity
from rest_pg.privacy.lineage import Facts, Lineage
from rest_pg.privacy.places import Place, TrackingSettings
from rest_pg.privacy.plan import Plan, Step
from rest_pg.privacy.register import Treatment
from rest_pg.privacy.search import Search
from rest_pg.privacy.signs import decode

SQLITE = "sqlite:///"
LOGGED = "models:/"
TABLES = (".json", ".csv", ".parquet")
PAGES = (".html", ".htm")
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
USER_KEYS = ("user_id", "user")


@dataclass
class Model:
    """A version of a registered model, or a model that was logged and never registered."""

    name: str
    version: str
    directory: Path
    """Of its artifacts."""


@dataclass
class Tracking:
    """A tracking store: its runs, and where its artifacts lie in this project."""

    address: str
    project: Path
    root: Path
    """Where this project's artifacts go."""
    environments: set[str]
    names: set[str]
    """Of this project's experiments, where the store is other projects' too."""
    runs: list[Run] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _places: dict[Path, str] = field(default_factory=dict)
    """Artifact files, and the run that wrote each."""

    @property
    def database(self) -> Path | None:
        """Return the SQLite file, if that is what it is."""
        if not self.address.startswith(SQLITE):
            return None
        # three slashes and a relative name, four and a whole one
        return self.project / self.address.removeprefix(SQLITE)

    @property
    def client(self) -> MlflowClient:
        """Return a client of this store, by a whole name: MLflow keeps a connection for each name."""
        database = self.database
        address = self.address if database is None else f"{SQLITE}{database.resolve()}"
        return MlflowClient(tracking_uri=address, registry_uri=address)

    def read(self) -> None:
        """Read runs and models; what can't be read is a problem, and the rest goes on."""
        database = self.database
        if "://" not in self.address or (database is not None and not database.exists()):
            return  # a directory of an older MLflow's is searched as artifacts are
        try:
            client = self.client
            found = _pages(client.search_experiments, view_type=ViewType.ALL)
            shared = database is None or not database.is_relative_to(self.project)
            ours = (e for e in found if not shared or e.name in self.names)
            self.experiments = [e.experiment_id for e in ours]
            every = {"experiment_ids": self.experiments, "run_view_type": ViewType.ALL}
            self.runs = list(_pages(client.search_runs, **every)) if self.experiments else []
            self.models = list(self._models(client))
        except Exception as error:  # MLflow, SQLAlchemy and servers raise what they like
            self.problems.append(f"{self.name} can't be read: {_first_line(error)}")

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        return str(self.database or self.address)

    def parameters(self) -> dict[str, set[str]]:
        """Return the values that runs logged, by parameter: paths of raw data among them."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for run in self.runs:
            for name, value in run.data.params.items():
                if value and value != "None":
                    found[name].add(value)
        return dict(found)

    # ---- artifacts: files below this project ----

    def artifacts(self) -> list[Place]:
        """Return the tables, pages and policies among the artifacts, as files of this project."""
        found = []
        for root, run_id in self._roots():
            for path, treatment in _artifact_files(root):
                self._places[path] = run_id or _run_of(path, self.runs)
                entry = f"MLflow artifact {path.name}"
                found.append(Place(path, entry, treatment, set(self.environments)))
        for run in self.runs:
            try:
                found += self._remote(run)
            except Exception as error:  # whatever a store may raise
                where = run.info.artifact_uri
                self.problems.append(f"artifacts at {where} can't be read: {_first_line(error)}")
        return found

    def _remote(self, run: Run) -> Iterator[Place]:
        """Yield copies of a run's tables and pages in an object store (``s3://``)."""
        uri = run.info.artifact_uri or ""
        if urlparse(uri).scheme in ("", "file"):
            return
        if uri.startswith("mlflow-artifacts:"):
            raise OSError("they are kept by a server: delete the run's tables and pages there")
        store, root = open_store(uri, {})
        assert store is not None
        for key in store.below(root):
            treatment = _treatment(PurePosixPath(key).name)
            if treatment is not None and COMPLETE not in key:
                copy = store.copy_of(key)
                store.fetch(key, copy)
                self._places[copy] = run.info.run_id
                entry = f"MLflow artifact {copy.name}"
                yield Place(
                    copy, entry, treatment, set(self.environments), store, PurePosixPath(key)
                )

    def _roots(self) -> Iterator[tuple[Path, str]]:
        """Yield where artifacts lie: this project's own place, and others that its runs name.

        The store keeps whole paths. If the project was moved or copied, those lead elsewhere, maybe into
        the project that it was copied from, which is never touched.
        """
        if self.root.is_dir():
            yield self.root, ""
        for run in self.runs:
            path = self.local(run.info.artifact_uri)
            if path is not None and path.is_dir() and not path.is_relative_to(self.root):
                yield path, run.info.run_id

    def local(self, uri: str | None) -> Path | None:
        """Return where artifacts lie that the store names; none if they aren't this project's."""
        parsed = urlparse(uri or "")
        if parsed.scheme not in ("", "file"):
            return None
        path = Path(unquote(parsed.path))
        path = path if path.is_absolute() else self.project / path
        if path.is_relative_to(self.project):
            return path
        # the project was moved: the same place below this one
        for number, part in enumerate(path.parts):
            moved = self.project.joinpath(*path.parts[number:])
            if part in (self.root.name, "mlartifacts", "mlruns") and moved.exists():
                return moved
        owner = find_kedro_project(path)
        return path if owner is None and path.exists() else None

    def attach(self, lineage: Lineage) -> list[Facts]:
        """Say what each artifact was made from, as far as its run names data that are there."""
        by_tail = {_tail(f.place.path): f for f in lineage.files}
        inputs = {run.info.run_id: _inputs(run, by_tail) for run in self.runs}
        found = []
        for facts in lineage.files:
            run_id = self._places.get(facts.place.path)
            if run_id is not None:
                found.append(facts)
                if not facts.is_policy:
                    lineage.attach(facts, inputs.get(run_id, []))
        return found

    # ---- models ----

    def _models(self, client: MlflowClient) -> Iterator[Model]:
        for version in _pages(client.search_model_versions):
            uri = str(version.source)
            if uri.startswith(LOGGED):
                uri = client.get_logged_model(uri.removeprefix(LOGGED)).artifact_location
            directory = self.local(uri)
            if directory is not None:
                yield Model(version.name, str(version.version), directory)

    def model_of(self, path: Path) -> Model | None:
        """Return the registered model whose policy lies at a path."""
        return next((m for m in self.models if path.is_relative_to(m.directory)), None)

    # ---- traces, parameters and tags ----

    def plan(self, identity: Identity, search: Search, plan: Plan) -> None:
        """Add what is to be removed from the store itself."""
        if not self.experiments or self.problems:
            return
        before = len(plan.steps)
        try:
            self._plan_traces(identity, search, plan)
            self._plan_values(identity, search, plan)
        except Exception as error:
            plan.problems.append(f"{self.name} can't be read: {_first_line(error)}")
        if len(plan.steps) > before and self.database is not None:
            plan.steps.append(self._step("vacuum", 1))

    def _plan_traces(self, identity: Identity, search: Search, plan: Plan) -> None:
        client = self.client
        for experiment in self.experiments:
            traces = _pages(client.search_traces, locations=[experiment], max_results=100)
            rows = [t.info.trace_id for t in traces if _trace_is_own(t, identity, search)]
            if rows:
                plan.steps.append(self._step("trace", 0, rows, experiment))

    def _plan_values(self, identity: Identity, search: Search, plan: Plan) -> None:
        for run in self.runs:
            for name, value in run.data.params.items():
                if name.rpartition(".")[2] in USER_KEYS and identity.is_named(value):
                    plan.steps.append(self._step("parameter", 0, [run.info.run_id], name))
            for name, value in run.data.tags.items():
                if name.startswith("mlflow.") and name != "mlflow.note.content":
                    continue
                named = name.rpartition(".")[2] in USER_KEYS and identity.is_named(value)
                if named or search.only.count(decode(value)):
                    plan.steps.append(self._step("tag", 0, [run.info.run_id], name))

    def _step(self, action: Any, order: int, rows: list[str] | None = None, key: str = "") -> Step:
        return Step(
            action,
            self.address,
            order,
            rows or [],
            entry=f"MLflow {action}",
            environments=sorted(self.environments),
            key=key,
        )

    def do(self, step: Step) -> int:
        """Do one step in the store; return how much it removed.

        Raises:
            OSError: the store is locked, damaged or out of reach.
        """
        actions: dict[str, Callable[[Step], int]] = {
            "trace": self._delete_traces,
            "parameter": self._delete_parameters,
            "tag": self._delete_tags,
            "model": self._delete_model,
            "vacuum": self._vacuum,
        }
        try:
            return actions[step.action](step)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.name}: {_first_line(error)}") from error

    def _delete_traces(self, step: Step) -> int:
        removed = 0
        for start in range(0, len(step.rows), 100):
            part = step.rows[start : start + 100]
            removed += self.client.delete_traces(step.key, trace_ids=part)
        return removed

    def _delete_parameters(self, step: Step) -> int:
        if self.database is None:
            raise OSError(
                f"{self.name}: parameter {step.key} of runs {step.rows} stays: delete them"
            )
        # MLflow's API has no call for it
        with closing(sqlite3.connect(self.database, timeout=20)) as connection, connection:
            done = connection.executemany(
                "DELETE FROM params WHERE run_uuid = ? AND key = ?",
                [(run_id, step.key) for run_id in step.rows],
            )
            return max(done.rowcount, 0)

    def _delete_tags(self, step: Step) -> int:
        client, removed = self.client, 0
        for run_id in step.rows:
            if step.key in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, step.key)
                removed += 1
        return removed

    def _delete_model(self, step: Step) -> int:
        name, _, version = step.key.rpartition("/")
        versions = _pages(self.client.search_model_versions)
        known = {str(v.version) for v in versions if v.name == name}
        if version in known:
            self.client.delete_model_version(name, version)
        remove_policy(Path(step.rows[0]))
        return int(version in known)

    def _vacuum(self, step: Step) -> int:
        database = self.database
        if database is not None and database.exists():
            # what is deleted stays readable in the file until its pages are written again
            with closing(sqlite3.connect(database, timeout=20)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return 0


def trackings_of(project: Path, said: Mapping[str, TrackingSettings]) -> list[Tracking]:
    """Return the stores that the environments name, and the one that MLflow's own variable does.

    A database within another Kedro project is that project's.

    Args:
        project: its directory.
        said: by tracking address.
    """
    known = dict(said)
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        every = known.values()
        named = set().union(*(s.experiments for s in every), {os.environ.get(EXPERIMENT, "")})
        everywhere = set().union(*(s.environments for s in every))
        known.setdefault(given, TrackingSettings("mlartifacts", named, everywhere))
    found: dict[str, Tracking] = {}
    for address, settings in known.items():
        place = urlparse(settings.artifacts)
        local = place.scheme in ("", "file")
        root = project / unquote(place.path if local else "mlartifacts")
        if "://" not in address:
            root = project / address.removeprefix("file:")
        store = Tracking(address, project, root, set(settings.environments), settings.experiments)
        database = store.database
        if database is not None and find_kedro_project(database.parent) not in (None, project):
            continue
        known_store = found.setdefault(store.name, store)
        known_store.environments |= settings.environments
        known_store.names |= settings.experiments
    return list(found.values())


def remove_policy(path: Path) -> None:
    """Delete a policy's directory, its marker first: what is left of it is no policy."""
    real = path.resolve()
    (real / COMPLETE).unlink(missing_ok=True)
    if real.is_dir():
        shutil.rmtree(real)
    if path.is_symlink():
        path.unlink()
    # Kedro's version, which held nothing else
    version = path.parent
    if version.parent.name == path.name and version.is_dir() and not any(version.iterdir()):
        version.rmdir()


def _artifact_files(root: Path) -> Iterator[tuple[Path, Treatment]]:
    for directory, names, files in os.walk(root):
        here = Path(directory)
        if COMPLETE in files:
            names[:] = []
            yield here, Treatment.POLICY
            continue
        for name in sorted(files):
            treatment = _treatment(name)
            if treatment is not None:
                yield here / name, treatment


def _treatment(name: str) -> Treatment | None:
    """Return what is done with an artifact of this name; none: it shows no user, or is only searched."""
    suffix = PurePosixPath(name).suffix
    return Treatment.FIGURES if suffix in TABLES else Treatment.PAGE if suffix in PAGES else None


def _run_of(path: Path, runs: Iterable[Run]) -> str:
    known = {run.info.run_id for run in runs}
    return next((part for part in path.parts if part in known), "")


def _inputs(run: Run, by_tail: Mapping[tuple[str, ...], Facts]) -> list[Facts]:
    """Return the files that a run says it was given or made."""
    found = {}
    for given in run.inputs.dataset_inputs if run.inputs else ():
        try:
            source = json.loads(given.dataset.source)
        except (TypeError, ValueError):
            continue
        for value in source.values() if isinstance(source, dict) else ():
            facts = by_tail.get(_tail(Path(unquote(str(value)))))
            if facts is not None:
                found[id(facts)] = facts
    return list(found.values())


def _tail(path: Path) -> tuple[str, ...]:
    """Return what of a path stays where a project is moved: its folder, name and version."""
    return path.parts[-4:]


def _trace_is_own(trace: Trace, identity: Identity, search: Search) -> bool:
    parts: list[Any] = [trace.info.tags, trace.info.request_preview, trace.info.response_preview]
    for span in trace.data.spans:
        parts += [span.inputs, span.outputs, span.attributes]
    return any(_is_own(part, identity, search) for part in parts)


def _is_own(value: Any, identity: Identity, search: Search) -> bool:
    if isinstance(value, Mapping):
        return identity.is_named_in(value) or any(
            _is_own(inner, identity, search) for inner in value.values()
        )
    if isinstance(value, (list, tuple)):
        return any(_is_own(inner, identity, search) for inner in value)
    if not isinstance(value, str):
        return False
    if value[:1] in ("{", "["):  # attributes are JSON
        try:
            return _is_own(json.loads(value), identity, search)
        except (ValueError, RecursionError):
            pass
    return search.only.count(decode(value)) > 0


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
