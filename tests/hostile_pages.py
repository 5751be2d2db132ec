"""Both pages, made of records in which everything that a user or a configuration names tries to be more than text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from conftest import document, example

from rest_pg.config import Decoding, EvaluationParams, RetrievalParams
from rest_pg.pipelines.data_ingestion.statistics import describe_data
from rest_pg.pipelines.evaluation.nodes import METRICS, create_results
from rest_pg.pipelines.evaluation.report import create_report
from rest_pg.pipelines.study.nodes import (
    COMPARED,
    compare_systems,
    count_costs,
    create_study_table,
    follow_iterations,
)
from rest_pg.pipelines.study.report import create_study_report, plot_contrasts, plot_iterations
from rest_pg.records import (
    Example,
    Profile,
    RetrievedDocument,
    Sample,
    Score,
    ScoredSample,
    SelectedSample,
)
from rest_pg.times import TIME_COLUMNS, RunTimes, side_by_side

ATTACKS = (
    "<img src=x onerror=run()>&amp;",
    "&lt;img src=https://evil.test/a onerror=run()&gt;",
    "\"'><svg/onload=run()>",
    "</script><script>run()</script>",
    "<!--<script>",
    "]]><!-- -->",
    '<a href="https://evil.test/b">link</a><b>bold</b>',
    "<iframe srcdoc='<script>run()</script>'></iframe>",
    "<link rel=stylesheet href=https://evil.test/c>",
    "<meta http-equiv=refresh content='0;url=https://evil.test/d'>",
    "<base href=https://evil.test/>",
    "javascript:run()",
    "{{ 7 * 7 }}{% raw %}${run()}%{x}",
    "\u2028run()\u2029",
    "\u202eright to left",
    "\\u003cscript\\u003erun()",
)
"""What each field holds, all at once; ``run`` would be seen."""

FIGURES = (
    *("train_reward_mean", "train_reward_kept_mean", "kept_fraction", "prompts_without_kept"),
    *("malformed", "duplicates", "mean_words", "sampling_seconds", "sampling_tokens_per_second"),
    *("training_seconds", "training_tokens_per_second"),
)
PARAMS = EvaluationParams(
    samples_per_prompt=1,
    decoding=Decoding(temperature=0.7, top_p=1, max_new_tokens=8),
    n_bootstrap=100,
)
REWARDS = (0.2, 0.5, 0.4)


def hostile(name: str) -> str:
    """Return what a field of this name holds."""
    return f"{name} {' '.join(ATTACKS)} {name}-end"


def examples() -> list[Example]:
    """A test example of each of several users, more than a table's page shows."""
    return [
        example(
            i,
            example_id=f"{hostile('id')}-{i}",
            user_id=hostile(f"user-{i:02}"),
            split="test",
            input=hostile(f"request-{i:02}"),
            reference=hostile("reference"),
            profile=(document(1, hostile("document"), title=hostile("title"), date="2001"),),
        )
        for i in range(12)
    ]


def profiles(found: list[Example]) -> list[Profile]:
    """One retrieved document each, from a file of a hostile name."""
    name = hostile("file.txt")
    retrieved = RetrievedDocument(document_id=name, text=hostile("document"), similarity=0.5)
    return [Profile(example_id=e.example_id, documents=(retrieved,)) for e in found]


def samples(found: list[Example], gain: float = 0.0) -> list[ScoredSample]:
    """Answers, every third of which can't be parsed."""
    return [
        ScoredSample(
            sample=Sample(
                example_id=e.example_id,
                sample_index=0,
                text=hostile("whole"),
                reasoning_path=hostile("path"),
                response=hostile("response") + (" more" if gain else ""),
                malformed="no_bridge" if i % 3 == 2 else "",
                finished=i % 2 == 0,
                n_tokens=3,
            ),
            score=Score(reward=REWARDS[i % 3] + gain),
        )
        for i, e in enumerate(found)
    ]


def _metrics(found: list[Example], names: tuple[str, ...], gain: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example_id": e.example_id,
            "sample_index": 0,
            "user_id": e.user_id,
            "split": "test",
            "task": hostile("task"),
        }
        | dict.fromkeys(names, 0.1)
        | {"reward": REWARDS[i % 3] + gain}
        for i, e in enumerate(found)
    )


def report(scratch: Path) -> str:
    """The report; its last system has a hostile name too."""
    found = examples()
    system = hostile("iteration_1")
    results = create_results(
        PARAMS,
        7,
        sft=_metrics(found, tuple(METRICS), 0.0),
        iteration_1=_metrics(found, tuple(METRICS), 0.1),
    )
    named = results[results["system"] == "iteration_1"].assign(system=f"{hostile('other')}_2")
    times = side_by_side(
        pd.DataFrame({"node": [hostile("node")], "part": ["sft"], "seconds": [40.0]}),
        pd.DataFrame([[hostile("node"), "sft", 50.0, True]], columns=TIME_COLUMNS),
    )
    times.to_csv(scratch / "estimate_and_time.csv", index=False)
    scored = samples(found, 0.1)
    return create_report(
        pd.concat([results, named], ignore_index=True),
        found,
        profiles(found),
        describe_data(found, RetrievalParams(k=2)).assign(split=hostile("split")),
        {"paths": 3, "words_median": 20, "copied": 0.125},
        7,
        RunTimes(str(scratch)),
        fine_tuning={"seconds": 6.0, "tokens_per_second": 10.0},
        ingestion_counts=pd.DataFrame(
            [
                (hostile("file"), "records", "read", "", "", 3),
                (hostile("file"), "records", "dropped", hostile("reason"), hostile("by"), 1),
            ],
            columns=["file", "unit", "outcome", "reason", "decided_by", "n"],
        ),
        **{
            "scored_sft": samples(found),
            f"scored_{system}": scored,
            "sampling_sft": {"seconds": 2.0, "tokens_per_second": 50.0},
            f"sampling_{system}": {"seconds": 1.0, "tokens_per_second": 9.0},
            f"figures_{hostile('name')}_2": dict.fromkeys(FIGURES, 0.5),
            f"drawn_{system}": scored,
            f"kept_{system}": [
                SelectedSample(sample=s.sample, reward=s.score.reward, weight=1.0)
                for s in scored[::2]
            ],
        },
    )


def study() -> str:
    """The study's page; a system of a hostile name stands beside its own."""
    found = examples()
    systems = {"sft__7": 0.0, f"{hostile('system')}__7": 0.05, "rest_pg__7": 0.1}
    measured = {
        name: _metrics(found, tuple(COMPARED), gain).assign(second_judge=0.2)
        for name, gain in systems.items()
    }
    contrasts = compare_systems(PARAMS, 7, **measured)
    curves = {f"rest_pg__{t}__7": measured["rest_pg__7"] for t in (0, 1)}
    answer = samples(found)
    return create_study_report(
        create_study_table(PARAMS, 7, **measured),
        contrasts,
        count_costs(
            **{
                name: {"samples": 4, "tokens": 200, "seconds": 10.0, "tokens_per_second": 20.0}
                for name in systems
            }
        ),
        describe_data(found, RetrievalParams(k=2)).assign(split=hostile("split")),
        {"paths": 3, "words_median": 20, "copied": 0.0},
        plot_contrasts(contrasts),
        plot_iterations(follow_iterations(PARAMS, 7, **curves)),
        [replace(e) for e in found],
        profiles(found),
        7,
        scored_sft=answer,
        **{f"scored_{hostile('system')}": answer, "scored_rest_pg": samples(found, 0.1)},
    )
