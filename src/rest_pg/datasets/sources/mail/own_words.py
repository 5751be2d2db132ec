"""What a sender wrote in a text: no quotations, no older messages, no signature."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mailparser_reply.constants import MAIL_LANGUAGES
from mailparser_reply.parser import EmailMessage

from rest_pg.datasets.sources.mail.headings import FIELDS, SEPARATORS, WROTE

Heading = tuple[int, int, bool]
"""First line and end of what introduces others' words; and whether these may stand without ``>``."""

_QUOTED = re.compile(r"\s*[A-Z]{0,3}[>＞]")
_COLONS = (":", "：", ":*", ": *")
_MARKS = ("-", "_", "=", "*")
_SIGNATURE = re.compile(r"--[ \xa0]?\Z")
_RULE = re.compile(r"\s*[_=-]{5,}\s*\Z")
_EMAIL = re.compile(r"[\w.+'-]+@[\w-]+\.\w+")
_BRACKETED = re.compile(r"[<(\[]\s?(?:mailto:)?[\w.+'-]+@[\w-]+(?:\.[\w-]+)+")
_TIME = re.compile(r"\d{1,2}\s?[:.h時时시]\s?\d{2}|\d{1,2}\s?[ap]\.?m\b", re.IGNORECASE)
_DAY = re.compile(
    r"\d|\b(?:mon|tues|wednes|thurs|fri|satur|sun|yester)day\b|\b(?:mon|diens|donners|frei|sams|sonn)tag\b"
    r"|\bmittwoch\b|\b(?:lun|mar|mercre|jeu|vendre|same)di\b|\bdimanche\b",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"[\s*]*(?:(?:On|At|In article|In message|Quoting|Zitat von|Am|Um|Le|El|Il|In data|Op|Em|No dia|Na"
    r"|W dniu|Dnia|Den|På|Dne|Fecha|Den|Στις|В|Ma|A|Pe|La|Tarihinde)\b"
    r"|\d|在|於|于|\*|\w{2,5}[.,]\s|\w{2,10},? +\d|[^\s<].{0,80}<[^<>\s]*(?:@|\Z))"
)
"""How an attribution's first line starts: a preposition, a date, a weekday, or a name with its address."""
_NAMES = re.compile(r"(?:[^\W\d_a-zа-я][\w.'’-]*,? |von |van |de |der |den |del |da |di |la ){1,4}")
_LIST_FOOTER = re.compile(r"mailing list|listinfo|unsubscribe|google groups", re.IGNORECASE)
_SCRUBBED = re.compile(r"-{10,} next part -{10,}\s*\Z")
_PGP = re.compile(
    r"^-----BEGIN PGP SIGNATURE-----.*?(?:^-----END PGP SIGNATURE-----|\Z)"
    r"|^-----BEGIN PGP SIGNED MESSAGE-----\n(?:\w+: [^\n]*\n){0,5}",
    re.MULTILINE | re.DOTALL,
)
_SENT_FROM = re.compile(
    "(?:"
    + "|".join(
        str(words["sent_from"]) for words in MAIL_LANGUAGES.values() if words.get("sent_from")
    )
    + r"|Von meinem \w+ gesendet|Envoyé de mon|Enviado do meu|Отправлено с|Отправлено из)(?!.*[.!?] ).{0,60}\Z"
)
"""The line that a phone adds. Languages are those of mail-parser-reply, and some more."""

_REPLY = EmailMessage(text="", languages=list(MAIL_LANGUAGES)).HEADER_REGEX
_LIBRARY_CALLS = 50
"""At most so many attributions of a text are looked up by the library, whose expressions may take
milliseconds each; its own languages' are found without it too, if they name an address."""
_MOST_LINES, _LONGEST = 5, 300
"""Of an attribution: lines, and characters."""
_MOST_FIELDS, _MOST_CONTINUED = 12, 60
"""Of a block of header fields; and of the lines that one of them goes over."""


def own_words(text: str) -> str:
    """Keep what the sender wrote.

    Left out are lines that start with ``>``, the attribution above them, and signatures. Older messages without
    ``>`` are left out too: below a separator of mail programs, or below a block of header fields, or
    below an attribution with date, time and address. Lines between quotations and below them are kept.
    """
    text = text.replace("\r\n", "\n").replace("\xa0", " ").replace("\u202f", " ")
    lines = _PGP.sub("", text).splitlines()
    shown = [line.rstrip() for line in lines]
    quoted = [(">" in line or "＞" in line) and _QUOTED.match(line) is not None for line in shown]
    end, left_out = len(lines), set[int]()
    for start, stop, strong in _headings(shown, quoted):
        following = _next_filled(shown, stop)
        if following < len(lines) and quoted[following]:
            left_out.update(range(start, stop))
        elif strong:
            end = start
            break
    gone = [quoted[n] or n in left_out for n in range(end)]
    _mark_additions(lines, shown, gone)
    kept = [line for line, leave_out in zip(shown, gone, strict=False) if not leave_out]
    _drop_sent_from(kept)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _headings(lines: Sequence[str], quoted: Sequence[bool]) -> Iterator[Heading]:
    """Yield what may introduce others' words, in order."""
    done, n_calls = 0, 0
    for number, line in enumerate(lines):
        if number < done or quoted[number] or not line:
            continue
        start, stop, strong = number, number, True
        is_marked, is_introduction = line.lstrip()[:1] in _MARKS, line.endswith(_COLONS)
        if (is_marked or (is_introduction and len(line) > 10)) and SEPARATORS.match(line):
            stop = number + 1
            stop = max(stop, _block_end(lines, _next_filled(lines, stop), needs_sender=False))
        elif is_marked and _RULE.match(line):
            stop = _block_end(lines, _next_filled(lines, number + 1))
        elif kind := _field(line):
            stop = _block_end(lines, number)
            if not stop and kind in ("to", "cc") and (notes := _notes_block(lines, number)):
                start, stop = notes
        if stop <= start and is_introduction:
            n_calls += 1
            found = _attribution(lines, quoted, number, n_calls <= _LIBRARY_CALLS)
            if found:
                start, stop, strong = found
        if stop > start:
            done = stop
            yield start, stop, strong


def _next_filled(lines: Sequence[str], start: int) -> int:
    """Return the next line that isn't empty; three lines on at the latest."""
    for number in range(start, min(start + 3, len(lines))):
        if lines[number]:
            return number
    return min(start + 3, len(lines))


def _field(line: str) -> str | None:
    """Return which header field a line holds, in any language; None if it holds none."""
    name, colon, _ = line[:40].replace("：", ":").partition(":")
    return FIELDS.get(name.strip(" *\t").casefold()) if colon else None


def _block_end(lines: Sequence[str], start: int, needs_sender: bool = True) -> int:
    """Return the end of a block of header fields that starts here; 0 if none does.

    It holds From and two others, one of them a subject, or an address. So a traveller's own
    "From: …, To: …, Date: …" is none.
    """
    if start >= len(lines) or _field(lines[start]) is None:
        return 0
    fields, number, end, n_continued, n_fields = set[str](), start, start, 0, 0
    while number < len(lines) and n_fields < _MOST_FIELDS:
        line = lines[number]
        if kind := _field(line):
            if kind in fields and kind not in ("sent", "cc"):
                break
            fields.add(kind)
            end, n_continued, n_fields = number + 1, 0, n_fields + 1
        elif not line:
            # some programs put an empty line after each field
            if number + 1 >= len(lines) or _field(lines[number + 1]) is None:
                break
        elif (line[0] in " \t" or "@" in line or ";" in line) and n_continued < _MOST_CONTINUED:
            n_continued += 1
            end = number + 1
        else:
            break
        number += 1
    others = fields - {"from"}
    if not needs_sender:
        return end if len(fields) >= 1 else 0
    named = "subject" in fields or any(_EMAIL.search(line[:500]) for line in lines[start:end][:3])
    return end if "from" in fields and len(others) >= 2 and named else 0


def _notes_block(lines: Sequence[str], number: int) -> tuple[int, int] | None:
    """Find Lotus Notes' block: a name, a date, and then To, cc and Subject."""
    if number == 0:
        return None
    kinds = [_field(line) for line in lines[number : number + 6]]
    above = number - 1 if lines[number - 1] else number - 2
    if "subject" not in kinds or above < 0:
        return None
    dated = re.search(r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}", lines[above][:200])
    if not dated or not _TIME.search(lines[above][:200]):
        return None
    named = above > 0 and 0 < len(lines[above - 1]) < 80
    return above - named, number + kinds.index("subject") + 1


def _attribution(
    lines: Sequence[str], quoted: Sequence[bool], last: int, ask_library: bool
) -> Heading | None:
    """Find the attribution that ends with this line: "On …, Ann wrote:", over several lines.

    Quoted lines must follow. Without them a line is one only if it holds date, time, and address, and an
    empty line follows.
    """
    following = _next_filled(lines, last + 1)
    is_quote = following < len(lines) and quoted[following]
    if not is_quote and last + 1 < len(lines) and lines[last + 1]:
        return None
    for first in range(last, max(last - _MOST_LINES, -1), -1):
        if not lines[first] or quoted[first]:
            break
        whole = " ".join(line.strip(" *") for line in lines[first : last + 1])
        if len(whole) > _LONGEST:
            break
        if not _OPENER.match(lines[first][:_LONGEST]):
            continue
        if not is_quote:
            return (first, last + 1, True) if _is_certain(whole, ask_library) else None
        if _DAY.search(whole) or _EMAIL.search(whole):
            in_words = WROTE.search(whole) or _BRACKETED.search(whole)
            if in_words or (ask_library and _library_knows(whole)):
                return first, last + 1, False
    line = lines[last].strip(" *")[:_LONGEST]
    if is_quote and _is_short(line):
        wrapped = last > 0 and ">" in line.partition("<")[0] and "<" in lines[last - 1]
        return last - wrapped, last + 1, False
    return None


def _is_certain(whole: str, ask_library: bool) -> bool:
    if not (
        _BRACKETED.search(whole) and _TIME.search(whole) and re.search(r"\d{4}|\d[./-]\d", whole)
    ):
        return False
    return WROTE.search(whole) is not None or (ask_library and _library_knows(whole))


def _library_knows(whole: str) -> bool:
    found = _REPLY.match(whole)
    return found is not None and found.end() == len(whole)


def _is_short(line: str) -> bool:
    """Say whether a line is an attribution without a date: a name or an address, and "wrote"."""
    verb = WROTE.search(line)
    if verb is None:
        return False
    return bool(_EMAIL.search(line) or _NAMES.fullmatch(line[: verb.start()].strip("* ") + " "))


def _mark_additions(lines: Sequence[str], shown: Sequence[str], gone: list[bool]) -> None:
    """Mark signatures, footers of mailing lists, and what Mailman left in an attachment's place."""
    inside = ""
    for number, line in enumerate(shown[: len(gone)]):
        if gone[number] or (inside == "footer" and not line):
            inside = ""
        elif inside or not line or line.lstrip()[:1] not in _MARKS:
            pass
        elif _SIGNATURE.match(lines[number]):
            inside = "signature" if _is_signature(lines, gone, number) else ""
        elif _RULE.match(line):
            below = " ".join(shown[number + 1 : number + 3])[:500]
            inside = "footer" if _LIST_FOOTER.search(below) else ""
        elif _SCRUBBED.match(line):
            gone[number] = True
            inside = (
                "footer" if "scrubbed" in " ".join(shown[number + 1 : number + 2])[:500] else ""
            )
        gone[number] = gone[number] or bool(inside)


def _is_signature(lines: Sequence[str], gone: Sequence[bool], number: int) -> bool:
    """Say whether "--" starts a signature: with its space always, without it if little follows."""
    if len(lines[number]) > 2:
        return True
    n_filled = 0
    for following in range(number + 1, len(gone)):
        if gone[following]:
            break
        n_filled += bool(lines[following].strip())
        if n_filled > 10:
            return False
    return True


def _drop_sent_from(kept: list[str]) -> None:
    while kept and not kept[-1].strip():
        kept.pop()
    if kept and _SENT_FROM.match(kept[-1].strip()[:120]):
        kept.pop()
