"""Long texts are cut into passages: at paragraph ends, or at sentence ends where those give none."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from rest_pg.config import PassageParams
from rest_pg.text import count_words

TOO_LONG = "passage above the limit, that no paragraph end cuts"
REST = "rest of a long text, below the limit"

_LINE_END = re.compile("\r\n?|[\u2028\u2029\x85]")
_BLANK_LINE = re.compile(r"\n\s*\n")
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"  # Japanese, Chinese
    "\U00020000-\U000323af"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_CLOSING = r"""["'\u201d\u2019»)\]\uff09」』】]*"""
# also of Chinese and Japanese (full stop, question and exclamation mark), Hindi, Arabic and Urdu
_FULL_STOP = r"[\u3002\uff0e\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u1362\u104b]+"
_SENTENCE_END = re.compile(rf"[.!?…]+{_CLOSING}(?=\s)|{_FULL_STOP}{_CLOSING}|\n\s*\n")


def cut_passages(text: str, params: PassageParams) -> tuple[list[str], Counter[str]]:
    """Cut a text at the first paragraph end after every ``min_words`` words.

    Blank lines end paragraphs; where there are none, line ends do. A passage above ``max_words`` (one
    very long paragraph) is left out, and so is a rest below ``min_words``: a passage never starts or ends
    within a paragraph. If this leaves nothing of the text, it is cut at sentence ends instead.

    Returns:
        The passages; and how many were left out, by reason.
    """
    text = _LINE_END.sub("\n", text).strip()
    end = "\n\n" if _BLANK_LINE.search(text) else "\n"
    passages: list[str] = []
    lost: Counter[str] = Counter()
    current: list[str] = []
    size = 0
    for paragraph in _BLANK_LINE.split(text) if end == "\n\n" else text.split("\n"):
        if not paragraph.strip():
            continue
        current.append(paragraph.strip())
        size += count_words(paragraph)
        if size >= params.min_words:
            if size <= params.max_words:
                passages.append(end.join(current))
            else:
                lost[TOO_LONG] += 1
            current, size = [], 0
    if not passages:
        return list(cut_sentences(text, params)), Counter()
    lost[REST] += bool(current)
    return passages, +lost


def cut_sentences(text: str, params: PassageParams) -> Iterator[str]:
    """Cut a text at the first sentence end after every ``min_words`` words, and lose none.

    A sentence above ``max_words`` is cut between words, into equal parts of ``min_words`` at least. A rest
    below ``min_words`` joins the passage before it if that has room.
    """
    spans: list[tuple[int, int, int]] = []
    """Of the passages: start, end, number of words."""
    is_open = False
    for start, end in _sentences(text, params):
        size = count_words(text[start:end])
        if is_open and spans[-1][2] + size <= params.max_words:
            spans[-1] = (spans[-1][0], end, spans[-1][2] + size)
        else:
            spans.append((start, end, size))
        is_open = spans[-1][2] < params.min_words
    if is_open and len(spans) > 1 and spans[-1][2] + spans[-2][2] <= params.max_words:
        (_, end, _), (start, _, _) = spans.pop(), spans.pop()
        spans.append((start, end, 0))
    for start, end, _ in spans:
        yield text[start:end].strip()


def _sentences(text: str, params: PassageParams) -> Iterator[tuple[int, int]]:
    """Yield where sentences start and end; one above the limit is cut into equal parts."""
    start = 0
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    for end in [*ends, len(text)]:
        words = [match.span() for match in _WORD.finditer(text, start, end)]
        start = end
        if not words:
            continue
        n_parts = 1
        if len(words) > params.max_words:
            n_parts = max(len(words) // params.min_words, math.ceil(len(words) / params.max_words))
        bounds = [len(words) * part // n_parts for part in range(n_parts + 1)]
        for first, after in pairwise(bounds):
            yield words[first][0], words[after - 1][1]
