"""HTML to text, with quotations as ``>`` lines, in linear time."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag
from bs4.element import PageElement, PreformattedString

MAX_TAGS = 100_000
"""More than any message that a person wrote holds; they take a few seconds."""
_LONG_TAG = 2_000
_FIRST_ELEMENTS = 60

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_NO_ELEMENT = re.compile(rf"<[!?][^<>]*>|<[^<>]{{{_LONG_TAG},}}>")
_OPEN = re.compile(r"<(?![a-zA-Z/][^<>]*>)")
_SPACE = re.compile(r"[ \t\r\n\f]+")

_HIDDEN = frozenset({"script", "style", "title", "template"})
_BLOCKS = frozenset(
    "address article blockquote center dd div dl dt footer form h1 h2 h3 h4 h5 h6 header hr li main ol p"
    " pre section table tbody td th thead tr ul".split()
)
# Marks of mail programs. Ids and classes that Outlook renames in quoted pages start with x_.
_QUOTATIONS = frozenset({"yahoo_quoted", "protonmail_quote", "zmail_extra", "gmail_quote"})
_OLDER_BELOW = frozenset(
    "divrplyfwdmsg appendonsend olk_src_body_section mail-editor-reference-message-container"
    " outlookmessageheader moz-forward-container zwchr".split()
)
_NOT_WRITTEN = frozenset(
    "moz-cite-prefix moz-signature gmail_signature gmail_signature_prefix signature"
    " ms-outlook-mobile-signature applemailsignature protonmail_signature_block".split()
)


class UnreadableMessageError(ValueError):
    """A message whose text can't be told."""


def page_text(html: str) -> str:
    """Return the text of a page: a line per block, quotations as lines that start with ``>``.

    The text ends where Outlook and others append the older message. Signatures that a mail program
    marks, and attributions that it marks, are left out.

    Raises:
        UnreadableMessageError: the page has more than ``MAX_TAGS`` tags.
    """
    html = _OPEN.sub("&lt;", _NO_ELEMENT.sub("", _COMMENT.sub("", html)))
    n_tags = html.count("<")
    if n_tags > MAX_TAGS:
        raise UnreadableMessageError(f"its page has {n_tags} tags, and at most {MAX_TAGS} are read")
    return _Lines(BeautifulSoup(html, "html.parser")).text()


class _Lines:
    """Walks a page with a stack of its own: pages may nest deeper than Python's recursion."""

    def __init__(self, soup: BeautifulSoup) -> None:
        self._stack: list[PageElement | str] = [soup]  # elements; and names of those that end
        self._with_blockquote: set[int] = set()
        for quotation in soup.find_all("blockquote"):
            for parent in quotation.parents:
                if id(parent) in self._with_blockquote:
                    break
                self._with_blockquote.add(id(parent))
        self._quoted = self._preformatted = 0
        self._line: list[str] = []
        self._lines: list[str] = []

    def text(self) -> str:
        while self._stack:
            element = self._stack.pop()
            if isinstance(element, str) and not isinstance(element, PageElement):
                self._leave(element)
            elif isinstance(element, Tag):
                names = _names(element)
                if names & _OLDER_BELOW or _is_border(element):
                    break
                self._enter(element, names)
            elif not isinstance(element, PreformattedString):
                data = str(element)
                self._line.append(data if self._preformatted else _SPACE.sub(" ", data))
        self._end_line()
        return "\n".join(self._lines).replace("\xa0", " ").strip()

    def _enter(self, tag: Tag, names: frozenset[str]) -> None:
        if tag.name in _HIDDEN or _is_hidden(tag):
            return
        if tag.name == "br":
            self._end_line(always=True)
        elif tag.name in _BLOCKS:
            self._end_line()
        if names & _NOT_WRITTEN or ("gmail_attr" in names and "--" not in _opening(tag)):
            return
        ending = tag.name if tag.name in _BLOCKS else ""
        if tag.name == "pre":
            self._preformatted += 1
        if (tag.name == "blockquote" and not _is_indentation(tag)) or (
            names & _QUOTATIONS and id(tag) not in self._with_blockquote
        ):
            self._quoted += 1
            ending = ">"
        if ending:
            self._stack.append(ending)
        self._stack.extend(reversed(tag.contents))

    def _leave(self, ending: str) -> None:
        self._end_line()
        if ending == ">":
            self._quoted -= 1
        elif ending == "pre":
            self._preformatted -= 1

    def _end_line(self, always: bool = False) -> None:
        line, self._line = "".join(self._line), []
        if line.strip(" ") or always:
            for part in line.split("\n"):
                stripped = part.rstrip() if self._preformatted else part.strip(" ")
                self._lines.append(f"> {stripped}" if self._quoted else stripped)


def _names(tag: Tag) -> frozenset[str]:
    """Return a tag's id and classes, lower-cased, as they were before Outlook renamed them."""
    names = [str(tag.get("id") or ""), *map(str, tag.get_attribute_list("class"))]
    return frozenset(name.lower().removeprefix("x_") for name in names)


def _style(tag: Tag) -> str:
    return _SPACE.sub("", str(tag.get("style") or "").lower())


def _is_hidden(tag: Tag) -> bool:
    return "display:none" in _style(tag)


def _is_indentation(tag: Tag) -> bool:
    """Say whether a block quotation is a writer's own indentation, as Gmail makes it."""
    style = _style(tag)
    if "type" in tag.attrs or "border-left" in style:
        return False
    return "border:none" in style or style.startswith(("margin:00040px", "margin:0px0px0px40px"))


def _is_border(tag: Tag) -> bool:
    """Say whether Outlook drew a line above an older message here, and wrote its fields below it."""
    if "border-top:" not in _style(tag):
        return False
    labels = [text for text in _texts(tag) if text.rstrip().endswith((":", "："))]
    return len(labels) >= 3


def _opening(tag: Tag) -> str:
    return "".join(_texts(tag))


def _texts(tag: Tag) -> list[str]:
    """Return the texts among a tag's first elements: of nested tags, all would be quadratic."""
    texts: list[str] = []
    stack: list[PageElement] = [tag]
    for _ in range(_FIRST_ELEMENTS):
        if not stack:
            break
        element = stack.pop()
        if isinstance(element, Tag):
            stack.extend(reversed(element.contents[:_FIRST_ELEMENTS]))
        else:
            texts.append(str(element))
    return texts
