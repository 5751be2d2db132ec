"""The cards that go with a shipped policy, in the hub's format: what it is, and what it was made of."""

from __future__ import annotations

from typing import Any

import pandas as pd
from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rest_pg import __version__
from rest_pg.config import BasePolicyParams, MaximizationParams, SelectionParams, ShipParams
from rest_pg.pipelines.evaluation.nodes import count_users, reported_split
from rest_pg.reporting.markdown import code_span, escape_markdown, yaml_scalar
from rest_pg.statistics import state_too_few

MEASURES = ("reward", "reward_minus_sft", "rouge_1", "rouge_l", "meteor", "similarity", "words")
EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_model_card(
    results: pd.DataFrame,
    data_statistics: pd.DataFrame,
    base_policy: BasePolicyParams,
    selection: SelectionParams,
    maximization: MaximizationParams,
    ship: ShipParams,
    seed: int,
    *,
    system: str,
) -> str:
    """Write a policy's card from the run's own results; it names no user, and quotes nobody.

    Args:
        results: what ``create_results`` returned.
        data_statistics: what the data holds.
        base_policy: what training started from.
        selection: which samples the last iterations learnt from.
        maximization: how.
        ship: name, licences and language.
        seed: of the run.
        system: the policy's name in the results.
    """
    split = reported_split(results)
    rows = results[(results["system"] == system) & (results["split"] == split)]
    found = rows.set_index("metric").to_dict("index")
    return _render(
        "model_card.jinja",
        ship=ship,
        base="" if base_policy.source == "embedded" else base_policy.source,
        base_model=EMBEDDED_NAME if base_policy.source == "embedded" else base_policy.source,
        system=system,
        split=split,
        too_few=state_too_few(count_users(results, split), split),
        measures={name: found[name] for name in MEASURES if name in found},
        statistics=data_statistics.to_dict("records"),
        selection=selection,
        maximization=maximization,
        seed=seed,
        version=__version__,
    )


def write_dataset_card(data_statistics: pd.DataFrame, ship: ShipParams) -> str:
    """Write the card of the data that a policy was trained on, by figures alone."""
    return _render("dataset_card.jinja", ship=ship, statistics=data_statistics.to_dict("records"))


def _render(template: str, **values: Any) -> str:
    loader = PackageLoader("rest_pg.pipelines.ship", "templates")
    environment = ImmutableSandboxedEnvironment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"literal": escape_markdown, "code": code_span, "yaml": yaml_scalar}
    return environment.get_template(template).render(**values)
