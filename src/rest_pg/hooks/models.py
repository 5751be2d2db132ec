"""Refuses models that can't be used as they are, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from rest_pg.freshness import flatten
from rest_pg.times import describe

EMBEDDED = "embedded"
KINDS = ("model", "embedder")
"""Arguments of back-ends that name a language model, and an embedding model."""


class ModelsHook:
    """Checks the models that a run will load: their files, tokenizers and chat templates, but no weights."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Raise ``ValueError`` for the first one that can't be used."""
        named = named_models(catalog, sorted(pipeline.inputs()))
        imports = "base_policy" in pipeline.all_outputs()  # a dry run may plan for another machine
        if run_params.get("only_missing_outputs") and catalog.exists("base_policy"):
            imports = False  # it was imported: its source may be gone
        if not imports:
            named.pop(("base_policy.source", "model"), None)
        own = {key: source for key, source in named.items() if source != EMBEDDED}
        if not own:
            return
        # transformers takes seconds to import, and many runs load no other model than the embedded ones
        from rest_pg.backends.model_files import (  # noqa: PLC0415
            ModelError,
            check_embedder,
            check_model,
        )

        for (subject, kind), source in own.items():
            try:
                (check_model if kind == "model" else check_embedder)(source)
            except ModelError as error:
                raise ValueError(f"{subject}: {error}") from error


def named_models(catalog: DataCatalog, inputs: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the models that inputs of a pipeline name.

    Returns:
        Each source, by what names it and by its kind: ``model`` or ``embedder``.
    """
    named: dict[tuple[str, str], str] = {}
    for name in inputs:
        if name == "params:base_policy":
            named["base_policy.source", "model"] = catalog.load(name).source
        elif not name.startswith("param"):
            arguments = flatten(describe(catalog, name))
            for key, value in arguments.items():
                prefix, _, kind = key.rpartition(".")
                if f"{prefix}.scorer.arguments.servers" in arguments:  # its weights are elsewhere
                    continue
                if key.startswith("arguments.") and kind in KINDS and isinstance(value, str):
                    named[f"{name}.{kind}", kind] = value
    return named
