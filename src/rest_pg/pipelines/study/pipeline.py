"""Wiring: each system from the stages' own templates, under ``seed_s.<system>``; then one table.

    base                                                       asked plainly
    no_profile         SFT without documents
    sft                SFT on prompt → response
      └ rest_em        T iterations from there: ReST-EM
    sft_reasoning      SFT on prompt → reasoning path → response
      ├ rest_pg        T iterations from there: the method
      └ random_selection   the same, but as many samples are kept at random: the control

Data, retrieval and prompts are shared by all systems and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Pipeline, node

from rest_pg.pipelines.evaluation.pipeline import create_system
from rest_pg.pipelines.reasoning_path.nodes import create_prompts
from rest_pg.pipelines.self_training.pipeline import (
    SHARED,
    create_matched_pipeline,
)
from rest_pg.pipelines.self_training.pipeline import create_pipeline as create_iterations
from rest_pg.pipelines.sft.pipeline import create_template as create_sft
from rest_pg.pipelines.study.nodes import (
    compare_systems,
    count_costs,
    create_study_table,
    draw_curves,
    follow_iterations,
    log_study,
    remove_profiles,
)
from rest_pg.pipelines.study.report import (
    create_study_report,
    describe_study,
    plot_contrasts,
    plot_iterations,
)
from rest_pg.wiring import bind

SYSTEMS = ("base", "no_profile", "sft", "sft_reasoning", "rest_em", "random_selection", "rest_pg")
SELF_TRAINED = ("rest_em", "random_selection", "rest_pg")
INPUTS = SHARED | {
    "profiles",
    "no_profiles",
    "reasoning_paths",
    "direct_prompts",
    "no_profile_prompts",
    "second_judge",
}
DIRECT = {"response_format": "direct_response_format"}


def create_pipeline(n_iterations: int, seeds: Sequence[int]) -> Pipeline:
    """Return the study, behind data ingestion and prompts.

    Raises:
        ValueError: there is no seed, or one occurs twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"study.seeds={list(seeds)} must hold at least one seed, each once")
    placed = [
        Pipeline(
            create_systems(n_iterations),
            namespace=f"seed_{seed}",
            inputs=INPUTS,
            parameters={
                "seed": f"study_seeds.{seed}",
                **{name: name for name in ("response_format", "direct_response_format", "sft")},
                **{name: name for name in ("expectation", "selection", "maximization")},
                **{name: name for name in ("evaluation", "retrieval")},
            },
        )
        for seed in seeds
    ]
    return sum(placed, _create_controls()) + _create_comparison(n_iterations, seeds)


def _create_controls() -> Pipeline:
    return Pipeline(
        [
            node(remove_profiles, "profiles", "no_profiles", name="remove_profiles"),
            node(
                create_prompts,
                [
                    "examples",
                    "no_profiles",
                    "base_policy",
                    "response_template",
                    "params:direct_response_format",
                    "params:prompt",
                ],
                ["no_profile_prompts", "no_profile_prompt_figures"],
                name="create_prompts_without_profiles",
            ),
        ]
    )


def create_systems(n_iterations: int) -> Pipeline:
    """Return every system's training and evaluation, for one seed."""
    fine_tuned = [
        _fine_tune("no_profile", "no_profile_prompts", reasoning=False),
        _fine_tune("sft", "direct_prompts", reasoning=False),
        _fine_tune("sft_reasoning", "prompts", reasoning=True),
    ]
    self_trained = [
        _self_train(
            "rest_em", create_iterations(n_iterations), "sft", prompts="direct_prompts", **DIRECT
        ),
        _self_train("rest_pg", create_iterations(n_iterations), "sft_reasoning"),
        _self_train_matched(n_iterations),
    ]
    direct = "direct_prompts"
    evaluated = [
        _evaluate("base", 0, "base_policy", prompts=direct),
        _evaluate("no_profile", 0, prompts="no_profile_prompts", profiles="no_profiles"),
        _evaluate("sft", 0, prompts=direct),
        _evaluate("sft_reasoning", 0),
        _evaluate("random_selection", n_iterations),
    ]
    for t in range(1, n_iterations + 1):
        last = t == n_iterations
        evaluated += [
            _evaluate("rest_em", t, prompts=direct, second_judge=last),
            _evaluate("rest_pg", t, second_judge=last),
        ]
    return sum([*fine_tuned, *self_trained, *evaluated], Pipeline([]))


def _fine_tune(system: str, prompts: str, *, reasoning: bool) -> Pipeline:
    inputs = {"prompts": prompts, "base_policy": "base_policy", "trainer": "trainer"}
    parameters = {name: name for name in ("response_format", "sft", "seed", "retrieval")}
    return Pipeline(
        create_sft(reasoning=reasoning),
        namespace=system,
        inputs=inputs | ({"reasoning_paths": "reasoning_paths"} if reasoning else {}),
        outputs={"policy": f"{system}.policy_0"},
        parameters=parameters | ({} if reasoning else DIRECT),
    )


def _self_train(
    system: str,
    iterations: Pipeline,
    start: str,
    *,
    prompts: str = "prompts",
    response_format: str = "response_format",
) -> Pipeline:
    names = ("expectation", "selection", "maximization", "seed", "retrieval")
    return Pipeline(
        iterations,
        namespace=system,
        inputs={name: name for name in SHARED}
        | {"prompts": prompts, "policy_0": f"{start}.policy_0"},
        parameters={name: name for name in names} | {"response_format": response_format},
    )


def _self_train_matched(n_iterations: int) -> Pipeline:
    """Place the control of ``rest_pg``: the first iteration takes its samples, and none is drawn."""
    draws = n_iterations > 1
    inputs = {name: name for name in SHARED if draws or name not in ("generator", "reward")}
    first = {
        f"first_{n}": f"rest_pg.iteration_1.{n}" for n in ("scored_samples", "sampling_figures")
    }
    matched = {
        f"matched_samples_{t}": f"rest_pg.iteration_{t}.selected_samples"
        for t in range(1, n_iterations + 1)
    }
    return Pipeline(
        create_matched_pipeline(n_iterations),
        namespace="random_selection",
        inputs=inputs | first | matched | {"policy_0": "sft_reasoning.policy_0"},
        parameters={"selection", "maximization", "response_format", "seed", "retrieval"}
        | ({"expectation"} if draws else set()),
    )


def _evaluate(
    system: str,
    t: int,
    policy: str | None = None,
    *,
    prompts: str = "prompts",
    profiles: str = "profiles",
    second_judge: bool = True,  # of the iterations in between only the reward is read
) -> Pipeline:
    judges = ("reward", "second_judge") if second_judge else ("reward",)
    return Pipeline(
        create_system(None if system == "base" else t, second_judge=second_judge),
        namespace=f"{system}.evaluation_{t}",
        inputs={name: name for name in ("generator", *judges)}
        | {
            "policy": policy or f"{system}.policy_{t}",
            "prompts": prompts,
            "profiles": profiles,
        },
        parameters={
            "evaluation": "evaluation",
            "seed": "seed",
            "response_format": "response_format"
            if prompts == "prompts"
            else "direct_response_format",
        },
    )


def _create_comparison(n_iterations: int, seeds: Sequence[int]) -> Pipeline:
    final = {s: n_iterations if s in SELF_TRAINED else 0 for s in SYSTEMS}
    metrics = {
        f"{system}__{seed}": f"seed_{seed}.{system}.evaluation_{t}.metrics"
        for system, t in final.items()
        for seed in seeds
    }
    figures = {
        f"{system}__{seed}": f"seed_{seed}.{system}.evaluation_{t}.sampling_figures"
        for system, t in final.items()
        for seed in seeds
    }
    starts = {"rest_em": "sft", "rest_pg": "sft_reasoning"}
    curves = {
        f"{system}__{t}__{seed}": f"seed_{seed}.{system if t else start}.evaluation_{t}.metrics"
        for system, start in starts.items()
        for t in range(n_iterations + 1)
        for seed in seeds
    }
    scored = {
        system: f"seed_{seeds[0]}.{system}.evaluation_{t}.scored_samples"
        for system, t in final.items()
    }
    settings = {"params": "params:evaluation", "seed": "params:seed"}
    return Pipeline(
        [
            node(create_study_table, settings | metrics, "study", name="create_study_table"),
            node(compare_systems, settings | metrics, "study_contrasts", name="compare_systems"),
            node(
                follow_iterations,
                settings | curves,
                "study_iterations",
                name="follow_iterations",
            ),
            node(
                bind(draw_curves, last=final),
                ["study", "study_iterations"],
                "system_runs",
                name="draw_curves",
            ),
            node(plot_contrasts, "study_contrasts", "study_contrasts_plot", name="plot_contrasts"),
            node(
                plot_iterations,
                "study_iterations",
                "study_iterations_plot",
                name="plot_iterations",
            ),
            node(count_costs, figures, "study_costs", name="count_costs"),
            node(
                create_study_report,
                {
                    "study": "study",
                    "contrasts": "study_contrasts",
                    "costs": "study_costs",
                    "data_statistics": "data_statistics",
                    "reasoning_path_figures": "reasoning_path_figures",
                    "contrasts_plot": "study_contrasts_plot",
                    "iterations_plot": "study_iterations_plot",
                    "examples": "examples",
                    "profiles": "profiles",
                    "seed": "params:seed",
                }
                | {f"scored_{system}": dataset for system, dataset in scored.items()},
                "study_report",
                name="create_study_report",
            ),
            node(
                describe_study,
                ["study", "study_contrasts"],
                "study_description",
                name="describe_study",
            ),
            node(log_study, ["study", "study_contrasts", "study_report"], None, name="log_study"),
        ],
        # one box in kedro-viz, behind one for each seed
        namespace="comparison",
        prefix_datasets_with_namespace=False,
    )
