"""Forgetting a user: what is theirs is found, shown, and removed, in steps that can be done again."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from rest_pg.privacy.forgotten import ForgottenUsers
from rest_pg.privacy.identity import Identity, normal
from rest_pg.privacy.journal import Journal, policies_of, private_files, was_forgotten
from rest_pg.privacy.lineage import Lineage
from rest_pg.privacy.mlflow_traces import Tracking, remove_policy, trackings_of
from rest_pg.privacy.places import Catalogs, Place, read_catalogs, read_tracking
from rest_pg.privacy.plan import Plan, Step
from rest_pg.privacy.register import VIZ_EVENTS, Treatment
from rest_pg.privacy.removal import remove_file, remove_rows
from rest_pg.privacy.scan import scan
from rest_pg.privacy.search import Search
from rest_pg.privacy.sources import SourcesFound, search_sources
from rest_pg.storage.lock import FolderLock
from rest_pg.temporary import sweep_temporary

logger = logging.getLogger(__name__)

LIST = Path("data/forgotten_users.json")
"""The list of forgotten users, where no catalog names another place."""
SHOWN = 60
"""Lines of one list on the screen."""

Say = Callable[[str], None]


@dataclass
class Found:
    """A project, and what of a user is in it."""

    catalogs: Catalogs
    trackings: list[Tracking]
    sources: SourcesFound
    plan: Plan
    problems: list[str] = field(default_factory=list)
    places: dict[Path, Place] = field(default_factory=dict)
    """The files of the catalogs and of the tracking stores."""


def forget(project: Path, user: str, env: str | None, *, yes: bool, retire: bool, say: Say) -> bool:
    """Show what would be removed of a user; remove it if ``yes``.

    Args:
        project: its directory, which must be the working directory.
        user: the id, as it was typed.
        env: narrows it to one environment's data.
        yes: whether to remove, or only to show.
        retire: whether policies that were trained on the user are deleted too.
        say: prints a line.

    Returns:
        Whether all went well: something was found, and nothing was damaged, locked or out of reach.

    Raises:
        ValueError: no user is named, or there is no such environment.
        FolderInUse: a run writes the data.
    """
    if not user.strip():
        raise ValueError("no user is named: kedro forget USER, with the id as the data have it")
    # a dry run only reads, and needs no lock
    with FolderLock(project / "data", "kedro forget") if yes else contextlib.nullcontext():
        if yes:
            sweep_temporary(project / "data")
        journal = Journal.of(project, user)
        found = find(project, user, env)
        _show(project, found, journal, user, retire, say)
        nothing = not (found.plan.steps or found.sources.files or journal.is_resumed)
        nothing = nothing and not (retire and _to_retire(project, user, found.plan))
        if nothing and not was_forgotten(project, user):
            return _say_unknown(found, user, say)
        if not yes:
            say("\nNothing was changed. Run it again with --yes to remove what the table lists.")
            return not found.problems
        return _carry_out(project, user, found, journal, retire, say)


def find(project: Path, user: str, env: str | None) -> Found:
    """Find what of a user is in a project's data, and change nothing."""
    identity = Identity(user)
    addresses, troubles = read_tracking(project, env)
    trackings = trackings_of(project, addresses)
    for tracking in trackings:
        tracking.read()
    runtime: defaultdict[str, set[str]] = defaultdict(set)
    for tracking in trackings:
        for name, values in tracking.parameters().items():
            runtime[name] |= values
    catalogs = read_catalogs(project, env, runtime)
    sources = search_sources(identity, catalogs.sources.values())
    artifacts = [a for tracking in trackings for a in tracking.artifacts()]
    events = project / VIZ_EVENTS
    if events.exists():
        everywhere = set(catalogs.environments)
        artifacts.append(Place(events, "kedro-viz events", Treatment.FIGURES, everywhere))
    lineage = Lineage([*catalogs.places.values(), *artifacts])
    attached = [f for tracking in trackings for f in tracking.attach(lineage)]
    search = Search(identity, lineage, sources)
    plan = search.run([*attached, *(f for f in lineage.files if f.place.path == events)])
    for tracking in trackings:
        tracking.plan(identity, search, plan)
    problems = [*troubles, *catalogs.problems, *sources.problems, *plan.problems]
    problems += [p for tracking in trackings for p in tracking.problems]
    places = {facts.place.path: facts.place for facts in lineage.files}
    return Found(catalogs, trackings, sources, plan, problems, places)


# ---- showing ----


def _show(project: Path, found: Found, journal: Journal, user: str, retire: bool, say: Say) -> None:
    plan = found.plan
    if journal.is_resumed:
        say("An earlier removal was not done to its end; --yes finishes it.\n")
    steps = sorted(plan.steps, key=lambda s: (s.order, s.path, s.key))
    rows = [
        (
            _what(step),
            relative(step.path, project) if step.action in ("rows", "file") else step.entry,
            _environments(step, found.catalogs),
        )
        for step in steps
        if step.action != "vacuum"
    ]
    if rows:
        widths = [max(len(row[i]) for row in [*rows, HEADER]) for i in range(3)]
        for row in (HEADER, *rows):
            say(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(row, widths, strict=True)
                ).rstrip()
            )
    _list(say, "\nPolicies trained on the user:", _policy_lines(project, user, plan, retire))
    _list(
        say,
        "\nSources that hold the user. They are their owner's to edit; they are never changed here, and the "
        "next ingestion skips the user:",
        [f"{relative(f, project)} ({n} records)" for f, n in sorted(found.sources.files.items())],
    )
    _list(say, "\nNot removed, because they can't be told apart:", plan.ambiguous)
    _list(say, "\nDamaged or out of reach:", found.problems)


HEADER = ("what goes", "where", "environments")


def _what(step: Step) -> str:
    if step.action == "rows":
        return f"{len(step.rows)} rows"
    return "the file" if step.action == "file" else f"{len(step.rows)} entries"


def _environments(step: Step, catalogs: Catalogs) -> str:
    every = set(step.environments) >= set(catalogs.environments)
    return "all" if every and len(catalogs.environments) > 1 else ", ".join(step.environments)


def _policy_lines(project: Path, user: str, plan: Plan, retire: bool) -> list[str]:
    certain = _to_retire(project, user, plan)
    lines = [
        f"{relative(path, project)}: {'goes' if retire else 'stays: --policies retire deletes it'}"
        for path in certain
    ]
    unclear = [f.facts.place.path for f in plan.policies if not f.certain]
    return lines + [
        f"{relative(path, project)}: may be; its provenance doesn't say. It stays: delete it yourself"
        for path in unclear
    ]


def _to_retire(project: Path, user: str, plan: Plan) -> list[Path]:
    """Return the policies that were trained on the user, by provenance or by an earlier receipt."""
    earlier = [project / path for path in policies_of(project, user)]
    certain = [f.facts.place.path for f in plan.policies if f.certain]
    return sorted({*certain, *(path for path in earlier if path.is_dir())})


def _list(say: Say, title: str, lines: list[str]) -> None:
    if lines:
        say(title)
        for line in lines[:SHOWN]:
            say(f"  {line}")
        if len(lines) > SHOWN:
            say(f"  … and {len(lines) - SHOWN} more")


def _say_unknown(found: Found, user: str, say: Say) -> bool:
    users = sorted(found.plan.users or set(map(normal, found.sources.users)))
    shown = get_close_matches(normal(user), users, 5) or users[:5]
    near = ", ".join(sorted(shown)) + (", …" if len(users) > len(shown) else "")
    say(
        f"{user!r} is no user of these data: no record names them. Ids are compared whole, as they are "
        f"typed. The data have {len(users)} users{f' ({near})' if users else ''}."
    )
    return False


# ---- removing ----


def _carry_out(
    project: Path, user: str, found: Found, journal: Journal, retire: bool, say: Say
) -> bool:
    """Remove what the plan and the journal list: derived data first, documents last."""
    policies = _to_retire(project, user, found.plan)
    plan = found.plan
    if retire:
        plan.steps += [_retirement(path, found) for path in policies]
    journal.take(plan, [relative(path, project) for path in policies])
    for path in sorted(found.catalogs.lists) or [project / LIST]:
        _add_to_list(path, user)
    removed, problems = _do_all(found, journal, say)
    problems += found.problems
    left = [relative(p, project) for p in policies if p.exists()]
    if not problems:
        counts = Counter[str]()
        for step in journal.steps:
            counts[step.entry or step.action] += max(len(step.rows), 1)
        skipped = _finish(project, journal, dict(counts), left)
    else:
        skipped = []
    say(f"\nremoved {removed} rows, files and entries")
    _say_left(project, found, journal, skipped, say)
    if problems:
        _list(say, "\nNot done. Repair or delete these, then run the same command again:", problems)
    return not problems


def _add_to_list(path: Path, user: str) -> None:
    forgotten = ForgottenUsers(filepath=str(path))
    if user not in forgotten:
        forgotten.add(user)


def _retirement(path: Path, found: Found) -> Step:
    for tracking in found.trackings:
        model = tracking.model_of(path)
        if model is not None:
            key = f"{model.name}/{model.version}"
            return Step(
                "model", tracking.address, 0, [str(path)], entry="registered model", key=key
            )
    return Step("retire", str(path), 1000, entry="policy")


def _do_all(found: Found, journal: Journal, say: Say) -> tuple[int, list[str]]:
    removed, problems = 0, []
    stores = {tracking.address: tracking for tracking in found.trackings}
    for step in journal.steps:
        try:
            removed += _do(step, found.places, stores)
        except (OSError, ValueError) as error:
            problems.append(f"{step.path}: {error}")
            say(f"  not done: {step.path}: {error}")
    return removed, problems


def _do(step: Step, places: dict[Path, Place], stores: dict[str, Tracking]) -> int:
    path = Path(step.path)
    if step.action == "rows":
        place = places.get(path) or Place(path, step.entry, Treatment.RECORDS)
        return remove_rows(place, step.rows, step.before)
    if step.action == "file":
        return int(remove_file(places.get(path) or Place(path, "", Treatment.PAGE)))
    if step.action == "retire":
        known = places.get(path)
        if known is not None and known.store is not None and known.key is not None:
            for name in sorted(known.store.below(known.key), key=lambda n: "complete" not in n):
                known.store.remove(name)
        there = path.is_dir()
        remove_policy(path)
        return int(there)
    if step.path not in stores:
        raise OSError("this tracking store is not configured any more")
    return stores[step.path].do(step)


def _finish(
    project: Path, journal: Journal, counts: dict[str, int], policies: list[str]
) -> list[Path]:
    journal.close(counts, policies)
    return private_files(project)


def _say_left(project: Path, found: Found, journal: Journal, skipped: list[Path], say: Say) -> None:
    """Look for what may be left, and name it."""
    lists = found.catalogs.lists or {project / LIST}
    named = [Path(file) for file in found.sources.files]
    places = [
        p.path
        for p in found.catalogs.places.values()
        if p.treatment not in (Treatment.POLICY, Treatment.CHECKPOINTS)
    ]
    further = [path for source in found.catalogs.sources.values() for path in source.paths]
    lines, unread = scan(
        project,
        [*places, *further],
        journal.signs,
        [*skipped, *private_files(project), *lists, *named],
    )
    inside = [line.removeprefix(f"{project}/") for line in lines]
    _list(
        say,
        "\nThese may still show the user. Nothing was changed in them; notebooks and notes are yours to edit:",
        inside,
    )
    _list(say, "\nNot searched:", unread)


def relative(path: str | Path, project: Path) -> str:
    """Return a path as it is printed."""
    found = Path(path)
    return str(found.relative_to(project)) if found.is_relative_to(project) else str(found)
