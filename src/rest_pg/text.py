"""Words, sentences and n-grams of plain text, for everything that counts them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019)\]]*\s+")

FUNCTION_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "against",
        "all",
        "also",
        "although",
        "always",
        "am",
        "among",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "away",
        "be",
        "became",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "cannot",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "down",
        "during",
        "each",
        "either",
        "else",
        "even",
        "ever",
        "every",
        "few",
        "first",
        "for",
        "from",
        "further",
        "gave",
        "get",
        "give",
        "given",
        "go",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "hers",
        "herself",
        "him",
        "himself",
        "his",
        "how",
        "however",
        "i",
        "if",
        "in",
        "indeed",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "last",
        "least",
        "less",
        "let",
        "like",
        "made",
        "make",
        "many",
        "may",
        "me",
        "might",
        "more",
        "most",
        "much",
        "must",
        "my",
        "myself",
        "near",
        "nearly",
        "neither",
        "never",
        "no",
        "nor",
        "not",
        "nothing",
        "now",
        "of",
        "off",
        "often",
        "on",
        "once",
        "one",
        "only",
        "or",
        "other",
        "others",
        "otherwise",
        "ought",
        "our",
        "ours",
        "ourselves",
        "out",
        "over",
        "own",
        "part",
        "per",
        "perhaps",
        "quite",
        "rather",
        "said",
        "same",
        "say",
        "second",
        "see",
        "seem",
        "seems",
        "several",
        "shall",
        "she",
        "should",
        "since",
        "so",
        "some",
        "something",
        "still",
        "such",
        "take",
        "than",
        "that",
        "the",
        "their",
        "theirs",
        "them",
        "themselves",
        "then",
        "there",
        "therefore",
        "these",
        "they",
        "thing",
        "things",
        "this",
        "those",
        "though",
        "three",
        "through",
        "thus",
        "to",
        "together",
        "too",
        "toward",
        "towards",
        "two",
        "under",
        "until",
        "unto",
        "up",
        "upon",
        "us",
        "very",
        "was",
        "way",
        "we",
        "well",
        "were",
        "what",
        "whatever",
        "when",
        "whenever",
        "where",
        "whether",
        "which",
        "while",
        "who",
        "whole",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "yet",
        "you",
        "your",
        "yours",
        "yourself",
    ]
)
"""English words that carry grammar rather than content."""


def words(text: str) -> list[str]:
    """Return the words of a text, lower-cased, without punctuation."""
    return [match.lower() for match in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    """Return the words of at least four letters that aren't function words or numbers."""
    return [w for w in words(text) if len(w) > 3 and w not in FUNCTION_WORDS and w.isalpha()]


def sentences(text: str) -> list[str]:
    """Split a text behind its sentence ends; white space inside a sentence becomes one space."""
    parts = (" ".join(part.split()) for part in _SENTENCE_END.split(text.strip()))
    return [part for part in parts if part]


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a list of words, in order."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def copied_share(text: str, source: str, n: int = 8) -> float:
    """Share of a text's n-grams of words that also occur in a source, in [0, 1].

    Eight words in a row are hardly ever the same by chance. A text shorter than n words has none.
    """
    own = list(ngrams(words(text), n))
    known = set(ngrams(words(source), n))
    return sum(gram in known for gram in own) / len(own) if own else 0.0


def text_key(text: str) -> bytes:
    """Return a digest that is the same for texts that differ in white space, case or Unicode form alone."""
    folded = unicodedata.normalize("NFC", text).casefold()
    plain = " ".join(unicodedata.normalize("NFC", folded).split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
