"""ROUGE over words of any script: the package's own tokenizer keeps a to z and digits only."""

from __future__ import annotations

from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from rest_pg.text import tokens


class UnicodeTokenizer(Tokenizer):
    """Words of any script, with the English stems of those in ASCII.

    Equal to rouge-score's tokenizer with its stemmer on ASCII text. A word with an accent is one word.
    """

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Return a text's tokens, in order."""
        if text.isascii():
            return list(tokenize.tokenize(text, self._stemmer))
        return [self._stem(token) for token in tokens(text)]

    def _stem(self, token: str) -> str:
        return self._stemmer.stem(token) if len(token) > 3 and token.isascii() else token


def rouge_scorer(names: Sequence[str]) -> RougeScorer:
    """Return a scorer of ``rouge1``, ``rouge2``, ``rougeL`` for texts in any script."""
    return RougeScorer(list(names), tokenizer=UnicodeTokenizer())
