"""The study's report: one self-contained HTML file, in the report's own style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rest_pg.pipelines.evaluation.nodes import count_users
from rest_pg.pipelines.evaluation.reading import browse_examples
from rest_pg.pipelines.evaluation.report import COLORS, style
from rest_pg.pipelines.study.nodes import BASELINE, METHOD, lay_out, title_of_study
from rest_pg.records import Example, Profile, ScoredSample
from rest_pg.reporting.html import render
from rest_pg.reporting.markdown import code_block, escape_markdown
from rest_pg.statistics import state_too_few

PAPER_SYSTEMS = ("sft", "sft_reasoning", "rest_em", "rest_pg")
PAPER = {
    split: dict(zip(PAPER_SYSTEMS, rewards, strict=True))
    for split, rewards in {
        "test": (0.3976, 0.3905, 0.4274, 0.4554),  # the average of its four tasks
        "test:email_completion": (0.2974, 0.2834, 0.3032, 0.3059),
        "test:abstract_generation": (0.4135, 0.3829, 0.4549, 0.4845),
        "test:product_review": (0.6525, 0.6773, 0.6656, 0.7077),
        "test:topic_writing": (0.2270, 0.2184, 0.2859, 0.3238),
    }.items()
}
"""The paper's Table 1, by split: another reward, other models; order alone compares."""
PAPER_ITERATIONS = {
    "rest_pg": (0.390, 0.423, 0.435, 0.455),
    "rest_em": (0.398, 0.418, 0.418, 0.427),
}
"""The paper's fig. 3, averages of its four tasks behind 0 to 3 iterations."""


def create_study_report(
    study: pd.DataFrame,
    contrasts: pd.DataFrame,
    costs: pd.DataFrame,
    data_statistics: pd.DataFrame,
    reasoning_path_figures: Mapping[str, float],
    contrasts_plot: go.Figure,
    iterations_plot: go.Figure,
    examples: Sequence[Example],
    profiles: Sequence[Profile],
    seed: int,
    **scored: Sequence[ScoredSample],
) -> str:
    """Render the study.

    Args:
        study: a row per system, split and metric.
        contrasts: REST-PG against each other system.
        costs: tokens and seconds of an answer, by system.
        data_statistics: what the data holds.
        reasoning_path_figures: the teacher's paths, and what they copy.
        contrasts_plot: what :func:`plot_contrasts` drew.
        iterations_plot: what :func:`plot_iterations` drew.
        examples: all examples.
        profiles: what was retrieved for them.
        seed: of the run.
        **scored: ``scored_<system>``: its samples of the first training seed.

    Returns:
        HTML without any reference to the network.
    """
    samples = {name.removeprefix("scored_"): own for name, own in scored.items()}
    return render(
        "study.jinja",
        sentences=state_contrasts(contrasts),
        tables={split: _table(study, split) for split in _splits(study)},
        contrasts=_of_test(contrasts, "reward"),
        paper=PAPER,
        costs=costs.to_dict("records"),
        statistics=data_statistics.to_dict("records"),
        paths=reasoning_path_figures,
        plots={
            "contrasts": contrasts_plot.to_json(),
            "iterations": iterations_plot.to_json(),
        },
        browse=browse_examples(examples, profiles, samples, seed, system=METHOD, baseline=BASELINE),
        iterations=[],
        too_few=state_too_few(count_users(study, "test")),
        n_seeds=int(study["n_seeds"].max()),
        seed=seed,
    )


def describe_study(study: pd.DataFrame, contrasts: pd.DataFrame) -> str:
    """Tell the study's question and its answers, in Markdown, for MLflow's page."""
    shown = ("reward", "rouge_l", "meteor", "similarity", "second_judge", "words")
    answers = "\n".join(f"- {escape_markdown(sentence)}" for sentence in state_contrasts(contrasts))
    return (
        "Is it the method that gains, or fine-tuning, reasoning or self-training alone?\n\n"
        f"{answers}\n\n{title_of_study(study).capitalize()}:\n\n"
        f"{code_block(lay_out(study, shown).to_string())}"
    )


def state_contrasts(contrasts: pd.DataFrame) -> list[str]:
    """Say what REST-PG gains over each system, in reward on test users.

    "Improves" and "lowers" are said only if the whole interval is on one side of 0; without one, nothing is said.
    """
    rows = _of_test(contrasts, "reward")
    too_few = state_too_few(count_users(contrasts, "test")) if rows else ""
    if too_few:
        return [f"F{too_few[1:]}, and no statement about REST-PG and other systems."]
    sentences = []
    for row in rows:
        if row["ci_low"] > 0:
            verb = "improves on"
        elif row["ci_high"] < 0:
            verb = "is below"
        else:
            verb = "shows no certain difference from"
        sentences.append(
            f"REST-PG {verb} {row['against']}: {row['difference']:+.4f} "
            f"({row['relative']:+.1%}) [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}], "
            f"{state_p(row['p_value'])}."
        )
    return sentences


def state_p(p_value: float) -> str:
    """Write a p-value, never as 0; one example has none."""
    if np.isnan(p_value):
        return "no p-value"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _of_test(contrasts: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    own = contrasts[(contrasts["split"] == "test") & (contrasts["metric"] == metric)]
    return [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]


def _splits(study: pd.DataFrame) -> list[str]:
    """Name the splits, test first."""
    return sorted(study["split"].unique(), key=lambda s: (not s.startswith("test"), s))


def _table(study: pd.DataFrame, split: str) -> list[dict[str, Any]]:
    systems: dict[str, dict[str, Any]] = {}
    for row in study[study["split"] == split].itertuples():
        systems.setdefault(str(row.system), {"system": row.system})[str(row.metric)] = row
    return list(systems.values())


def plot_contrasts(contrasts: pd.DataFrame) -> go.Figure:
    """Plot REST-PG's relative difference from each system, by metric, with intervals."""
    figure = go.Figure()
    metrics = ("reward", "rouge_l", "meteor", "chrf", "similarity", "second_judge")
    test = contrasts[contrasts["split"] == "test"]
    for color, metric in zip(COLORS[1:], metrics, strict=False):
        own = test[test["metric"] == metric]
        scale = (own["relative"] / own["difference"].replace(0, np.nan)).fillna(0) * 100
        middle = own["difference"] * scale
        figure.add_scatter(
            x=middle.tolist(),
            y=own["against"].tolist(),
            name=metric,
            mode="markers",
            marker={"color": color, "size": 9},
            error_x={
                "array": ((own["ci_high"] - own["difference"]) * scale).tolist(),
                "arrayminus": ((own["difference"] - own["ci_low"]) * scale).tolist(),
            },
        )
    # the base model is so far below that its intervals would hide all others
    near = test[test["against"].ne("base") & test["metric"].isin(metrics)]
    scale = (near["relative"] / near["difference"].replace(0, np.nan)).fillna(0) * 100
    widest = (near[["ci_low", "ci_high"]].abs().max(axis=1) * scale).max()
    if widest > 0:
        figure.update_xaxes(range=[-1.1 * widest, 1.1 * widest])
    figure.update_layout(scattermode="group")
    figure.add_vline(x=0, line_width=1)
    return style(figure, f"{METHOD} over the other, %", "")


def plot_iterations(iterations: pd.DataFrame) -> go.Figure:
    """Plot the mean reward on test users by iteration, per system (the paper's fig. 3)."""
    figure = go.Figure()
    test = iterations[iterations["split"] == "test"]
    for color, (system, own) in zip(COLORS[1:], test.groupby("system"), strict=False):
        figure.add_scatter(
            x=own["iteration"].tolist(),
            y=own["mean"].tolist(),
            name=str(system),
            mode="lines+markers",
            line={"color": color},
            error_y={
                "array": (own["ci_high"] - own["mean"]).tolist(),
                "arrayminus": (own["mean"] - own["ci_low"]).tolist(),
            },
        )
        paper = PAPER_ITERATIONS[str(system)]
        figure.add_scatter(
            x=list(range(len(paper))),
            y=list(paper),
            name=f"{system}, paper (its judge)",
            mode="lines",
            line={"color": color, "dash": "dot"},
        )
    return style(figure, "EM iterations behind the policy (0 is SFT)", "mean reward")
