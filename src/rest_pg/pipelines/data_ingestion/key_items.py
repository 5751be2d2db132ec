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
        by_user: defaultdict[str, list[str]] = defaultdict(list)
        for document in documents:
            by_user[document.user_id].append(document.text)
        self._n_documents = sum(map(len, by_user.values()))
        self._n_users = 0
        self._frequency: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        for texts in by_user.values():
            # a user's words at a time: sets of users for each word would not fit into memory
            vocabularies = [set(content_words(text)) for text in texts]
            for vocabulary in vocabularies:
                self._frequency.update(vocabulary)
            used = set().union(*vocabularies)
            self._users.update(used)
            self._n_users += bool(used)

    def choose(self, text: str, n: int) -> Sequence[str]:
        """Return at most n items, the most telling first; equal ones in order of the text."""
        counts = Counter(content_words(text))
        needed = max(2, self._n_users / 4)
        shared = {w: c for w, c in counts.items() if self._users[w] >= needed}
        weights = {
            word: count * math.log(self._n_documents / self._frequency[word])
            for word, count in shared.items()
        }
        return sorted(weights, key=lambda word: -weights[word])[:n]
