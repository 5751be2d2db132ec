"""The report: one self-contained HTML file, readable on a laptop and on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rest_pg.pipelines.evaluation.nodes import (
    BASELINE,
    count_users,
    reported_split,
    results_table,
    title_of,
)
from rest_pg.pipelines.evaluation.reading import browse_examples, browse_iterations
from rest_pg.records import Example, Profile, ScoredSample, SelectedSample
from rest_pg.reporting.html import render, show_labels_literally
from rest_pg.reporting.markdown import code_block
from rest_pg.statistics import state_too_few
from rest_pg.text import count_words
from rest_pg.times import RunTimes

COLORS = ("#8c8c8c", "#3b75af", "#e0812c", "#3a923a", "#b13d3d", "#7c5fa8", "#6b4a3e")


def create_report(
    results: pd.DataFrame,
    examples: Sequence[Example],
    profiles: Sequence[Profile],
    data_statistics: pd.DataFrame,
    reasoning_path_figures: Mapping[str, float],
    seed: int,
    run_times: RunTimes,
    *,
    ingestion_counts: pd.DataFrame,
    **parts: Any,
) -> str:
    """Render the report.

    Args:
        results: what ``create_results`` returned.
        examples: all examples.
        profiles: what was retrieved for them.
        data_statistics: what the data holds.
        reasoning_path_figures: the teacher's paths, and what they copy.
        seed: of the run.
        run_times: what the run takes, beside its estimate if there is one.
        ingestion_counts: what became of each file's records.
        **parts: by system ``scored_<system>``, scored samples, and ``sampling_<system>``, what drawing them
            took; by iteration ``figures_<iteration>``, ``drawn_<iteration>``, all scored samples, and
            ``kept_<iteration>``, those selected; ``fine_tuning``, what SFT took.

    Returns:
        HTML without any reference to the network; all text of users and policies is escaped.
    """
    scored, sampling, figures, drawn, kept = (
        _of(parts, kind) for kind in ("scored", "sampling", "figures", "drawn", "kept")
    )
    split = reported_split(results)
    own = [example for example in examples if example.split == split]
    return render(
        "report.jinja",
        sentence=state_result(results),
        split=split,
        table=_table(results, split),
        plots={
            "curve": reward_curve(results, figures).to_json(),
            "lengths": reward_against_length(scored).to_json(),
            "selection": kept_and_left_out(drawn, kept).to_json(),
        },
        figures=figures,
        costs=list_costs(parts["fine_tuning"], figures, sampling),
        times=run_times.read().fillna("").to_dict("records"),
        browse=browse_examples(
            examples, profiles, scored, seed, system=list(scored)[-1], baseline=BASELINE
        ),
        iterations=browse_iterations(examples, drawn, kept, seed),
        counts={
            "users": len({e.user_id for e in own}),
            "examples": len(own),
            "words": fmean([count_words(e.reference) for e in own] or [0]),
        },
        too_few=state_too_few(count_users(results, split), split),
        statistics=data_statistics.to_dict("records"),
        ingestion=ingestion_counts.fillna("").to_dict("records"),
        paths=reasoning_path_figures,
        seed=seed,
    )


def _of(parts: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Take the parts of one kind, by what follows it in their names."""
    start = f"{kind}_"
    return {name.removeprefix(start): own for name, own in parts.items() if name.startswith(start)}


def state_result(results: pd.DataFrame) -> str:
    """Say in one sentence what the last iteration gained over SFT on test users.

    "Improves" and "lowers" are said only if the whole interval is on one side of 0; without one, nothing is said.
    """
    split = reported_split(results)
    rows = results[(results["metric"] == "reward_minus_sft") & (results["split"] == split)]
    rows = rows[rows["system"].str.startswith("iteration_")]
    if rows.empty:
        return "No iteration was compared with SFT."
    row = max(rows.itertuples(), key=lambda r: int(str(r.system).rpartition("_")[2]))
    t = str(row.system).rpartition("_")[2]
    if too_few := state_too_few(row.n_users, split):
        return f"F{too_few[1:]}, and no statement about REST-PG and SFT."
    if row.ci_low > 0:
        verb = "improves on SFT"
    elif row.ci_high < 0:
        verb = "lowers SFT's reward"
    else:
        verb = "shows no certain difference from SFT"
    return (
        f"After {t} EM iteration{'s' * (t != '1')}, REST-PG {verb} on {row.n_users} held-out "
        f"user{'s' * (row.n_users != 1)}{' (validation)' * (split != 'test')}: "
        f"{row.mean:+.4f} mean reward [95% interval {row.ci_low:+.4f}, {row.ci_high:+.4f}], "
        f"{row.n_examples} examples."
    )


def describe_run(results: pd.DataFrame) -> str:
    """Tell the run's question, its answer and its table, in Markdown, for MLflow's page."""
    split = reported_split(results)
    return (
        "Does training on its own best samples make a policy write more as its users would?\n\n"
        f"**{state_result(results)}**\n\n"
        f"{title_of(results, split).capitalize()}:\n\n"
        f"{code_block(results_table(results, split).to_string())}\n\n"
        "The report and each iteration's samples are among the artifacts."
    )


def _table(results: pd.DataFrame, split: str) -> list[dict[str, Any]]:
    systems: dict[str, dict[str, Any]] = {}
    for row in results[results["split"] == split].itertuples():
        systems.setdefault(str(row.system), {"system": row.system})[str(row.metric)] = row
    return list(systems.values())


def reward_curve(results: pd.DataFrame, figures: dict[str, dict[str, float]]) -> go.Figure:
    """Plot the mean reward by iteration: held-out splits with intervals, and training samples."""
    figure = go.Figure()
    rows = results[(results["metric"] == "reward") & (results["system"] != "base")]
    for color, (split, own) in zip(COLORS[1:], rows.groupby("split"), strict=False):
        steps = [0 if s == "sft" else int(s.rpartition("_")[2]) for s in own["system"]]
        figure.add_scatter(
            x=steps,
            y=own["mean"].tolist(),
            name=str(split),
            mode="lines+markers",
            line={"color": color},
            error_y={
                "array": (own["ci_high"] - own["mean"]).tolist(),
                "arrayminus": (own["mean"] - own["ci_low"]).tolist(),
            },
        )
    steps = [int(name.rpartition("_")[2]) - 1 for name in figures]
    for color, key, name in (
        (COLORS[4], "train_reward_mean", "train samples"),
        (COLORS[5], "train_reward_kept_mean", "train samples kept"),
    ):
        figure.add_scatter(
            x=steps,
            y=[f[key] for f in figures.values()],
            name=name,
            mode="lines+markers",
            line={"color": color, "dash": "dot"},
        )
    return style(figure, "EM iterations (0 is SFT)", "mean reward")


def reward_against_length(scored: dict[str, Sequence[ScoredSample]]) -> go.Figure:
    """Plot every held-out sample's reward against its words: does length buy reward?"""
    figure = go.Figure()
    for color, (system, samples) in zip(COLORS, scored.items(), strict=False):
        figure.add_scatter(
            x=[count_words(s.sample.response) for s in samples],
            y=[s.score.reward for s in samples],
            name=system,
            mode="markers",
            marker={"color": color, "opacity": 0.7, "size": 7},
        )
    return style(figure, "words in the response", "reward")


def kept_and_left_out(
    drawn: Mapping[str, Sequence[ScoredSample]], kept: Mapping[str, Sequence[SelectedSample]]
) -> go.Figure:
    """Plot the rewards of the samples that each iteration kept, beside those of the others."""
    figure = go.Figure()
    groups: dict[str, dict[str, list[float]]] = {"left out": {}, "kept": {}}
    for name, samples in drawn.items():
        chosen = {(s.sample.example_id, s.sample.sample_index) for s in kept[name] if s.weight > 0}
        for s in samples:
            group = "kept" if (s.sample.example_id, s.sample.sample_index) in chosen else "left out"
            groups[group].setdefault(name, []).append(s.score.reward)
    for color, (group, rewards) in zip(COLORS, groups.items(), strict=False):
        figure.add_box(
            x=[name for name, own in rewards.items() for _ in own],
            y=[reward for own in rewards.values() for reward in own],
            name=group,
            marker_color=color,
            boxpoints="all",
            jitter=0.4,
            pointpos=0,
        )
    figure.update_layout(boxmode="group")
    return style(figure, "iteration", "reward")


def list_costs(
    fine_tuning: Mapping[str, float],
    figures: Mapping[str, Mapping[str, float]],
    sampling: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """List what sampling and training took, stage by stage: seconds, and tokens a second."""
    rows = [("sft: training", fine_tuning["seconds"], fine_tuning["tokens_per_second"])]
    for name, own in figures.items():
        rows += [
            (f"{name}: sampling", own["sampling_seconds"], own["sampling_tokens_per_second"]),
            (f"{name}: training", own["training_seconds"], own["training_tokens_per_second"]),
        ]
    rows += [
        (f"evaluation of {system}: sampling", own["seconds"], own["tokens_per_second"])
        for system, own in sampling.items()
    ]
    total = sum(seconds for _, seconds, _ in rows)
    return [
        {
            "stage": stage,
            "seconds": round(seconds, 1),
            "share": f"{seconds / total:.0%}",
            "tokens a second": round(rate) if rate else "reused",  # drawn by an earlier run
        }
        for stage, seconds, rate in rows
    ]


def style(figure: go.Figure, x: str, y: str) -> go.Figure:
    """Give a figure the report's looks, and its axes their titles."""
    figure.update_layout(
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 50, "r": 10, "t": 10, "b": 110},
        # below the axis title, where it can't cover the plot of a narrow page
        legend={"orientation": "h", "yanchor": "top", "y": -0.3},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        template="none",
    )
    show_labels_literally(figure)
    if x.startswith("EM"):
        figure.update_xaxes(dtick=1)
    return figure
