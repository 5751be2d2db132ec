"""Training examples as rows of token ids: one per prompt, with all of its completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_pg.config import PreferenceParams, TrainingParams
from rest_pg.records import TrainingExample


def tokenize_rows(
    tokenizer: Any,
    examples: Sequence[TrainingExample],
    max_tokens: int,
    share: bool = True,
    *,
    preference: PreferenceParams | None = None,
) -> list[dict[str, Any]]:
    """Group examples by prompt, as token ids: every finished completion ends with the end token.

    Args:
        tokenizer: the policy's.
        examples: completions of one example share its prompt.
        max_tokens: of a prompt with one completion.
        share: whether a row may hold several completions.
        preference: what of two samples a pair compares; none: all but what the format sets.

    Raises:
        ValueError: an example is longer than ``max_tokens``, or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, so a policy could never stop: set one")
    preference = preference or PreferenceParams(beta=1, likelihood=0)
    spans_of = _in_front if preference.compares == "response" else _spans
    in_pairs = any(example.weight < 0 for example in examples)
    rows: dict[Any, dict[str, Any]] = {}
    for number, example in enumerate(examples):
        prompt = tokenizer(example.prompt, add_special_tokens=False, verbose=False).input_ids
        completion = tokenizer(
            example.completion,
            add_special_tokens=False,
            split_special_tokens=True,  # a user's text that holds an end token doesn't end there
            verbose=False,
            return_offsets_mapping=in_pairs and bool(example.fixed),
        )
        ids = [*completion.input_ids, *([tokenizer.eos_token_id] if example.finished else [])]
        if len(prompt) + len(ids) > max_tokens:
            raise ValueError(
                f"example {example.example_id} takes {len(prompt)} + {len(ids)} tokens, above "
                f"max_tokens={max_tokens}: raise it, or lower prompt.max_tokens or "
                "examples.max_reference_words"
            )
        key = example.example_id if share else number
        empty = {"prompt": prompt, "completions": [], "weights": [], "learnt": True}
        row = rows.setdefault(key, empty)
        row["completions"].append(ids)
        row["weights"].append(float(example.weight))
        if in_pairs:
            spans = spans_of(example)
            fixed = [
                any(start < end_of and end > start_of for start_of, end_of in spans)
                for start, end in completion.get("offset_mapping", [[0, 0]] * len(ids))
            ]
            # to end is the format's too
            row.setdefault("fixed", []).append(fixed[: len(completion.input_ids)])
            row["fixed"][-1] += [True] * (len(ids) - len(completion.input_ids))
    if in_pairs and preference.longest_rejected:
        for row in rows.values():
            _leave_out_ends(row, preference.longest_rejected)
    return list(rows.values())


def _leave_out_ends(row: dict[str, Any], longest: float) -> None:
    """Take a rejected completion's tokens behind ``longest`` times the longest chosen one's out of pairs."""
    weighed = list(zip(row["completions"], row["weights"], strict=True))
    end = int(longest * max((len(own) for own, weight in weighed if weight > 0), default=0))
    for number, (own, weight) in enumerate(weighed):
        if weight < 0:
            row["fixed"][number][end:] = [True] * (len(own) - end)


def _spans(example: TrainingExample) -> list[tuple[int, int]]:
    """Return where the fixed parts first stand in a completion, one behind the other."""
    found, end = [], 0
    for part in example.fixed:
        start = example.completion.find(part, end)
        if start >= 0:  # a rejected sample may lack it
            end = start + len(part)
            found.append((start, end))
    return found


def _in_front(example: TrainingExample) -> list[tuple[int, int]]:
    """Return what stands in front of the response: all of a rejected sample that has none."""
    found = _spans(example)
    if len(found) == len(example.fixed):
        return [(0, end) for _, end in found[-1:]]
    return [(0, len(example.completion))]


def fillers(rows: Sequence[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """Return what is missing for each worker to have as many rows: short ones that teach nothing.

    Others' rows in their place would be learnt twice.
    """
    first = rows[0]
    filler = {
        **first,
        "prompt": first["prompt"][:2],
        "completions": [own[:1] for own in first["completions"][:1]],
        "weights": [0.0],
        "learnt": False,
    }
    if "fixed" in first:
        filler["fixed"] = [[False]]
    return [filler] * (-len(rows) % workers)


def check_weights(examples: Sequence[TrainingExample], params: TrainingParams, share: bool) -> None:
    """Raise ``ValueError`` if pairs and the loss don't go together."""
    rejected = sum(example.weight < 0 for example in examples)
    if rejected and not params.preference:
        raise ValueError(
            f"{rejected} of {len(examples)} training examples are rejected ones, and likelihood "
            "alone can't learn from them: set maximization.preference, or "
            "selection.rejected_per_prompt=0"
        )
    if params.preference and not rejected:
        raise ValueError(
            f"none of {len(examples)} training examples is a rejected one, and preferences need "
            "pairs: raise selection.rejected_per_prompt, or remove maximization.preference"
        )
    if params.preference and not share:
        raise ValueError(
            "maximization.preference needs a prompt's samples in one row, and this policy's "
            "attention can't share them: remove maximization.preference"
        )
