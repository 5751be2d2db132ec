"""What a reader of the report browses: held-out examples, and what each iteration drew and kept."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from rest_pg.pipelines.data_ingestion.examples import random_for
from rest_pg.records import Example, Profile, ScoredSample, SelectedSample
from rest_pg.text import count_words

MOST = 400
"""Examples of a table at most: beyond that a page is slow to open. Which ones, the seed draws."""


def browse_examples(
    examples: Sequence[Example],
    profiles: Sequence[Profile],
    scored: Mapping[str, Sequence[ScoredSample]],
    seed: int,
    *,
    system: str,
    baseline: str,
) -> dict[str, Any]:
    """Lay out held-out examples for reading, best first: by a system's gain over the baseline.

    Args:
        examples: all; those that no system answered are left out.
        profiles: what was retrieved for them.
        scored: each system's samples, in the order of the report.
        seed: of the run; draws :data:`MOST` examples where there are more.
        system: whose gain orders them.
        baseline: what the gain is counted from, and changed words are marked against.

    Returns:
        Plain data: the systems; and for each example its texts, documents, answers and mean rewards.
    """
    answers: defaultdict[str, dict[str, list[ScoredSample]]] = defaultdict(dict)
    for name, samples in scored.items():
        for sample in samples:
            answers[sample.sample.example_id].setdefault(name, []).append(sample)
    found = {profile.example_id: profile for profile in profiles}
    answered = [e for e in examples if e.split != "train" and e.example_id in answers]
    rows = [
        _example(example, found[example.example_id], answers[example.example_id], baseline)
        for example in draw_some(answered, seed)
    ]
    for row in rows:
        rewards = row["rewards"]
        known = {system, baseline} <= rewards.keys()
        gain = rewards[system] - rewards[baseline] if known else 0.0
        row["gain"] = round(gain, 4)
    rows.sort(key=lambda row: -row["gain"])
    return {
        "systems": list(scored),
        "baseline": baseline,
        "system": system,
        "n_examples": len(answered),
        "examples": rows,
    }


def browse_iterations(
    examples: Sequence[Example],
    drawn: Mapping[str, Sequence[ScoredSample]],
    kept: Mapping[str, Sequence[SelectedSample]],
    seed: int,
) -> list[dict[str, Any]]:
    """Lay out what each iteration drew: every prompt's samples, best first, and which were kept.

    Args:
        examples: all.
        drawn: scored samples by iteration.
        kept: those that were selected, by iteration.
        seed: of the run; draws :data:`MOST` prompts where there are more.
    """
    by_id = {example.example_id: example for example in examples}
    tables = []
    for name, samples in drawn.items():
        weights = {(s.sample.example_id, s.sample.sample_index): s.weight for s in kept[name]}
        prompts = [
            _prompt(by_id[example_id], own, weights)
            for example_id, own in _by_example(samples, seed).items()
        ]
        tables.append({"name": name, "prompts": prompts})
    return tables


def draw_some(found: Sequence[Any], seed: int) -> list[Any]:
    """Return all items, or as many as a page can hold, in their order."""
    if len(found) <= MOST:
        return list(found)
    return [found[i] for i in sorted(random_for(seed, "report").sample(range(len(found)), MOST))]


def mark_changes(text: str, against: str) -> list[tuple[str, bool]]:
    """Split a text where it differs from another one: pieces, and whether the other lacks them.

    Words are compared; white space stays as it is, so that the pieces join to the text.
    """
    own, other = _words(text), [word.strip() for word in _words(against)]
    matcher = SequenceMatcher(None, [word.strip() for word in own], other, autojunk=False)
    return [
        ("".join(own[start:end]), tag != "equal")
        for tag, start, end, *_ in matcher.get_opcodes()
        if end > start
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text.lstrip())


def _example(
    example: Example,
    profile: Profile,
    answers: Mapping[str, Sequence[ScoredSample]],
    baseline: str,
) -> dict[str, Any]:
    plain = [s.sample.response for s in answers.get(baseline, ())]
    shown = {}
    for system, samples in answers.items():
        shown[system] = [
            _sample(scored)
            | {
                # beside the baseline's sample of the same index: both were drawn with the same seed
                "text": [(scored.sample.response, False)]
                if system == baseline or i >= len(plain)
                else mark_changes(scored.sample.response, plain[i])
            }
            for i, scored in enumerate(samples)
        ]
    return {
        "split": example.split,
        "user": example.user_id,
        "request": example.input,
        "reference": example.reference,
        "words": count_words(example.reference),
        "documents": [
            {"id": d.document_id, "similarity": round(d.similarity, 3), "text": d.text}
            for d in profile.documents
        ],
        "answers": shown,
        "rewards": {
            system: round(statistics.fmean(s.score.reward for s in samples), 4)
            for system, samples in answers.items()
        },
    }


def _by_example(samples: Sequence[ScoredSample], seed: int) -> dict[str, list[ScoredSample]]:
    groups: defaultdict[str, list[ScoredSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.sample.example_id].append(sample)
    return {example_id: groups[example_id] for example_id in draw_some(list(groups), seed)}


def _prompt(
    example: Example, samples: Sequence[ScoredSample], weights: Mapping[tuple[str, int], float]
) -> dict[str, Any]:
    rewards = [s.score.reward for s in samples]
    rows = [
        _sample(s)
        | {
            "text": [(s.sample.response, False)],
            "weight": weights.get((s.sample.example_id, s.sample.sample_index), 0.0),
        }
        for s in sorted(samples, key=lambda s: -s.score.reward)
    ]
    return {
        "user": example.user_id,
        "request": example.input,
        "reference": example.reference,
        "mean": round(statistics.fmean(rewards), 4),
        "best": round(max(rewards), 4),
        "kept": sum(row["weight"] > 0 for row in rows),
        "samples": rows,
    }


def _sample(scored: ScoredSample) -> dict[str, Any]:
    sample = scored.sample
    return {
        "reward": round(scored.score.reward, 4),
        "words": count_words(sample.response),
        "path": sample.reasoning_path,
        "malformed": sample.malformed,
        "finished": sample.finished,
        # what can't be parsed is shown whole
        "whole": sample.text if sample.malformed else "",
    }
