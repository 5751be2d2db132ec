"""A folder per user, a text file per document."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from rest_pg.datasets.sources.readers import RawRecord
from rest_pg.datasets.sources.readers.encoding import detect_encoding

ENDINGS = (".txt", ".text", ".md", ".markdown")
"""Of text files, in any case."""
_SYSTEM_FILES = frozenset(("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"))
_CONTROLS = frozenset(map(chr, {*range(32)} - {9, 10, 11, 12, 13, 27}))
"""Characters that no text file holds."""


def read_folders(root: Path) -> Iterator[RawRecord]:
    """Yield a raw record per file below a directory, in the order of their paths.

    What is no document is yielded as ``left_out``, with the reason. Links are followed, to each folder
    once. Names are compared and kept in NFC: some systems store them decomposed.
    """
    seen: set[str] = set()
    for path, hidden in sorted(_walk(root)):
        place = path.relative_to(root)
        name = unicodedata.normalize("NFC", str(place))
        while name in seen:  # two spellings of one name
            name += "'"
        seen.add(name)
        record: RawRecord = {"source": str(path), "file": str(root), "id": name}
        ending = path.suffix.lower()
        left_out = hidden or (
            "" if ending in ENDINGS else f"file that ends in {ending or 'nothing'}"
        )
        if left_out:
            yield record | {"skipped": left_out}
        elif len(place.parts) == 1:
            yield record | {
                "unreadable": "a file in no user's folder",
                "expected": "a folder per user, with text files in it",
            }
        else:
            user, title = (unicodedata.normalize("NFC", n) for n in (place.parts[0], path.stem))
            yield record | {"user": user, "title": title} | _read(path)


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below a directory; or a folder, with why it isn't entered."""
    entered: set[str] = set()
    for directory, folders, files in os.walk(root, followlinks=True):
        place = Path(directory)
        for folder in sorted(folders, key=lambda name: ((place / name).is_symlink(), name)):
            target = os.path.realpath(place / folder)
            left_out = "hidden folder" if _is_hidden(folder) else ""
            if not left_out and target in entered | {os.path.realpath(root)}:
                left_out = "folder that a link reaches a second time"
            if left_out:
                folders.remove(folder)
                yield place / folder, left_out
            entered.add(target)
        folders.sort()
        for file in files:
            path = place / file
            hidden = "hidden file" if _is_hidden(file) else ""
            yield path, hidden or ("" if path.is_file() else "broken link, or no regular file")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name.endswith("~") or name.lower() in _SYSTEM_FILES


def _read(path: Path) -> RawRecord:
    expected = {"expected": "a text file"}
    try:
        content = path.read_bytes()
    except OSError as error:
        return {"unreadable": str(error), **expected}
    encoding = detect_encoding(io.BytesIO(content))
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        return {"unreadable": str(error), **expected}
    if not _CONTROLS.isdisjoint(text):
        return {"unreadable": "control characters, as in a file that is no text", **expected}
    return {"text": text}
