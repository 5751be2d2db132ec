"""What is measured of a response, beside its reward. Shares and F-measures are in [0, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nltk.translate.chrf_score import sentence_chrf
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer

from rest_pg.rouge import rouge_scorer
from rest_pg.text import copied_share, count_words, ngrams, words

LOOP_NGRAM, LOOP_TIMES = 4, 4
"""Four words that come back four times: hardly ever so in the references, always in a loop."""


class _NoSynonyms:
    """WordNet can't be shipped: METEOR then aligns equal words and equal stems only."""

    def synsets(self, word: str) -> Sequence[object]:
        return ()


@lru_cache(maxsize=1)
def _rouge() -> RougeScorer:
    return rouge_scorer(["rouge1", "rouge2", "rougeL"])


def measure_response(response: str, reference: str, documents: Sequence[str]) -> dict[str, float]:
    """Compare a response with what the user wrote.

    Args:
        response: may be empty.
        reference: the user's own text.
        documents: the retrieved documents.

    Returns:
        ``rouge_1``, ``rouge_2``, ``rouge_l`` (F-measures over stems), ``meteor`` (without synonyms),
        ``chrf`` (character n-grams, recall weighs 3 times), ``words``, ``degenerate`` (1 if it loops), ``copied`` (share of its 8-grams found in the
        retrieved documents).
    """
    rouge = _rouge().score(reference, response)
    return {
        "rouge_1": float(rouge["rouge1"].fmeasure),
        "rouge_2": float(rouge["rouge2"].fmeasure),
        "rouge_l": float(rouge["rougeL"].fmeasure),
        "meteor": float(
            single_meteor_score(words(reference), words(response), wordnet=_NoSynonyms())
        ),
        "chrf": _chrf(reference, response),
        "words": float(count_words(response)),
        "degenerate": float(is_degenerate(response)),
        "copied": copied_share(response, "\n".join(documents)),
    }


def _chrf(reference: str, response: str) -> float:
    return (
        float(sentence_chrf(reference, response)) if reference.split() and response.split() else 0.0
    )


def is_degenerate(text: str) -> bool:
    """Say whether a text loops: some four words in a row occur four times or more."""
    counts = Counter(ngrams(words(text), LOOP_NGRAM))
    return max(counts.values(), default=0) >= LOOP_TIMES
