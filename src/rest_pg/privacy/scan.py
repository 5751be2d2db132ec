"""What may be left of a user: files of the project that name them, or hold their words. Nothing is changed."""

from __future__ import annotations

import gzip
import os
import re
import sqlite3
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from rest_pg.checksums import COMPLETE, SEAL
from rest_pg.datasets.base import ORIGIN
from rest_pg.privacy.signs import Signs, decode
from rest_pg.temporary import TEMPORARY

KEPT_OUT = (".venv", ".git", "src", "tests", "conf", "docs", "node_modules")
"""Parts of a project, at its top, that are no data."""
BINARY = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npy", ".npz", ".so", ".pyc")
_TAG = re.compile(r"<[^<>]*>")
BLOCK = 8 * 2**20
"""Bytes that are decoded at once."""
OVERLAP = 2000
"""Bytes that two parts of a file share."""
NUMBERS = ("metrics", "latest_metrics")
"""Tables of MLflow's that hold no text."""


def scan(
    project: Path, paths: Iterable[Path], signs: Signs, skipped: Collection[Path]
) -> tuple[list[str], list[str]]:
    """Look for the id as a whole token, and for the user's texts, after decoding escapes.

    Args:
        project: all its files are read, but for its own code and configuration, policies and weights.
        paths: further files, that catalogs name elsewhere.
        signs: the id and the shingles.
        skipped: files that are named already, or name nobody.

    Returns:
        A line for each file that may show the user; and what could not be read.
    """
    found, unread = [], []
    left_out = {path.resolve() for path in skipped}
    for path in sorted({*_files(project), *(p for p in paths if p.is_file())}):
        if path.resolve() in left_out or path.name.endswith((*BINARY, SEAL, ORIGIN, TEMPORARY)):
            continue
        try:
            named, passages = False, 0
            for text in show_texts(path):
                named = named or signs.names(text)
                passages += signs.count(text)
        except (OSError, ValueError, sqlite3.Error, pa.ArrowException, EOFError) as error:
            unread.append(f"{path} can't be searched: {error}")
            continue
        what = ["the id"] * named + [f"words of the user's texts ({passages})"] * bool(passages)
        if what:
            found.append(f"{path}: {' and '.join(what)}")
    return found, unread


def show_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file, without escapes, in parts that no word is cut by."""
    if path.suffix == ".parquet":
        yield from _of_parquet(path)
    elif path.suffix in (".db", ".sqlite", ".sqlite3"):
        yield from _of_database(path)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield decode(name)
                yield decode(_text(archive.read(name)))
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield decode(_text(file.read()))
    elif path.suffix in (".html", ".htm"):
        yield from (_TAG.sub(" ", text) for text in _of_text(path))
    else:
        yield from _of_text(path)


def _files(project: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(project):
        here = Path(directory)
        if COMPLETE in files or "tokenizer.json" in files:
            names[:] = []  # a policy: its vocabulary has everybody's words
            continue
        names[:] = [n for n in names if here != project or n not in KEPT_OUT]
        yield from (here / name for name in files)


def _of_text(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        rest = b""
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            file.seek(0)
            yield decode(file.read().decode("utf-16", "replace"))
            return
        file.seek(0)
        while block := file.read(BLOCK):
            if b"\0" in block[:4096]:
                return  # no text
            part = rest + block
            if len(block) < BLOCK:
                yield decode(_text(part))
                return
            end = max(part.rfind(b" "), part.rfind(b"\n")) + 1 or len(part)
            yield decode(_text(part[:end]))
            # passages that go on in the next part are seen whole there
            rest = part[max(end - OVERLAP, 0) :]
        if rest:
            yield decode(_text(rest))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _of_parquet(path: Path) -> Iterator[str]:
    with parquet.ParquetFile(path) as table:
        names = [f.name for f in table.schema_arrow if not _is_number(f.type)]
        for batch in table.iter_batches(columns=names):
            for column in batch.columns:
                yield decode("\n".join(str(v) for v in column.to_pylist() if v is not None))


def _is_number(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) else kind
    return bool(pa.types.is_floating(inner) or pa.types.is_boolean(inner))


def _of_database(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (name,) in tables.fetchall():
            if name in NUMBERS:
                continue
            quoted = '"' + name.replace('"', '""') + '"'
            for row in connection.execute(f"SELECT * FROM {quoted}"):
                texts = [v for v in row if isinstance(v, str)]
                if texts:
                    yield decode("\n".join(texts))
