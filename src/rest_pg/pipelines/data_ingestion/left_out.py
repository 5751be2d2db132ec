"""Which users have no example, which documents training leaves out, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rest_pg.config import ExampleParams
from rest_pg.pipelines.data_ingestion.examples import Draw, is_askable
from rest_pg.records import Example, LeftOut

NAMED = 5
"""Users that a line of the log names at most."""

SHARED = "held-out users have the same texts"


def find_left_out(
    draw: Draw, examples: Sequence[Example], params: ExampleParams
) -> Iterator[LeftOut]:
    """Yield what a finished draw left out, by user."""
    asked = {example.user_id for example in examples}
    for user, own in sorted(draw.by_user.items()):
        if user not in asked:
            reason, parameter = _explain(user, draw, params)
            yield LeftOut(
                user_id=user,
                left_out="user",
                documents=len(own),
                reason=reason,
                parameter=parameter,
            )
        elif "train" in draw.splits[user]:
            n_shared = sum(draw.shared.stands_held_out(document.text) for document in own)
            if n_shared:
                yield LeftOut(
                    user_id=user,
                    left_out="documents",
                    documents=n_shared,
                    reason=SHARED,
                    parameter="",
                )


def _explain(user: str, draw: Draw, params: ExampleParams) -> tuple[str, str]:
    """Return why a user has no example, and the parameter that decides."""
    documents = draw.by_user[user]
    if len(documents) <= params.min_profile_size:
        return "too few documents", f"examples.min_profile_size={params.min_profile_size}"
    if not any(is_askable(document, params) for document in documents):
        longest = f"examples.max_reference_words={params.max_reference_words}"
        return "every document is too long to be asked for", longest
    splits = draw.splits.get(user) or draw.barren.get(user)
    if not splits:
        return "not drawn", f"examples.max_users={params.max_users}"
    if not any(params.examples_per_user.get(split, 0) for split in splits):
        wanted = f"examples.examples_per_user={params.examples_per_user}"
        return "no examples are wanted of the user's split", wanted
    return _explain_draw(user, draw, params)


def _explain_draw(user: str, draw: Draw, params: ExampleParams) -> tuple[str, str]:
    least = f"examples.min_profile_size={params.min_profile_size}"
    if not draw.could_be_asked(user, shared=True):
        older = "older " if params.setting == "temporal" else ""
        return f"too few {older}documents that are no copies of a target", least
    if not draw.could_be_asked(user, shared=False):
        return SHARED, least
    opening = f"examples.opening_words={params.opening_words}"
    return "no words to ask by that other users have too", opening


def summarize(left_out: Sequence[LeftOut]) -> list[str]:
    """Say what was left out, a line for each reason; the first users of each are named."""
    groups: defaultdict[tuple[str, str, str], list[LeftOut]] = defaultdict(list)
    for row in left_out:
        groups[row.left_out, row.reason, row.parameter].append(row)
    lines = []
    for (kind, reason, parameter), rows in groups.items():
        n = len(rows) if kind == "user" else sum(row.documents for row in rows)
        what = f"{n} {'user' if kind == 'user' else 'document'}{'s' * (n != 1)}"
        where = "left out" if kind == "user" else "left out of training"
        decided = f" ({parameter})" if parameter else ""
        names = ", ".join(repr(row.user_id) for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        lines.append(f"{what} {where}: {reason}{decided}: {names}{more}")
    return lines
