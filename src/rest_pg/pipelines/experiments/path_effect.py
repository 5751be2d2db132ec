"""How much of a reward the reasoning path decides: several responses behind each of several paths.

The E-step draws a path with each response, and selection takes both or none (§3.3). What it can teach of paths is
bounded by how far a prompt's paths differ in what they lead to: a nested random-effects model says that.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from rest_pg.backends.models import load_tokenizer
from rest_pg.config import EvaluationParams, ResponseFormat
from rest_pg.pipelines.evaluation.report import COLORS, style
from rest_pg.prompts import count_tokens
from rest_pg.records import PolicyCheckpoint, Prompt, Sample, ScoredSample
from rest_pg.responses import open_response

logger = logging.getLogger(__name__)

COMPONENTS = ("prompt", "path", "response")
COLUMNS = ["component", "variance", "share", "ci_low", "ci_high", "n_users", "n_prompts"]


def open_paths(
    prompts: Sequence[Prompt],
    samples: Sequence[Sample],
    policy: PolicyCheckpoint,
    response_format: ResponseFormat,
    *,
    paths_per_prompt: int,
) -> list[Prompt]:
    """Put each of a prompt's first reasoning paths behind it: a prompt for its responses alone.

    Args:
        prompts: of the run.
        samples: an iteration's, each with a path of its own; equal paths count once, malformed ones not.
        policy: what drew them; its tokenizer counts the tokens.
        response_format: how a path and its response are joined.
        paths_per_prompt: at most; prompts with fewer than two different paths are left out.

    Raises:
        ValueError: the format has no reasoning path, or fewer than two prompts have two.
    """
    if not response_format.reasoning:
        raise ValueError(
            "response_format.reasoning=false: this policy writes no reasoning paths to compare"
        )
    tokenizer = load_tokenizer(policy)
    paths: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for sample in samples:
        if sample.reasoning_path and not sample.malformed:
            paths[sample.example_id][sample.reasoning_path] = None
    chosen = [prompt for prompt in prompts if len(paths[prompt.example_id]) > 1]
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} of {len(prompts)} prompts have two different reasoning paths among their samples, "
            "and two are needed: train sft for longer, or raise expectation.samples_per_prompt"
        )
    opened = []
    for prompt in chosen:
        for number, path in enumerate(list(paths[prompt.example_id])[:paths_per_prompt]):
            text = prompt.text + open_response(path, response_format)
            name = f"{prompt.example_id}/path_{number}"
            n_tokens = count_tokens(tokenizer, text)
            opened.append(replace(prompt, example_id=name, text=text, n_tokens=n_tokens))
    return opened


def decompose_reward(
    scored_samples: Sequence[ScoredSample],
    prompts: Sequence[Prompt],
    params: EvaluationParams,
    seed: int,
) -> pd.DataFrame:
    """Split the variance of a sample's reward into what its prompt, its path and the draw behind it decide.

    Unbiased estimates of a nested random-effects model: within a path the variance of its responses; among a
    prompt's paths the variance of their means less what the responses leave in a mean; among prompts likewise. A
    share below 0 says that nothing is to be seen.

    Args:
        scored_samples: as many responses behind each path, two at least.
        prompts: what :func:`open_paths` returned.
        params: resamples and confidence.
        seed: of the resamples.

    Returns:
        A row per component, with its share of the whole and an interval over users.
    """
    user_of = {prompt.example_id: prompt.user_id for prompt in prompts}
    by_path: defaultdict[str, list[float]] = defaultdict(list)
    for scored in scored_samples:
        by_path[scored.sample.example_id].append(scored.score.reward)
    by_prompt: defaultdict[str, list[list[float]]] = defaultdict(list)
    users: dict[str, str] = {}
    for name, rewards in by_path.items():
        example_id = name.rpartition("/path_")[0]
        by_prompt[example_id].append(rewards)
        users[example_id] = user_of[name]
    rows = np.array([_of_one_prompt(own) for own in by_prompt.values()])
    names, index = np.unique(list(users.values()), return_inverse=True)
    members = [np.flatnonzero(index == user) for user in range(len(names))]
    whole = _variances(rows)
    draw = np.random.default_rng(seed)
    resampled = []
    for _ in range(params.n_bootstrap):
        chosen = draw.integers(len(names), size=len(names))
        variances = _variances(rows[np.concatenate([members[user] for user in chosen])])
        resampled.append(variances / variances.sum())
    tail = (1 - params.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    table = pd.DataFrame(
        {
            "component": COMPONENTS,
            "variance": whole,
            "share": whole / whole.sum(),
            "ci_low": low,
            "ci_high": high,
            "n_users": len(names),
            "n_prompts": len(rows),
        },
        columns=COLUMNS,
    ).round(6)
    logger.info("what decides a sample's reward:\n%s", table.to_string(index=False))
    return table


def _of_one_prompt(paths: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return a prompt's mean, its variance within paths and among them, and what both leave in the mean."""
    means = [np.mean(own) for own in paths]
    within = float(np.mean([np.var(own, ddof=1) for own in paths]))
    among_means = float(np.var(means, ddof=1))
    left = among_means / len(paths)
    return float(np.mean(means)), within, among_means - within / len(paths[0]), left


def _variances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the components' variances, of rows [n, 4] as :func:`_of_one_prompt` returns them."""
    mean, within, among, left = rows.T
    return np.array([np.var(mean, ddof=1) - left.mean(), among.mean(), within.mean()])


def plot_decomposition(table: pd.DataFrame) -> go.Figure:
    """Plot each component's share of the variance, with its interval."""
    figure = go.Figure()
    figure.add_scatter(
        x=table["component"].tolist(),
        y=table["share"].tolist(),
        mode="markers",
        marker={"color": COLORS[1], "size": 9},
        error_y={
            "array": (table["ci_high"] - table["share"]).tolist(),
            "arrayminus": (table["share"] - table["ci_low"]).tolist(),
        },
        showlegend=False,
    )
    return style(figure, "what decides a sample's reward", "share of the variance")
