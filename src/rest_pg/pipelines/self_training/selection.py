"""Which samples of one prompt are kept (§3.3, App. B)."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence

from rest_pg.config import SelectionParams
from rest_pg.metrics import is_degenerate
from rest_pg.records import ScoredSample, SelectedSample


def keep_best(
    scored: Sequence[ScoredSample], params: SelectionParams, seed: int
) -> list[SelectedSample]:
    """Keep the best samples of one prompt, best first.

    Malformed samples are never kept, nor those that the token budget cut off (training on them would
    teach the policy to stop in the middle), nor loops, which rewards of words and meaning don't see. They are
    the first to be rejected: were they left out, nothing would speak against a policy that goes on and on.
    Equal responses count once. The paper doesn't say
    which ten are kept among more: here the best, and among equal rewards those that the seed draws.

    Args:
        scored: all samples of one prompt; malformed ones count in the prompt's mean.
        params: threshold, what it is measured from, cap and weighting.
        seed: of the run.
    """
    if not scored:
        return []
    origin = (
        statistics.fmean(s.score.reward for s in scored)
        if params.relative_to == "prompt_mean"
        else 0.0
    )
    ranked = _distinct(sorted(scored, key=lambda s: (-s.score.reward, _ticket(s, seed))))
    learnable = [s for s in ranked if _can_be_kept(s, params)]
    kept = [s for s in learnable if s.score.reward - origin >= params.threshold]
    kept = kept[: params.max_per_prompt]
    if not kept:
        return []
    selected = [_select(s, s.score.reward if params.weighting == "reward" else 1.0) for s in kept]
    # the worst of what is left, and worse than all that was kept
    worse = [s for s in learnable[len(kept) :] if s.score.reward < kept[-1].score.reward]
    worse += [s for s in ranked if not _can_be_kept(s, params)]
    n_rejected = min(params.rejected_per_prompt, len(worse))
    return selected + [_select(s, -1.0) for s in worse[len(worse) - n_rejected :]]


def keep_any(
    scored: Sequence[ScoredSample],
    n: int,
    params: SelectionParams,
    seed: int,
    n_rejected: int = 0,
) -> list[SelectedSample]:
    """Keep n samples of one prompt at random, among those that :func:`keep_best` could keep.

    As many as ``n_rejected`` others go along as rejected ones, at random among those that it could reject.
    """
    drawn = _distinct(sorted(scored, key=lambda s: _ticket(s, seed)))
    kept = [s for s in drawn if _can_be_kept(s, params)][:n]
    rejected = [s for s in drawn if s not in kept][:n_rejected]
    return [_select(s, 1.0) for s in kept] + [_select(s, -1.0) for s in rejected]


def _select(scored: ScoredSample, weight: float) -> SelectedSample:
    return SelectedSample(sample=scored.sample, reward=scored.score.reward, weight=weight)


def _distinct(scored: Sequence[ScoredSample]) -> list[ScoredSample]:
    """Leave out all but the first of equal responses, and what was cut off before its first word."""
    first: dict[tuple[str, bool], ScoredSample] = {}
    for candidate in scored:
        sample, whole = candidate.sample, _is_whole(candidate)
        text = " ".join((sample.response if whole else sample.text).split())
        if text or sample.finished:
            first.setdefault((text, whole), candidate)
    return list(first.values())


def _is_whole(scored: ScoredSample) -> bool:
    return scored.sample.finished and not scored.sample.malformed


def _can_be_kept(scored: ScoredSample, params: SelectionParams) -> bool:
    loops = params.reject_loops and is_degenerate(scored.sample.response)
    return _is_whole(scored) and not loops


def _ticket(scored: ScoredSample, seed: int) -> str:
    """A draw that depends on the sample, not on its place."""
    key = f"{seed}\0{scored.sample.example_id}\0{scored.sample.sample_index}"
    return hashlib.sha256(key.encode()).hexdigest()
