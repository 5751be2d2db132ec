"""Nodes of the experiments: what each varies, and the table and plot that it ends in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from rest_pg.backends.models import load_tokenizer
from rest_pg.config import EvaluationParams, ResponseFormat
from rest_pg.pipelines.data_ingestion.examples import random_for
from rest_pg.pipelines.evaluation.nodes import METRICS, with_tasks
from rest_pg.pipelines.evaluation.report import COLORS, style
from rest_pg.prompts import count_tokens
from rest_pg.records import Example, PolicyCheckpoint, Prompt, ReasoningPath, ScoredSample
from rest_pg.responses import open_response
from rest_pg.statistics import held_out_mean

logger = logging.getLogger(__name__)

COLUMNS = ["case", "split", "metric", "mean", "ci_low", "ci_high", "n_users", "n_examples"]
PAPER: dict[str, dict[str, float]] = {
    "exploration": {"8": 0.419, "16": 0.422, "32": 0.423, "64": 0.421, "128": 0.420},
    "starts": {},
    "shuffled_profiles": {"sft_0": 0.398, "sft_100": 0.319},
    "forced_paths": {},
}
"""The paper's figures 2 and 5, where they are stated as numbers: another reward, and other models."""
TITLES = {
    "exploration": "samples per prompt, m",
    "starts": "start of the last M-step",
    "shuffled_profiles": "system, and % of examples with another user's profile",
    "forced_paths": "reasoning path in front of the response",
}


def take_first(
    scored_samples: Sequence[ScoredSample], *, samples_per_prompt: int
) -> list[ScoredSample]:
    """Take each prompt's first m samples: what a smaller budget would have drawn.

    Seeds derive from the sample's index, so a smaller budget draws the head of a larger one.
    """
    return [s for s in scored_samples if s.sample.sample_index < samples_per_prompt]


def shuffle_profiles(examples: Sequence[Example], seed: int, *, share: float) -> list[Example]:
    """Give a share of each held-out split's examples the profile of another of its users (fig. 5).

    The paper doesn't say whether whole profiles or single documents are replaced: here whole ones. A
    larger share replaces all that a smaller one did, and by the same profiles.

    Raises:
        ValueError: a split has a single user, so that there is no other's profile.
    """
    shuffled = []
    for split in ("validation", "test"):
        own = [example for example in examples if example.split == split]
        generator = random_for(seed, "shuffled_profiles", split)
        order = generator.sample(range(len(own)), len(own))
        replaced = set(order[: round(share * len(own))])
        for i, example in enumerate(own):
            others = [e for e in own if e.user_id != example.user_id]
            if not others:
                raise ValueError(
                    f"the {split} split has one user, {example.user_id}, and profiles can't be "
                    "exchanged: hold out more users"
                )
            other = random_for(seed, "other", example.example_id).choice(others)
            shuffled.append(replace(example, profile=other.profile) if i in replaced else example)
    return shuffled


def force_paths(
    prompts: Sequence[Prompt],
    reasoning_paths: Sequence[ReasoningPath],
    policy: PolicyCheckpoint,
    response_format: ResponseFormat,
    seed: int,
    *,
    source: Literal["teacher", "others", "empty"],
) -> list[Prompt]:
    """Put a reasoning path behind each held-out prompt, as if the policy had written it.

    Args:
        prompts: those of other splits are left out.
        reasoning_paths: the teacher's, for each held-out example.
        policy: its tokenizer counts the tokens.
        response_format: how a path and its response are joined.
        seed: of the run.
        source: teacher: the example's own path, which the teacher wrote with the reference at hand;
            others: that of an example by another user of the split; empty: none.

    Raises:
        ValueError: a split has a single user, so that there is no other's path.
    """
    tokenizer = load_tokenizer(policy)
    path_of = {path.example_id: path.text for path in reasoning_paths}
    held_out = [prompt for prompt in prompts if prompt.split != "train"]
    forced = []
    for prompt in held_out:
        path = path_of[prompt.example_id] if source == "teacher" else ""
        if source == "others":
            others = [
                p for p in held_out if p.split == prompt.split and p.user_id != prompt.user_id
            ]
            if not others:
                raise ValueError(
                    f"the {prompt.split} split has one user, {prompt.user_id}, and paths can't be "
                    "exchanged: hold out more users"
                )
            other = random_for(seed, "path", prompt.example_id).choice(others)
            path = path_of[other.example_id]
        text = prompt.text + open_response(path, response_format)
        forced.append(replace(prompt, text=text, n_tokens=count_tokens(tokenizer, text)))
    return forced


def create_table(params: EvaluationParams, seed: int, **metrics: pd.DataFrame) -> pd.DataFrame:
    """Estimate every metric of every case, with intervals over users.

    Args:
        params: resamples and confidence.
        seed: of the resamples.
        **metrics: ``case_<case>``: what ``measure_samples`` returned.
    """
    rows: list[dict[str, Any]] = []
    for name, table in metrics.items():
        means = with_tasks(table).groupby(["split", "user_id", "example_id"])[list(METRICS)].mean()
        for split, own in means.groupby(level="split"):
            users = own.index.get_level_values("user_id").to_numpy(dtype="str")
            for metric in METRICS:
                estimate = held_out_mean(own[metric].to_numpy(dtype="float64"), users, params, seed)
                rows.append(
                    {"case": name.removeprefix("case_"), "split": split, "metric": metric}
                    | {"mean": estimate.mean, "ci_low": estimate.ci_low}
                    | {"ci_high": estimate.ci_high, "n_users": estimate.n_users}
                    | {"n_examples": estimate.n_examples}
                )
    found = pd.DataFrame(rows, columns=COLUMNS).round(6)
    shown = found[found["metric"] == "reward"]
    logger.info("mean reward of held-out users:\n%s", shown.to_string(index=False))
    return found


def plot_table(table: pd.DataFrame, *, experiment: str) -> go.Figure:
    """Plot the mean reward of each case on both held-out splits, and the paper's beside it."""
    figure = go.Figure()
    rewards = table[table["metric"] == "reward"]
    for color, (split, own) in zip(COLORS[1:], rewards.groupby("split"), strict=False):
        figure.add_scatter(
            x=own["case"].astype(str).tolist(),
            y=own["mean"].tolist(),
            name=str(split),
            mode="markers",
            marker={"color": color, "size": 9},
            error_y={
                "array": (own["ci_high"] - own["mean"]).tolist(),
                "arrayminus": (own["mean"] - own["ci_low"]).tolist(),
            },
        )
    if paper := PAPER[experiment]:
        figure.add_scatter(
            x=list(paper), y=list(paper.values()), name="paper (its judge)", mode="markers"
        )
    figure.update_xaxes(type="category")
    return style(figure, TITLES[experiment], "mean reward")
