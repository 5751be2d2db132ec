"""What ``--params`` makes of what was typed, and the command that resumes a run."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

OCTAL = re.compile(r"[-+]?0[0-9_]+")
SIXTIES = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")
"""What YAML 1.1 reads as a number, and nobody means so."""
LISTS = {
    "pipeline_names": "--pipelines",
    "tags": "--tags",
    "from_nodes": "--from-nodes",
    "to_nodes": "--to-nodes",
    "node_names": "--nodes",
    "from_inputs": "--from-inputs",
    "to_outputs": "--to-outputs",
    "namespaces": "--namespaces",
}
"""Options of ``kedro run`` that take names with commas between them, by their names in a run's parameters."""
NEXT = "--only-missing-outputs"


def read_params(text: str, texts: Mapping[str, bool]) -> dict[str, Any]:
    """Read ``--params`` as Kedro does, but paths and names as they were typed.

    Args:
        text: ``key=value`` items with commas between them.
        texts: the keys whose values are texts, and whether ``null`` means none there.

    Raises:
        ValueError: an item isn't of that form, or isn't read as it looks.
    """
    values: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals:
            raise ValueError(
                f"`{item}` is not key=value. Kedro cuts --params at its commas: in a text, write a comma "
                r"as \x2c between double quotes."
            )
        if key in texts and not _is_quoted(value):
            found = None if value == "null" and texts[key] else value
            _put(values, key.split("."), found)
        else:
            values = _merge(values, _read(key, value))
    return values


def _read(key: str, value: str) -> dict[str, Any]:
    found = _from_yaml(key, value)
    if OCTAL.fullmatch(value) or SIXTIES.fullmatch(value):
        raise ValueError(
            f"`{key}={value}` is read as {_at(found, key)!r} (YAML 1.1). Write that number, or for a text "
            f"\"{key}='{value}'\"."
        )
    return found


def _from_yaml(key: str, value: str) -> dict[str, Any]:
    try:
        found: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(
            f"`{key}={value}` is no YAML ({next(iter(str(error).splitlines()), '')}). Put the value in "
            f"quotes: \"{key}='…'\"."
        ) from error
    return dict(found)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _put(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[parts[-1]] = value


def _merge(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        both = isinstance(found.get(key), dict) and isinstance(value, dict)
        found[key] = _merge(found[key], value) if both else value
    return found


def resume_command(
    run_params: Mapping[str, Any],
    *,
    run_id: str | None = None,
    conf_source: str | None = None,
    runner_params: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> tuple[str, list[str]]:
    """Return the shell command that resumes a run.

    Args:
        run_params: what Kedro tells its hooks of the run.
        run_id: the MLflow run to go on in.
        conf_source: where the configuration lies, if not in the project.
        runner_params: the runner's arguments.
        directory: where it will be typed, if that isn't within the project.

    Returns:
        The command, and the parameters that ``--params`` can't carry, as ``name: value`` in YAML.
    """
    words = ["kedro", "run", NEXT]
    if run_params.get("env"):
        words += ["--env", str(run_params["env"])]
    for name, option in LISTS.items():
        if given := run_params.get(name):
            words += [option, ",".join(map(str, given))]
    if versions := run_params.get("load_versions"):
        words += ["--load-versions", ",".join(f"{k}:{v}" for k, v in versions.items())]
    if runner := _runner(str(run_params.get("runner") or "")):
        words += ["--runner", runner]
    if conf_source:
        words += ["--conf-source", conf_source]
    if runner_params:
        words += ["--runner-params", ",".join(_words(runner_params)[0])]
    given = dict(run_params.get("runtime_params") or {})
    items, left = _words(given | ({"mlflow_run_id": run_id} if run_id else {}))
    if items:
        words += ["--params", ",".join(items)]
    command = " ".join(map(quote, words))
    project = run_params.get("project_path")
    if directory is not None and project and find_kedro_project(directory) != Path(project):
        command = f"cd {quote(str(project))} && {command}"
    return command, left


def _runner(described: str) -> str:
    """Return what ``--runner`` takes, from a runner's description; empty for Kedro's default."""
    match = re.match(r"<?([\w.]+?)(?: object at .*)?>?$", described)
    path = match[1] if match else ""
    name = path.rpartition(".")[2]
    if name in ("", "None", "SequentialRunner"):
        return ""
    return name if path.startswith("kedro.runner.") else path


def _words(values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return values as items of ``--params``, and those that no item gives back."""
    items, left = [], []
    for key, value in _leaves(values):
        for text in _candidates(value):
            if _gives_back(key, text, value):
                items.append(f"{key}={text}")
                break
        else:
            left.append(f"{key}: {json.dumps(value, default=str, ensure_ascii=False)}")
    return items, left


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, Path) else value


def _candidates(value: Any) -> list[str]:
    """Return how a value may be written in YAML without a comma, the plainest first."""
    if isinstance(value, str):
        single = value.replace("'", "''")
        return [value, f"'{single}'", _double(value)]
    if isinstance(value, bool) or value is None:
        return [json.dumps(value)]
    if isinstance(value, int | float):
        return [repr(value), f".{value!r}", f"-.{str(value).lstrip('-')}"]  # .inf, .nan
    if isinstance(value, list | tuple) and len(value) != 1:
        inner = [next(iter(_plain(item)), None) for item in value]
        known = [text for text in inner if text is not None]
        return ["\n".join(f"- {text}" for text in known) or "[]"] if known == inner else []
    if isinstance(value, list | tuple):
        return [f"[{text}]" for text in _plain(value[0])]
    return ["{}"] if value == {} else []


def _plain(value: Any) -> Iterator[str]:
    """Yield the writings of a list's element that give it back."""
    return (text for text in _candidates(value) if _gives_back("k", f"[{text}]", [value]))


def _double(value: str) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written.replace(",", r"\x2c").replace("\x7f", r"\x7f")


def _gives_back(key: str, text: str, value: Any) -> bool:
    """Whether an item is read as its value: by Kedro, and where its key is a text, as that too."""
    if "," in text or text != text.strip() or "," in key:
        return False
    try:
        found = _at(_read(key, text), key)
    except (ValueError, KeyError, TypeError):
        return False
    if isinstance(value, float) and math.isnan(value):
        return isinstance(found, float) and math.isnan(found)
    expected = list(value) if isinstance(value, tuple) else value
    if type(found) is not type(expected) or found != expected:
        return False
    return not isinstance(value, str) or _is_quoted(text) or text == value


def quote(word: str) -> str:
    """Quote a word for bash, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    written = "".join(c if c.isprintable() else _escaped(c) for c in word.replace("\\", r"\\"))
    return "$'" + written.replace("'", r"\'") + "'"


def _escaped(character: str) -> str:
    return {"\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(
        character,
        "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape")),
    )
