"""What gives a user away in a text: the id as a whole token, and runs of words that only they wrote."""

from __future__ import annotations

import base64
import html
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LENGTH = 8
"""Words of a shingle."""
SHORTEST = 3
"""A text of fewer words can't be told from anybody's."""

_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[\"\\/bfnrt])")
_PLAIN = {"b": " ", "f": " ", "n": "\n", "r": "\r", "t": "\t"}
_FACTORS = np.random.default_rng(20261128).integers(1, 2**63, LENGTH, dtype=np.uint64) * 2 + 1

Shingles = NDArray[np.uint64]


def decode(text: str) -> str:
    """Return a text without the escapes of JSON and HTML, however often it was wrapped."""
    for _ in range(4):
        plain = html.unescape(text) if "&" in text else text
        if "\\" in plain:
            plain = _ESCAPE.sub(_unescape, plain)
        if plain == text:
            break
        text = plain
    # two halves of a character become one
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", whole)


def _unescape(match: re.Match[str]) -> str:
    found = match[1]
    return chr(int(found[1:], 16)) if found[0] == "u" else _PLAIN.get(found, found)


def tokens(text: str) -> list[str]:
    """Return a text's words as they are compared: in NFC and without case."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def shingles(words: list[str], length: int = LENGTH) -> Shingles:
    """Return a number for each run of ``length`` words."""
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    codes = np.fromiter(
        (zlib.crc32(w.encode("utf-8", "surrogatepass")) + 1 for w in words), np.uint64, len(words)
    )
    found = np.full(count, length, np.uint64)
    for place in range(length):
        found += codes[place : place + count] * _FACTORS[place]
    return found


@dataclass
class Signs:
    """A user's id, and the shingles of their texts, by length."""

    user: str
    own: dict[int, Shingles] = field(default_factory=dict)
    _users: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = field(default_factory=dict)
    _known: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(user: str, texts: Iterable[str]) -> Signs:
        """Take the shingles of texts; a text below :data:`LENGTH` words is one."""
        found: dict[int, list[Shingles]] = {}
        for text in texts:
            words = tokens(decode(text))
            if len(words) >= SHORTEST:
                length = min(LENGTH, len(words))
                found.setdefault(length, []).append(shingles(words, length))
        signs = Signs(user)
        for length, parts in found.items():
            signs.own[length] = np.unique(np.concatenate(parts))
            n = len(signs.own[length])
            signs._users[length] = (np.full(n, -1, np.int64), np.zeros(n, np.bool_))
        return signs

    def see(self, user: str, text: str) -> None:
        """Note which shingles another user wrote too."""
        if not self.own:
            return
        number = self._known.setdefault(user, len(self._known))
        words = tokens(decode(text))
        for length, mine in self.own.items():
            seen = np.unique(_places(mine, shingles(words, length)))
            first, common = self._users[length]
            common[seen[(first[seen] >= 0) & (first[seen] != number)]] = True
            first[seen[first[seen] < 0]] = number

    def only(self) -> Signs:
        """Return those that no other user wrote."""
        kept = {n: own[self._users[n][0] < 0] for n, own in self.own.items()}
        return Signs(self.user, {n: own for n, own in kept.items() if len(own)})

    def rare(self) -> Signs:
        """Return those that fewer than two other users wrote: a quotation, and no phrase of everybody's."""
        kept = {n: own[~self._users[n][1]] for n, own in self.own.items()}
        return Signs(self.user, {n: own for n, own in kept.items() if len(own)})

    def count(self, text: str) -> int:
        """Return how many of the shingles a decoded text holds."""
        if not self.own:
            return 0
        words = tokens(text)
        return sum(len(_places(own, shingles(words, n))) for n, own in self.own.items())

    def names(self, text: str) -> bool:
        """Whether a decoded text holds the id as a whole token."""
        wanted = unicodedata.normalize("NFC", self.user.strip())
        return any(_holds(text, form) for form in {wanted, decode(wanted)} if form)

    def to_json(self) -> dict[str, str]:
        """Return the shingles as text: hashes, from which no word can be read."""
        return {str(n): base64.b64encode(own.tobytes()).decode() for n, own in self.own.items()}

    @staticmethod
    def from_json(user: str, value: Mapping[str, str]) -> Signs:
        """Read what :meth:`to_json` returned."""
        own = {
            int(n): np.frombuffer(base64.b64decode(text), np.uint64) for n, text in value.items()
        }
        return Signs(user, own)

    def joined(self, other: Signs) -> Signs:
        """Return the shingles of both."""
        lengths = self.own.keys() | other.own.keys()
        none = np.empty(0, np.uint64)
        return Signs(
            self.user,
            {n: np.union1d(self.own.get(n, none), other.own.get(n, none)) for n in lengths},
        )


def _places(mine: Shingles, found: Shingles) -> NDArray[np.int64]:
    """Return where in a user's sorted shingles those of a text stand."""
    places = np.minimum(np.searchsorted(mine, found), len(mine) - 1)
    hits: NDArray[np.int64] = places[mine[places] == found]
    return hits


def _holds(text: str, wanted: str) -> bool:
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        # an id that begins or ends in a sign is a token wherever it stands
        joined = _joins(text[max(start - 1, 0) : start], wanted[0])
        if not joined and not _joins(wanted[-1], text[end : end + 1]):
            return True
        start = text.find(wanted, start + 1)
    return False


def _joins(left: str, right: str) -> bool:
    return bool(left and right and _WORD.match(left) and _WORD.match(right))
