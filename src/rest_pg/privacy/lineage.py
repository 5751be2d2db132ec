"""Which files were made from which, by the provenance beside them; and whose ids a data set's are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rest_pg.privacy.places import Place
from rest_pg.privacy.register import Treatment
from rest_pg.privacy.removal import digests_of, stored_origin

Owner = Literal["own", "other", "mixed", "unknown"]


@dataclass(eq=False)
class Facts:
    """What is known of one file."""

    place: Place
    digests: list[str] = field(default_factory=list)
    """What it is called as an input of other files."""
    inputs: dict[str, str] = field(default_factory=dict)
    has_origin: bool = False
    own: set[str] = field(default_factory=set)
    """Example and document ids that its rows give to the user."""
    others: set[str] = field(default_factory=set)
    """Those that its rows give to other users."""
    shown: set[str] = field(default_factory=set)
    """Examples of others that show a text of the user, such as one with the user's profile."""
    paths: dict[str, str] = field(default_factory=dict)
    """The user's reasoning paths, and those of others, by example, where a file holds paths."""
    rows: list[str] = field(default_factory=list)
    """Digests of the rows to be taken out."""
    ambiguous: list[str] = field(default_factory=list)
    """Ids of rows that may be the user's or another's."""
    problem: str = ""

    @property
    def is_policy(self) -> bool:
        """Whether it is a policy: ids of what it was trained on say nothing of what it wrote."""
        return self.place.treatment is Treatment.POLICY


class Lineage:
    """The files of a project, each with what it was made from."""

    def __init__(self, places: Iterable[Place]) -> None:
        """Read the provenance of each file."""
        self.files: list[Facts] = []
        self._by_digest: defaultdict[str, list[Facts]] = defaultdict(list)
        self._by_version: defaultdict[str, list[Facts]] = defaultdict(list)
        self._parents: dict[int, list[Facts]] = {}
        self._levels: dict[int, list[list[Facts]]] = {}
        for place in places:
            facts = Facts(place)
            origin = stored_origin(place.path)
            if origin is not None:
                facts.has_origin = True
                facts.digests, facts.inputs = digests_of(origin), dict(origin.inputs)
            self.files.append(facts)
            for digest in facts.digests:
                self._by_digest[digest].append(facts)
            if place.version:
                self._by_version[place.version].append(facts)

    def parents(self, facts: Facts) -> list[Facts]:
        """Return what a file was made from, as far as it is there."""
        if id(facts) not in self._parents:
            found = []
            for digest in facts.inputs.values():
                made = [f for f in self._by_digest.get(digest, ()) if f is not facts]
                found += _latest(made, facts.place.version)
            self._parents[id(facts)] = found
        return self._parents[id(facts)]

    def attach(self, facts: Facts, parents: list[Facts]) -> None:
        """Say what a file of the tracking store was made from, as its run does."""
        self._parents[id(facts)] = parents
        self._levels.pop(id(facts), None)
        facts.has_origin = bool(parents)

    def levels(self, facts: Facts) -> list[list[Facts]]:
        """Return a file, then what it was made from, then what that was made from, …

        Policies are left out: what they were trained on says nothing of the data set that they wrote for.
        """
        if id(facts) not in self._levels:
            seen, level, found = {id(facts)}, [facts], []
            while level:
                found.append(level)
                above = {id(p): p for f in level for p in self.parents(f) if not p.is_policy}
                level = [p for key, p in above.items() if key not in seen]
                seen |= above.keys()
            self._levels[id(facts)] = found
        return self._levels[id(facts)]

    def ancestors(self, facts: Facts) -> list[Facts]:
        """Return all that a file was made from."""
        return [file for level in self.levels(facts)[1:] for file in level]

    def in_order(self) -> list[Facts]:
        """Return the files, each after what it was made from."""
        return sorted(self.files, key=lambda f: (len(self.levels(f)), str(f.place.path)))

    def owner(self, facts: Facts, key: str) -> Owner:
        """Say whose an example or a document is, within the data set that a file was made from.

        The nearest file that names the id's user decides. Without one, files of the same run do; and a
        file without any provenance belongs to all the data sets that are there.
        """
        for level in self.levels(facts):
            if (found := _owner(level, key)) != "unknown":
                return found
        if (found := _owner(self.peers(facts), key)) != "unknown":
            return found
        near = (f for f in self.files if f.place.environments & facts.place.environments)
        everywhere = _owner(near, key)
        if facts.has_origin and everywhere == "own":
            return "mixed"  # of a data set that is not there: another user may have had the id
        return everywhere

    def shows(self, facts: Facts, example: str) -> bool:
        """Whether another user's example shows the user, in a file or in what it was made from."""
        return any(example in f.shown for level in self.levels(facts) for f in level)

    def is_made_from_user(self, facts: Facts) -> bool:
        """Whether rows of the user, or rows that show the user, went into a file."""
        return any(f.own or f.rows or f.shown for f in self.ancestors(facts))

    def peers(self, facts: Facts) -> list[Facts]:
        """Return the files of the same version and environment."""
        return [
            f
            for f in self._by_version.get(facts.place.version, ())
            if f.place.environments & facts.place.environments
        ]


def _latest(made: list[Facts], version: str) -> list[Facts]:
    """Of files with one provenance, return the one that a run of a version loaded."""
    if len({f.place.path for f in made}) < 2:
        return made
    same = [f for f in made if f.place.version == version]
    if same:
        return same
    before = [f for f in made if f.place.version and f.place.version < version]
    if not before or not version:
        return made
    newest = max(f.place.version for f in before)
    return [f for f in before if f.place.version == newest]


def _owner(files: Iterable[Facts], key: str) -> Owner:
    own = others = False
    for file in files:
        own, others = own or key in file.own, others or key in file.others
    if own and others:
        return "mixed"
    return "own" if own else "other" if others else "unknown"
