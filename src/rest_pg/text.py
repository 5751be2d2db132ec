"""Words, sentences and n-grams of plain text in any script, for everything that counts them.

A character of a script that is written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) counts as
a word, with the marks on it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import regex

_SIMPLE_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
_THAI = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SYLLABIC = rf"\p{{Hiragana}}\p{{Katakana}}\u30fc\uff70{_THAI}"
_UNSPACED = rf"[[\p{{Han}}{_SYLLABIC}]&&[\p{{L}}\p{{N}}]]"
_MARKS = r"[\p{M}\u200c\u200d]*"  # vowel signs, accents, and the joiners of Persian and of Indian scripts
_UNSPACED_CHARACTER = regex.compile(_UNSPACED, regex.V1)
_NOT_SIMPLE = regex.compile(rf"{_UNSPACED}|[\p{{M}}\u200c\u200d]", regex.V1)


def _token_pattern(characters: str, joiners: str = "") -> str:
    run = rf"(?:[[{characters}]--{_UNSPACED}]{_MARKS})+"
    joined = rf"(?:[{joiners}]{run})*" if joiners else ""
    return rf"{_UNSPACED}\p{{M}}*|{run}{joined}"


_WORD = regex.compile(_token_pattern(r"\p{L}\p{N}", r"'\u2019\-"), regex.V1)
_TOKEN = regex.compile(_token_pattern(r"\p{L}\p{Nd}"), regex.V1)
_SEGMENT = regex.compile(
    rf"[^\s\p{{L}}\p{{N}}]*+{_UNSPACED}\p{{M}}*[^\s\p{{L}}\p{{N}}]*|(?:(?!{_UNSPACED})\S)+",
    regex.V1,
)
"""A counted word with its punctuation, where a text has characters of scripts without spaces."""
_HAN = regex.compile(r"\p{Han}")
_LETTERS = regex.compile(r"[\p{L}\p{M}\u200c\u200d]+")
_COMPOUND = regex.compile(
    rf"(?P<han>[\p{{Han}}&&\p{{L}}]{{2,}})|(?P<whole>[\p{{Katakana}}\u30fc\uff70]{{2,}})"
    rf"|(?P<thai>(?:[[{_THAI}]&&\p{{L}}]\p{{M}}*){{4,}})|{_WORD.pattern}",
    regex.V1,
)
_SENTENCE_END = re.compile(
    r"(?<=[.!?…\u0964\u0965\u061f\u06d4])[\"'\u201d\u2019)\]]*\s+"
    # Chinese and Japanese have no space there
    r"|(?<=[\u3002\uff01\uff1f\uff61])(?![\u300d\u300f\u201d\u2019\uff09\u3002\uff01\uff1f])\s*"
    r"|(?<=[\u3002\uff01\uff1f\uff61][\u300d\u300f\u201d\u2019\uff09])(?![\u300d\u300f\u201d\u2019\uff09])\s*"
)

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
    """Return the words of a text, case-folded and in NFC, without punctuation."""
    folded = fold(text)
    pattern = _SIMPLE_WORD if _NOT_SIMPLE.search(folded) is None else _WORD  # the former is faster
    return [match[0] for match in pattern.finditer(folded)]


def tokens(text: str) -> list[str]:
    """Return the runs of letters and digits of a text, case-folded and in NFC: what ROUGE compares."""
    return [match[0] for match in _TOKEN.finditer(fold(text))]


def fold(text: str) -> str:
    """Return a text in NFC, without differences in case and without soft hyphens."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFC", text).casefold()
    return unicodedata.normalize("NFC", folded).replace("\xad", "")


def word_ends(text: str) -> Iterator[int]:
    """Yield where each word of a text ends, with its punctuation: at white space, or after a character.

    Latin, Cyrillic, Greek, Arabic, Indian and Korean texts have their words between white space.
    """
    split = _UNSPACED_CHARACTER.search(text) is not None
    for chunk in re.finditer(r"\S+", text):
        if split and _UNSPACED_CHARACTER.search(chunk[0]):
            yield from (chunk.start() + match.end() for match in _SEGMENT.finditer(chunk[0]))
        else:
            yield chunk.end()


def count_words(text: str) -> int:
    """Count the words of a text: what white space separates, and each character of scripts without it."""
    if _UNSPACED_CHARACTER.search(text) is None:
        return len(text.split())
    return sum(1 for _ in word_ends(text))


def content_words(text: str) -> list[str]:
    """Return the words of at least four letters that aren't function words or numbers.

    Of scripts without spaces: two Han characters in a row, runs of Katakana, and four characters of
    Thai, Lao, Khmer or Burmese in a row.
    """
    if _UNSPACED_CHARACTER.search(text) is None:
        return [w for w in words(text) if _is_content(w)]
    found: list[str] = []
    for match in _COMPOUND.finditer(fold(text)):
        if match["han"]:
            found.extend(match[0][i : i + 2] for i in range(len(match[0]) - 1))
        elif match["thai"]:
            characters = [m[0] for m in _WORD.finditer(match[0])]
            found.extend("".join(characters[i : i + 4]) for i in range(len(characters) - 3))
        elif match["whole"] or _is_content(match[0]):
            found.append(match[0])
    return found


def _is_content(word: str) -> bool:
    return len(word) > 3 and word not in FUNCTION_WORDS and _LETTERS.fullmatch(word) is not None


def sentences(text: str) -> list[str]:
    """Split a text after its sentence ends; white space inside a sentence becomes one space."""
    parts = (" ".join(part.split()) for part in _SENTENCE_END.split(text.strip()))
    return [part for part in parts if part]


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a list of words, in order.

    Two Han characters count as one word here, and four of the other scripts without spaces: as long as
    words are. So four words in a row are eight Han characters.
    """
    if _UNSPACED_CHARACTER.search("".join(tokens)) is None:
        return zip(*(tokens[i:] for i in range(n)), strict=False)
    return _weighted_ngrams(tokens, [_quarters(token) for token in tokens], 4 * n)


def _quarters(token: str) -> int:
    if _UNSPACED_CHARACTER.match(token) is None:
        return 4
    return 2 if _HAN.match(token) else 1


def _weighted_ngrams(
    tokens: Sequence[str], weights: Sequence[int], least: int
) -> Iterator[tuple[str, ...]]:
    end = total = 0
    for start in range(len(tokens)):
        while end < len(tokens) and total < least:
            total += weights[end]
            end += 1
        if total < least:
            return
        yield tuple(tokens[start:end])
        total -= weights[start]


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
