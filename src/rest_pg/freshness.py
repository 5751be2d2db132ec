"""What made a dataset: its node's code and parameters, and whatever went in, back to the raw texts.

``--only-missing-outputs`` alone asks whether a file is there. Here every file also says what it came from,
so that a changed parameter, template, model or piece of code makes exactly what depends on it stale.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel

PACKAGE = __name__.partition(".")[0]

DECLARATIVE = {
    f"{PACKAGE}.{name}"
    for name in (
        "config",
        "records",
        "datasets",
        "checksums",
        "object_store",
        "storage",
        "temporary",
        "freshness",
        "progress",
    )
}
"""Modules, and packages with all they hold, that declare what others compute with: what is in them reaches a node as a parameter or a
record, and a new parameter of one node shouldn't make every other node's results stale. Nor should
another way to show how far a loop is."""

PLACES = {
    *("directory", "prompts_per_shard", "samples_per_shard", "checkpoint_steps"),
    *("stall_seconds", "max_num_seqs", "gpu_memory_utilization"),
    *("servers", "timeout_seconds", "requests_per_server", "load_policies", "key_variable"),
    *("workers", "gpus_per_worker", "address"),
}
"""Arguments of back-ends that say where, in which portions and how patiently work is done and kept, and
change no result."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What made the outputs of one node."""

    code: str
    """Digest of the node's function and all of this package that it uses, docstrings left out."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Flat, by dotted name."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest of each input's own origin, or of its content where nothing here made it."""
    contents: Mapping[str, str] | None = field(default=None, compare=False)
    """Checksum of each stored input that was really loaded; none: it was written before that was noted."""

    @property
    def digest(self) -> str:
        """Return what stands for this origin in those behind it: what is known before a run, so no checksum."""
        known = {name: value for name, value in asdict(self).items() if name != "contents"}
        return _digest(json.dumps(known, sort_keys=True, default=str))

    def to_json(self) -> str:
        """Return what is written beside a dataset."""
        values = asdict(self) | {"contents": dict(self.contents or {})}
        return json.dumps(values, sort_keys=True, default=str)

    @staticmethod
    def from_json(text: str) -> Origin:
        """Read what :meth:`to_json` wrote; raise ``ValueError`` or ``TypeError`` for anything else."""
        return Origin(**json.loads(text))

    def changes(self, before: Origin) -> list[str]:
        """Say in words what is different from an earlier origin; what went in comes last."""
        found = ["its code was another"] if self.code != before.code else []
        for name in sorted({*self.parameters, *before.parameters}):
            old, new = (_show(o.parameters, name) for o in (before, self))
            if old != new:
                found.append(f"{name} was {old}, and is {new}")
        for name in sorted({*self.inputs, *before.inputs}):
            if self.inputs.get(name) != before.inputs.get(name):
                found.append(f"{name} has changed")
        return found


def origins_of(
    pipeline: Pipeline, catalog: DataCatalog, typed: Mapping[str, Any] | None = None
) -> dict[str, Origin]:
    """Return what would make the outputs of each node, by the node's name.

    Nothing is loaded but parameters: inputs that a node of the pipeline makes count by that node's origin,
    others by the origin beside them, and raw ones by their content.

    Args:
        pipeline: the nodes.
        catalog: their datasets.
        typed: parameters as their models, by name: the catalog of a session holds only those of the
            pipelines it was asked to run as such, and the others without their defaults.
    """
    made: dict[str, str] = {}
    found: dict[str, Origin] = {}
    for node in pipeline.nodes:  # in an order in which they can run
        parameters: dict[str, Any] = {}
        inputs: dict[str, str] = {}
        for name in node.inputs:
            if name == "parameters" or name.startswith("params:"):
                key = name.removeprefix("params:")
                value = typed[key] if typed and key in typed else catalog.load(name)
                parameters |= flatten(value, key)
            else:
                inputs[name] = made[name] if name in made else content_of(catalog.get(name))
        parameters |= {k: _file_digest(v) for k, v in _files(parameters)}
        origin = Origin(code_of(node.func), json.loads(_dump(parameters)), inputs)
        found[node.name] = origin
        made |= dict.fromkeys(node.outputs, origin.digest)
    return found


def stale_reasons(
    pipeline: Pipeline, catalog: DataCatalog, origins: Mapping[str, Origin]
) -> dict[str, list[str]]:
    """Return why each node's outputs are stale, by its name; one that has none yet isn't there."""
    found: dict[str, list[str]] = {}
    remade: set[str] = set()
    for node in pipeline.nodes:
        for output in node.outputs:
            stored = stored_origin(catalog.get(output))
            if stored is None:
                continue
            reasons = origins[node.name].changes(stored) or _mixed(node, stored, catalog, remade)
            if reasons:
                found[node.name] = reasons
        if node.name in found:
            remade.update(node.outputs)
    return found


def _mixed(node: Node, stored: Origin, catalog: DataCatalog, remade: set[str]) -> list[str]:
    """Say which inputs are other versions than those that outputs were made from: another run's, say.

    Args:
        node: what made them, with the same code, parameters and kinds of inputs as now.
        stored: what stands beside an output.
        catalog: holds the inputs that the node would be given now.
        remade: datasets that are stale themselves.
    """
    reasons = []
    for name in node.inputs:
        now = stored_content(catalog.get(name))
        before = None if stored.contents is None else stored.contents.get(name, now)
        if name in remade:
            reasons.append(f"{name} has changed")
        # what is damaged is made again, as it was
        elif now is not None and now != before and catalog.exists(name):
            reasons.append(f"{name} is another version than the one that it was made from")
    return reasons


def stored_content(dataset: Any) -> str | None:
    """Return the checksum of the data that would be loaded; none if there are none, or they have no checksum."""
    read: Callable[[], str | None] | None = getattr(dataset, "stored_content", None)
    return None if read is None else read()


def stored_origin(dataset: Any) -> Origin | None:
    """Return what made the data that is there; none if it isn't there or doesn't say."""
    read: Callable[[], Origin | None] | None = getattr(dataset, "stored_origin", None)
    return None if read is None else read()


def code_of(function: Callable[..., Any]) -> str:
    """Digest a function's module, every module of this package below it, and what is bound to it."""
    fixed: dict[str, Any] = {}
    while isinstance(function, partial):
        fixed |= function.keywords
        function = function.func
    modules = sorted(_modules_behind(function.__module__))
    sources = [_source_digest(module) for module in modules]
    return _digest(json.dumps([function.__qualname__, sources, fixed], default=str))


def backend_key(description: Mapping[str, Any]) -> str:
    """Digest a back-end: its class with the code behind it, its arguments, and the files they name."""
    code = [
        _source_digest(module)
        for path in sorted(_backends(description))
        for module in sorted(_modules_behind(path.rpartition(".")[0]))
    ]
    kept = without_places(description)
    files = {key: _file_digest(value) for key, value in _files(kept)}
    return _digest(_dump([code, kept, files]))


def without_places(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a back-end's description its results depend on, flat."""
    flat = flatten(dict(description))
    return {name: value for name, value in flat.items() if name.split(".")[-1] not in PLACES}


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and pydantic models as one mapping with dotted names."""
    if isinstance(values, BaseModel):
        values = values.model_dump()
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def content_of(dataset: Any) -> str:
    """Digest what an input holds that no node of the pipeline makes; empty if there is none."""
    if dataset is None:  # the runner says so, in its own words
        return ""
    stored = stored_origin(dataset)
    if stored is not None:
        return stored.digest
    described = dataset._describe()
    if "backend" in described:
        return backend_key(described)
    flat = {key: str(value) for key, value in flatten(described).items()}
    return _digest(_dump([flat, {key: _file_digest(value) for key, value in _files(flat)}]))


def _files(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the values that name a file or a directory that is there: with a slash, to be sure."""
    return [
        (f"{name} (content)", value)
        for name, value in values.items()
        if isinstance(value, str) and "/" in value and len(value) < 4096 and Path(value).exists()
    ]


def _file_digest(name: str) -> str:
    """Digest a file, or all files of a directory (a model, raw data): what is in them, whenever written."""
    path = Path(name)
    if path.is_file():
        return _content_digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return _digest(json.dumps([(str(p.relative_to(path)), _content_digest(p)) for p in files]))


def _content_digest(path: Path) -> str:
    found = path.stat()
    return _digest_once(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest_once(path: Path, size: int, modified: int, changed: int) -> str:
    """Digest a file once per process, as long as it doesn't change: about a second for a gigabyte."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _backends(description: Any) -> set[str]:
    if not isinstance(description, Mapping):
        return set()
    own = {description["backend"]} if isinstance(description.get("backend"), str) else set()
    return own.union(*(_backends(value) for value in description.values()))


@lru_cache(maxsize=256)
def _modules_behind(module: str) -> frozenset[str]:
    """Return a module and all of this package that it imports, directly or not."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in found or _is_declarative(name):
            continue
        found.add(name)
        waiting += _imports(name)
    return frozenset(found)


def _is_declarative(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in DECLARATIVE)


@lru_cache(maxsize=256)
def _imports(module: str) -> tuple[str, ...]:
    tree, _ = _parsed(module)
    names = []
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            names.append(statement.module)
            names += [f"{statement.module}.{alias.name}" for alias in statement.names]
        elif isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
    own = [name for name in names if name.split(".")[0] == PACKAGE]
    return tuple(name for name in own if _path_of(name) is not None)


def _source_digest(module: str) -> str:
    return _parsed(module)[1]


@lru_cache(maxsize=256)
def _parsed(module: str) -> tuple[ast.Module, str]:
    """Return a module's syntax tree, and its digest without comments and docstrings."""
    path = _path_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8") if path else "")
    for owner in ast.walk(tree):
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef):
            owner.body = [s for s in owner.body if not _is_text(s)]
    code = ast.dump(tree)
    if path and path.name == "__init__.py":  # what a package compiles is its code too
        compiled = sorted([*path.parent.glob("*.cpp"), *path.parent.glob("*.h")])
        code += "".join(p.read_text(encoding="utf-8") for p in compiled)
    return tree, _digest(code)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@lru_cache(maxsize=1024)
def _path_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # a name within a module; a script
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _show(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"


def _dump(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
