"""Wiring: each experiment varies one thing, takes all else from the run, and ends in a table and a plot.

exploration         m samples per prompt (fig. 2): drawn once, the largest m; a smaller one is its head
starts              what the last M-step starts from (fig. 4)
shuffled_profiles   the share of held-out examples that get another user's profile (fig. 5)
forced_paths        the reasoning path that the last policy writes behind: its own, the teacher's, another's, none
path_effect         several responses behind each of several paths: how much of the reward the path decides
"""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Pipeline, node

from rest_pg.method.retrieval import retrieve_profiles
from rest_pg.pipelines.evaluation.pipeline import create_system
from rest_pg.pipelines.experiments.nodes import (
    create_table,
    force_paths,
    plot_table,
    shuffle_profiles,
    take_first,
)
from rest_pg.pipelines.experiments.path_effect import (
    decompose_reward,
    open_paths,
    plot_decomposition,
)
from rest_pg.pipelines.reasoning_path.nodes import create_prompts, write_reasoning_paths
from rest_pg.pipelines.self_training.nodes import sample_responses, score_samples
from rest_pg.pipelines.self_training.pipeline import create_maximization
from rest_pg.wiring import bind

STARTS = ("base", "sft", "previous")
SOURCES = ("teacher", "others", "empty")
TRAINED_BY = {"prompts", "trainer", "base_policy"}
EVALUATED_BY = {"generator", "reward"}
MAXIMIZATION = {"selection", "maximization", "response_format", "retrieval", "seed"}
EVALUATION = {"evaluation", "response_format", "seed"}


def create_exploration(budgets: Sequence[int], *, least: int = 1) -> Pipeline:
    """Return the experiment on m, the samples per prompt of one iteration from policy_0.

    Args:
        budgets: m, rising.
        least: samples that an M-step needs of a prompt: 2 if it learns from pairs.

    Raises:
        ValueError: budgets are not rising, or the first is too small.
    """
    if not budgets or list(budgets) != sorted(set(budgets)) or budgets[0] < least:
        raise ValueError(f"experiments.budgets={list(budgets)} must rise, from {least} or more")
    draw = Pipeline(
        [
            node(
                bind(sample_responses, iteration=1, samples_per_prompt=budgets[-1]),
                [
                    *("policy_0", "prompts", "generator", "params:response_format"),
                    *("params:expectation", "params:seed"),
                ],
                ["exploration.samples", "exploration.sampling_figures"],
                name="sample_largest_budget",
            ),
            node(
                score_samples,
                ["exploration.samples", "prompts", "reward"],
                "exploration.scored_samples",
                name="score_largest_budget",
            ),
        ]
    )
    cases = {str(m): f"exploration.m_{m}" for m in budgets}
    placed = [_train_on_first(m, cases[str(m)]) for m in budgets]
    return sum(placed, draw) + _conclude("exploration", cases)


def _train_on_first(m: int, namespace: str) -> Pipeline:
    head = node(
        bind(take_first, samples_per_prompt=m),
        "all_scored_samples",
        "scored_samples",
        name="take_first",
    )
    return Pipeline(
        Pipeline([head]) + create_maximization(1),
        namespace=namespace,
        inputs={name: name for name in TRAINED_BY}
        | {
            "all_scored_samples": "exploration.scored_samples",
            "sampling_figures": "exploration.sampling_figures",
            "policy": "policy_0",
            "sft_policy": "policy_0",
        },
        outputs={"next_policy": f"{namespace}.policy_1"},
        parameters=MAXIMIZATION,
    ) + _evaluate(f"{namespace}.evaluation", f"{namespace}.policy_1")


def create_starts(n_iterations: int) -> Pipeline:
    """Return the experiment on what the last iteration's M-step starts from."""
    last = f"iteration_{n_iterations}"
    placed = [
        Pipeline(
            create_maximization(n_iterations, start=start),
            namespace=f"starts.{start}",
            inputs={name: name for name in TRAINED_BY}
            | {
                "scored_samples": f"{last}.scored_samples",
                "sampling_figures": f"{last}.sampling_figures",
                "policy": f"policy_{n_iterations - 1}",
                "sft_policy": "policy_0",
            },
            outputs={"next_policy": f"starts.{start}.policy_{n_iterations}"},
            parameters=MAXIMIZATION,
        )
        + _evaluate(f"starts.{start}.evaluation", f"starts.{start}.policy_{n_iterations}")
        for start in STARTS
    ]
    cases = {start: f"starts.{start}" for start in STARTS}
    return sum(placed, Pipeline([])) + _conclude("starts", cases)


def create_shuffled_profiles(n_iterations: int, shares: Sequence[float]) -> Pipeline:
    """Return the experiment on profiles: SFT and the last policy, read with other users' documents.

    Raises:
        ValueError: a share is not in (0, 1].
    """
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"experiments.shares={list(shares)} must be above 0 and at most 1")
    policies = {"sft": "policy_0", "rest_pg": f"policy_{n_iterations}"}
    placed, cases = Pipeline([]), {}
    for share in (0.0, *shares):
        group = f"shuffled_profiles.share_{round(100 * share)}"
        placed += _read_with_shuffled_profiles(group, share)
        for system, policy in policies.items():
            case = f"{group}.{system}"
            cases[f"{system}_{round(100 * share)}"] = case
            own = {name: f"{group}.{name}" for name in ("prompts", "profiles")}
            placed += _evaluate(f"{case}.evaluation", policy, **own)
    return placed + _conclude("shuffled_profiles", cases)


def _read_with_shuffled_profiles(group: str, share: float) -> Pipeline:
    return Pipeline(
        [
            node(
                bind(shuffle_profiles, share=share),
                ["examples", "params:seed"],
                "shuffled_examples",
                name="shuffle_profiles",
            ),
            node(
                retrieve_profiles,
                ["shuffled_examples", "retriever", "params:retrieval"],
                "profiles",
                name="retrieve_profiles",
            ),
            node(
                create_prompts,
                [
                    *("shuffled_examples", "profiles", "base_policy", "response_template"),
                    *("params:response_format", "params:prompt"),
                ],
                ["prompts", "prompt_figures"],
                name="create_prompts",
            ),
        ],
        namespace=group,
        inputs={"examples", "retriever", "base_policy", "response_template"},
        parameters={"seed", "retrieval", "response_format", "prompt"},
    )


def create_forced_paths(n_iterations: int) -> Pipeline:
    """Return the experiment on what reasoning paths carry: one policy, and paths of other origin."""
    policy = f"policy_{n_iterations}"
    placed = Pipeline(
        [
            node(
                bind(write_reasoning_paths, splits=("validation", "test")),
                ["examples", "profiles", "teacher", "base_policy"],
                "forced_paths.reasoning_paths",
                name="write_held_out_paths",
            )
        ]
    )
    cases = {"own": "forced_paths.own"}
    placed += _evaluate("forced_paths.own.evaluation", policy)
    for source in SOURCES:
        case = cases[source] = f"forced_paths.{source}"
        head = node(
            bind(force_paths, source=source),
            [
                *("prompts", "forced_paths.reasoning_paths", policy),
                *("params:response_format", "params:seed"),
            ],
            f"{case}.prompts",
            name=f"force_{source}_paths",
        )
        # what comes is the response alone
        placed += Pipeline([head]) + _evaluate(
            f"{case}.evaluation",
            policy,
            f"{case}.prompts",
            response_format="direct_response_format",
        )
    return placed + _conclude("forced_paths", cases)


def create_path_effect(n_iterations: int, paths: int, responses: int) -> Pipeline:
    """Return the experiment on how much of the reward the paths of the last E-step decide.

    Args:
        n_iterations: T, whose samples' paths are gone on from.
        paths: of a prompt, at most.
        responses: drawn behind each path.

    Raises:
        ValueError: there are fewer than two of either, so that they have no variance.
    """
    if min(paths, responses) < 2:
        raise ValueError(f"experiments.path_effect: {paths} paths of {responses} responses: take 2")
    policy = f"policy_{n_iterations - 1}"  # the one that wrote them
    return Pipeline(
        [
            node(
                bind(open_paths, paths_per_prompt=paths),
                [
                    *("prompts", f"iteration_{n_iterations}.samples", policy),
                    "params:response_format",
                ],
                "path_effect.prompts",
                name="open_paths",
            ),
            node(
                bind(sample_responses, iteration=n_iterations, samples_per_prompt=responses),
                [
                    *(policy, "path_effect.prompts", "generator", "params:direct_response_format"),
                    *("params:expectation", "params:seed"),
                ],
                ["path_effect.samples", "path_effect.sampling_figures"],
                name="sample_behind_paths",
            ),
            node(
                score_samples,
                ["path_effect.samples", "path_effect.prompts", "reward"],
                "path_effect.scored_samples",
                name="score_behind_paths",
            ),
            node(
                decompose_reward,
                [
                    *("path_effect.scored_samples", "path_effect.prompts"),
                    *("params:evaluation", "params:seed"),
                ],
                "path_effect_table",
                name="decompose_reward",
            ),
            node(
                plot_decomposition,
                "path_effect_table",
                "path_effect_plot",
                name="plot_path_effect",
            ),
        ]
    )


def _evaluate(
    namespace: str,
    policy: str,
    prompts: str = "prompts",
    profiles: str = "profiles",
    response_format: str = "response_format",
) -> Pipeline:
    return Pipeline(
        create_system(None),
        namespace=namespace,
        inputs={name: name for name in EVALUATED_BY}
        | {"policy": policy, "prompts": prompts, "profiles": profiles},
        parameters={name: name for name in EVALUATION} | {"response_format": response_format},
    )


def _conclude(experiment: str, cases: dict[str, str]) -> Pipeline:
    metrics = {f"case_{case}": f"{place}.evaluation.metrics" for case, place in cases.items()}
    return Pipeline(
        [
            node(
                create_table,
                {"params": "params:evaluation", "seed": "params:seed"} | metrics,
                f"{experiment}_table",
                name=f"create_{experiment}_table",
            ),
            node(
                bind(plot_table, experiment=experiment),
                f"{experiment}_table",
                f"{experiment}_plot",
                name=f"plot_{experiment}",
            ),
        ]
    )
