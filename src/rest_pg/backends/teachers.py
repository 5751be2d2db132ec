"""Teachers: who writes the reasoning paths that the policy first learns from (§3.1, fig. 8)."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedro.utils import load_obj

from rest_pg.backends.models import import_model, load_tokenizer
from rest_pg.backends.protocols import GenerationRequest, Generator
from rest_pg.config import Decoding
from rest_pg.prompts import apply_chat_template, compile_template, fit_documents, markup_escape
from rest_pg.records import Example, PolicyCheckpoint, Profile, ReasoningPath
from rest_pg.text import content_words, copied_share, sentences, words

QUOTED_NGRAM = 8
"""So many words in a row are a quotation."""


class StatisticalTeacher:
    """Facts that can be checked, counted in the retrieved documents: no language model.

    A 135M model writes poor summaries (docs/experiments.md compares both teachers). This one states
    how long the user's sentences are, in whose name they speak, which words they often use, and which
    words the answer needs: those of the request that the reference takes up, in its order, and then
    those of the reference that the user's documents hold too, most used first. The former can be known
    when the policy has to write the path itself; without them a path of often-used words leads a small
    policy away from its request. They are single words, so nothing of the reference is quoted. The facts
    are numbered and the lists short: in long lists a 135M policy repeats one word until its budget ends.
    """

    def __init__(self, n_often: int = 3, n_asked: int = 5, n_likely: int = 2) -> None:
        """Name so many often-used words, words of the request, and likely ones."""
        self._n_often, self._n_asked, self._n_likely = n_often, n_asked, n_likely

    def write(
        self,
        examples: Sequence[Example],
        profiles: Mapping[str, Profile],
        policy: PolicyCheckpoint,
    ) -> list[ReasoningPath]:
        """See :class:`~rest_pg.backends.protocols.Teacher`; the policy isn't used."""
        return [self._path(example, profiles[example.example_id]) for example in examples]

    def _path(self, example: Example, profile: Profile) -> ReasoningPath:
        texts = [document.text for document in profile.documents]
        used = Counter(word for text in texts for word in content_words(text))
        in_reference = Counter(content_words(example.reference))
        named = set(content_words(example.input))
        queried = set(content_words(example.query))
        asked = [w for w in in_reference if w in queried][: self._n_asked]
        likely = sorted(
            (w for w in in_reference if w in used and w not in named),
            key=lambda w: (-in_reference[w] * used[w], w),
        )[: self._n_likely]
        needed = [*asked, *likely]
        often = [w for w, _ in used.most_common() if w not in needed][: self._n_often]
        text = (
            f"1. {describe_sentences(texts)}\n2. {describe_voice(texts)}\n"
            f"3. often used: {', '.join(often)}\n4. needed here: {', '.join(needed or often)}"
        )
        return ReasoningPath(
            example_id=example.example_id,
            text=text,
            copied_ngrams=copied_share(text, example.reference, QUOTED_NGRAM),
        )


def describe_sentences(texts: Sequence[str]) -> str:
    """Say how long the median sentence is: short (below 15 words), medium, or long (from 25)."""
    lengths = [len(words(sentence)) for text in texts for sentence in sentences(text)]
    median = statistics.median(lengths or [0])
    size = "short" if median < 15 else "medium" if median < 25 else "long"
    return f"{size} sentences of about {round(median / 5) * 5 or 5} words"


def describe_voice(texts: Sequence[str]) -> str:
    """Say in whose name the user speaks, by the pronouns used."""
    count = Counter(word for text in texts for word in words(text))
    i = count["i"] + count["my"] + count["me"]
    we = count["we"] + count["our"] + count["us"]
    if i + we < 0.01 * sum(count.values()):
        return "impersonal"
    return "speaks as I" if i > we else "speaks as we"


class LLMTeacher:
    """A language model sums the user up, seeing the reference (the paper's teacher: Gemma 7B-it).

    What it quotes is removed: a line that shares eight words in a row with the reference is dropped.
    A path that loses every line falls back on a statistical one, so that no example is lost.
    """

    def __init__(
        self,
        generator: dict[str, Any],
        template: str,
        decoding: dict[str, Any],
        max_tokens: int,
        system: str = "",
        model: str | None = None,
    ) -> None:
        """Build the generator and read the template.

        Args:
            generator: ``backend`` (dotted path) and ``arguments`` of a Generator.
            template: file with the teacher's prompt.
            decoding: temperature, top_p and max_new_tokens.
            max_tokens: budget of the prompt; the documents are fitted into it.
            system: system message.
            model: a hub id or a directory (the paper: Gemma 7B-it); none: the base policy itself.
        """
        self._model = model
        built = load_obj(generator["backend"])(**generator.get("arguments", {}))
        self._generator: Generator = built
        self._render = compile_template(Path(template).read_text(encoding="utf-8"))
        self._decoding = Decoding(**decoding)
        self._max_tokens, self._system = max_tokens, system

    def write(
        self,
        examples: Sequence[Example],
        profiles: Mapping[str, Profile],
        policy: PolicyCheckpoint,
    ) -> list[ReasoningPath]:
        """See :class:`~rest_pg.backends.protocols.Teacher`."""
        if self._model is None:
            return self._write(examples, profiles, policy)
        teacher = import_model(self._model)
        try:
            return self._write(examples, profiles, teacher)
        finally:
            shutil.rmtree(teacher.path, ignore_errors=True)

    def _write(
        self,
        examples: Sequence[Example],
        profiles: Mapping[str, Profile],
        policy: PolicyCheckpoint,
    ) -> list[ReasoningPath]:
        requests = [
            GenerationRequest(
                example_id=example.example_id,
                prompt=self._prompt(example, profiles[example.example_id], policy),
                seeds=(seed,),
            )
            for seed, example in enumerate(examples)
        ]
        written = self._generator.generate(policy, requests, self._decoding)
        statistical = StatisticalTeacher()
        paths = []
        for example, generation in zip(examples, written, strict=True):
            text = remove_quotations(generation.text, example.reference)
            if not text:
                paths += statistical.write([example], profiles, policy)
                continue
            copied = copied_share(text, example.reference, QUOTED_NGRAM)
            paths.append(
                ReasoningPath(example_id=example.example_id, text=text, copied_ngrams=copied)
            )
        return paths

    def _prompt(self, example: Example, profile: Profile, policy: PolicyCheckpoint) -> str:
        tokenizer = load_tokenizer(policy)
        escape = markup_escape(tokenizer)
        return fit_documents(
            tokenizer,
            lambda context: apply_chat_template(
                tokenizer,
                self._system,
                self._render(
                    instruction=escape(example.input),
                    context=context,
                    reference=escape(example.reference),
                ),
            ),
            [escape(document.text) for document in profile.documents],
            self._max_tokens,
            example.example_id,
        ).text


def remove_quotations(text: str, reference: str) -> str:
    """Drop the lines that share eight words in a row with the reference, and empty ones."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(
        line for line in lines if line and copied_share(line, reference, QUOTED_NGRAM) == 0
    )
