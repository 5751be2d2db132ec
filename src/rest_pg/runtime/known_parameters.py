"""Which parameters there are: those of conf/base, of the typed models, and what configuration reads at run time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from kedro.config import OmegaConfigLoader
from pydantic import BaseModel

from rest_pg.config import GROUPS

READ = re.compile(r"\$\{runtime_params:\s*([\w.]+)\s*(?:,([^}]*))?\}")
"""How a file of the configuration reads a parameter of the command line, with its default."""
Tree = dict[str, Any]
"""Names, with a tree below each that has names of its own; ``LEAF`` and ``ANY`` end it."""
LEAF, ANY = "leaf", "any"


@dataclass(frozen=True, slots=True)
class RuntimeName:
    """A name that a file of the configuration reads from the command line."""

    name: str
    environment: str
    default: Any

    @property
    def is_text(self) -> bool:
        """Whether it is a path or a name: its default is a text, or null."""
        return self.default is None or isinstance(self.default, str)


def runtime_names(conf: Path) -> list[RuntimeName]:
    """Return what the files of all environments read from the command line."""
    return [
        RuntimeName(match[1], file.relative_to(conf).parts[0], _value(match[2]))
        for file in sorted(conf.glob("*/**/*.yml"))
        for match in READ.finditer(file.read_text(encoding="utf-8", errors="replace"))
    ]


def _value(default: str | None) -> Any:
    try:
        return yaml.safe_load(default or "")
    except yaml.YAMLError:
        return default


def text_names(conf: Path) -> dict[str, bool]:
    """Return the parameters that are texts, by their dotted names, and whether each may be null."""
    found = dict(_text_fields(GROUPS))
    for read in runtime_names(conf):
        if read.is_text:
            found[read.name] = found.get(read.name, False) or read.default is None
    return found


def _text_fields(models: Mapping[str, type[BaseModel]]) -> Iterator[tuple[str, bool]]:
    for prefix, model in models.items():
        for name, field in model.model_fields.items():
            kinds = _kinds(field.annotation)
            if str in kinds and not set(kinds) - {str, type(None)}:
                yield f"{prefix}.{name}", type(None) in kinds
            inner = {f"{prefix}.{name}": kind for kind in kinds if _is_model(kind)}
            yield from _text_fields(inner)


def unknown_names(loader: OmegaConfigLoader) -> list[str]:
    """Return a line for each parameter of a session that doesn't exist, with the nearest names."""
    conf = Path(loader.conf_source)
    if not conf.is_dir():  # an archive or a store: its files can't be searched
        return []
    base = OmegaConfigLoader(
        conf_source=str(conf),
        env=loader.base_env,
        base_env=loader.base_env,
        default_run_env=loader.base_env,
        merge_strategy={"parameters": "soft"},
    )
    known = _merged(_tree_of_values(dict(base["parameters"])), _tree_of_models())
    environment = loader.env or loader.default_run_env
    reads = runtime_names(conf)
    read_here = {r.name for r in reads if r.environment in (loader.base_env, environment, "local")}
    for name in read_here:
        known.setdefault(name, ANY)
    typed = set(_flat(_tree_of_values(dict(loader.runtime_params or {}))))
    lines = []
    for name in _unknown(dict(loader["parameters"]), known):
        place = "--params" if any(t == name or t.startswith(f"{name}.") for t in typed) else ""
        where = place or f"conf/{environment}"
        lines.append(f"{name} ({where}){_hint(name, known, reads)}")
    return lines


def _hint(name: str, known: Tree, reads: list[RuntimeName]) -> str:
    elsewhere = sorted({r.environment for r in reads if r.name == name})
    if elsewhere:
        return f", which only --env {' or --env '.join(elsewhere)} reads."
    near = nearest(name, _flat(known))
    return f": did you mean {', '.join(near)}?" if near else "."


def nearest(name: str, names: list[str]) -> list[str]:
    """Return the names that are nearest to one: as a whole, or by their last part."""
    last = {candidate.rpartition(".")[2]: candidate for candidate in reversed(names)}
    part = name.rpartition(".")[2]
    same = [c for c in names if c.rpartition(".")[2] == part]
    group = [c for c in names if c.startswith(name.rpartition(".")[0] + ".")]
    beside = difflib.get_close_matches(name, group) if "." in name else []
    found = [
        *beside,
        *same,
        *difflib.get_close_matches(name, names),
        *(last[c] for c in difflib.get_close_matches(part, list(last), cutoff=0.75)),
    ]
    return list(dict.fromkeys(found))[:3]


def _unknown(values: Mapping[str, Any], known: Tree, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        below = known.get(str(key))
        if below is None:
            if not str(key).startswith("_"):
                yield from _flat(_tree_of_values({name: value})) if value else [name]
        elif isinstance(value, Mapping) and below != ANY:
            yield from _unknown(value, below if isinstance(below, dict) else {}, f"{name}.")


def _tree_of_values(values: Mapping[str, Any]) -> Tree:
    return {
        str(name): _tree_of_values(value) if isinstance(value, Mapping) and value else LEAF
        for name, value in values.items()
    }


def _tree_of_models() -> Tree:
    return {name: _tree_of(model) for name, model in GROUPS.items()}


def _tree_of(annotation: Any) -> Any:
    """Return the names below a field: those of a model, or the keys that a mapping may have."""
    if _is_model(annotation):
        return {n: _tree_of(field.annotation) for n, field in annotation.model_fields.items()}
    found: Any = LEAF
    for kind in _kinds(annotation):
        if _is_model(kind):
            found = _tree_of(kind)
        elif kind is dict or get_origin(kind) is dict:
            keys = get_args(kind)[:1]
            closed = bool(keys) and get_origin(keys[0]) is Literal
            found = dict.fromkeys(get_args(keys[0]), LEAF) if closed else ANY
    return found


def _kinds(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (UnionType, Union)
    return get_args(annotation) if union else (annotation,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _merged(one: Tree, other: Tree) -> Tree:
    """Return both trees as one: where one has names below a name, they are known."""
    found = dict(one)
    for name, below in other.items():
        mine = found.get(name)
        both = isinstance(mine, dict) and isinstance(below, dict)
        found[name] = _merged(mine, below) if both else below  # type: ignore[arg-type]
    return found


def _flat(tree: Tree, prefix: str = "") -> list[str]:
    names = []
    for name, below in tree.items():
        if isinstance(below, dict) and below:
            names += _flat(below, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names
