"""Rendering prompts: templates are files, user text is only ever a value, budgets are exact."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rest_pg.text import count_words, sentences

SEPARATOR = " | "
"""Between documents in the context (§4.1)."""

LONGEST_TOKEN = 64
"""Characters of a token, at most, so that no more of a huge document is tokenised than could fit: longer
tokens are runs of one character."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt within its budget, and what the budget cost."""

    text: str
    n_tokens: int
    n_documents: int
    n_words_cut: int


def compile_template(source: str) -> Callable[..., str]:
    """Compile a template whose misspelt fields raise; it can't reach Python objects."""
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    render: Callable[..., str] = environment.from_string(source).render
    return render


def markup_escape(tokenizer: Any) -> Callable[[str], str]:
    """Return what breaks a tokenizer's markup in a text: ``<|im_end|>`` becomes ``< |im_end|>``.

    A tokenizer reads its special tokens wherever they stand. A user's text that holds them would end its own
    message, and go on as the system or as the answer.
    """
    added = _special_tokens(tokenizer)
    tokens = sorted(
        {*added.values(), *tokenizer.all_special_tokens} - {""}, key=lambda t: (-len(t), t)
    )
    if not tokens:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, tokens)))
    return lambda text: pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def apply_chat_template(tokenizer: Any, system: str, user: str) -> str:
    """Wrap a message in the model's own chat markup, up to where its answer starts.

    The system message is always ours: some templates put in one of their own otherwise. A template
    that refuses the system role gets it in front of the message; a model without a template gets the
    plain text, after its start token if it has one.
    """
    if not tokenizer.chat_template:
        return f"{tokenizer.bos_token or ''}{system}\n\n{user}\n".lstrip("\n")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    if not system:
        messages = messages[1:]
    try:
        return str(_apply(tokenizer, messages))
    except Exception as error:  # a template raises whatever it likes
        if not system:
            raise ValueError(
                f"the model's chat template refuses a user message: {error}"
            ) from error
    return str(_apply(tokenizer, [{"role": "user", "content": f"{system}\n\n{user}"}]))


def end_of_answer(tokenizer: Any) -> int | None:
    """Return the special token that a chat template writes after an answer; none without one, or a template."""
    if not tokenizer.chat_template:
        return None
    answer = "probe9answer"
    messages = [{"role": "user", "content": "probe"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template raises whatever it likes
        return None
    special = {*tokenizer.all_special_ids, *_special_tokens(tokenizer)}
    ids = tokenizer(text.partition(answer)[2], add_special_tokens=False, verbose=False).input_ids
    return next((token for token in ids if token in special), None)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the added tokens that are markup, by id."""
    return {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def _apply(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Count a complete prompt's tokens, as the generator and the trainer will see it."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def fit_documents(
    tokenizer: Any,
    render: Callable[[str], str],
    documents: Sequence[str],
    max_tokens: int,
    name: str,
) -> FittedPrompt:
    """Render a prompt with as much of the documents as the budget holds, whole sentences first.

    Each document gets an equal share, and what one leaves over goes to the next. Sentences are kept
    from the start; the last resort of a document whose first sentence is too long is a part of it.

    Args:
        tokenizer: the policy's.
        render: makes the complete prompt from the joined documents.
        documents: nearest first.
        max_tokens: of the complete prompt.
        name: the example, for the error.

    Raises:
        ValueError: the prompt does not fit even without documents.
    """
    fixed = count_tokens(tokenizer, render(""))
    room = max_tokens - fixed
    if room < 0:
        raise ValueError(
            f"the prompt of example {name} takes {fixed} tokens without any document, and "
            f"prompt.max_tokens={max_tokens}: raise it, or shorten the template"
        )
    total = sum(count_words(text) for text in documents)
    while True:
        kept = _share_room(tokenizer, documents, room)
        text = render(SEPARATOR.join(kept))
        n_tokens = count_tokens(tokenizer, text)
        if n_tokens <= max_tokens or not kept:
            n_words = sum(count_words(part) for part in kept)
            return FittedPrompt(text, n_tokens, len(kept), total - n_words)
        # tokens merge differently where pieces meet: give back what it cost, and fit again
        room -= n_tokens - max_tokens


def _share_room(tokenizer: Any, documents: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    separator = count_tokens(tokenizer, SEPARATOR)
    for position, document in enumerate(documents):
        share = room // (len(documents) - position) - separator
        part, used = _first_sentences(tokenizer, document, share)
        if part:
            kept.append(part)
            room -= used + separator
    return kept


def _first_sentences(tokenizer: Any, document: str, room: int) -> tuple[str, int]:
    kept: list[str] = []
    used = 0
    for sentence in sentences(document):
        if len(sentence) > room * LONGEST_TOKEN:
            break
        cost = count_tokens(tokenizer, f" {sentence}")
        if used + cost > room:
            break
        kept.append(sentence)
        used += cost
    if kept or room < 8:  # a handful of tokens of a sentence says nothing about its writer
        return " ".join(kept), used
    text = " ".join(document[: room * LONGEST_TOKEN].split())
    offsets = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    ).offset_mapping
    part = text[: offsets[min(room, len(offsets)) - 1][1]].rsplit(" ", 1)[0] if offsets else ""
    return part, count_tokens(tokenizer, f" {part}")
