"""Wiring: parameters and raw data → checks; parameters → plan."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.plan.nodes import (
    Work,
    check_configuration,
    check_documents,
    check_records,
    create_plan,
    log_plan,
)
from rest_pg.wiring import bind

CONFIGURED = ("base_policy", "retrieval", "response_format", "direct_response_format")


def create_pipeline(data_format: str, planned: Pipeline | None = None) -> Pipeline:
    """Return the pipeline that checks and estimates a run, and does nothing else (``dry_run: true``).

    Args:
        data_format: ``documents`` or ``longlamp``.
        planned: what would run; none: the method, each iteration by itself.
    """
    names = ("prompt", "sft", "expectation", "selection", "maximization", "evaluation", "plan")
    parameters = {name: f"params:{name}" for name in names} | {
        "n_iterations": "params:n_iterations"
    }
    estimate = create_plan if planned is None else bind(create_plan, work=work_of(planned))
    return Pipeline(
        [
            node(
                check_configuration,
                {name: f"params:{name}" for name in CONFIGURED},
                None,
                name="check_configuration",
            ),
            _check_documents() if data_format == "documents" else _check_records(),
            node(estimate, parameters, "plan", name="create_plan"),
            node(log_plan, ["plan", "params:plan"], None, name="log_plan"),
        ]
    )


def work_of(pipeline: Pipeline) -> list[Work]:
    """Count the nodes that do the same: the function's name, and the samples drawn per prompt if that is fixed."""
    found: Counter[tuple[str, int | None]] = Counter()
    for own in pipeline.nodes:
        fixed: dict[str, Any] = own.func.keywords if isinstance(own.func, partial) else {}
        found[own.func.__name__, fixed.get("samples_per_prompt")] += 1
    return [Work(function, m, n) for (function, m), n in sorted(found.items(), key=str)]


def _check_documents() -> Any:
    names = ["raw_documents", "params:passages", "params:bad_records", "params:plan"]
    return node(check_documents, names, None, name="check_documents")


def _check_records() -> Any:
    names = ["raw_examples", "params:longlamp", "params:bad_records", "params:plan"]
    return node(check_records, names, None, name="check_records")
