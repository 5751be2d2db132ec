"""Key items: the few words of the reference that a request names."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rest_pg.records import Document
from rest_pg.text import content_words


class KeyItems:
    """Chooses items by term frequency times inverse document frequency over the collection.

    LongLaMP names five items of each abstract. Here they are few, single words, and words that at
    least a quarter of the users (and two) share: a rare name would hand over the answer, where a
    topic word only asks for it.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        """Count in how many documents, and by how many users, each content word is used."""
        self._n_documents = 0
        self._frequency: Counter[str] = Counter()
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        for document in documents:
            self._n_documents += 1
            for word in set(content_words(document.text)):
                self._frequency[word] += 1
                self._users[word].add(document.user_id)

    def choose(self, text: str, n: int) -> Sequence[str]:
        """Return at most n items, the most telling first; equal ones in order of the text."""
        counts = Counter(content_words(text))
        n_users = len(set().union(*self._users.values()))
        needed = max(2, n_users / 4)
        shared = {w: c for w, c in counts.items() if len(self._users[w]) >= needed}
        weights = {
            word: count * math.log(self._n_documents / self._frequency[word])
            for word, count in shared.items()
        }
        return sorted(weights, key=lambda word: -weights[word])[:n]
