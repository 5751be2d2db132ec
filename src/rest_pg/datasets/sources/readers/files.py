"""Files as bytes and as text: unpacked if they are gzip files, in the encoding that they are in."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from kedro.io.core import DatasetError

from rest_pg.datasets.sources.readers.encoding import detect_encoding
from rest_pg.datasets.sources.readers.records import broken

logger = logging.getLogger(__name__)

CONTENTS = {
    b"PK\x03\x04": "a zip file or a spreadsheet: unpack it, or save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel file: save the sheet as CSV (UTF-8)",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"%PDF": "a PDF file: export its texts",
}
"""First bytes of files that are no text, whatever their names say."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; a gzip file is unpacked while it is read.

    Raises:
        DatasetError: the gzip file is cut or damaged, also while it is read.
    """
    with path.open("rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        try:
            yield cast("IO[bytes]", gzip.open(file)) if packed else file  # noqa: SIM115
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            remedy = "the gzip file is cut or damaged: copy it again"
            raise broken(path, "", error, remedy) from error


def encoding_of(path: Path) -> str:
    """Return the encoding of a file of text.

    Raises:
        DatasetError: it holds no text.
    """
    with open_bytes(path) as file:
        start = file.read(4)
        for content, name in CONTENTS.items():
            if start.startswith(content):
                raise DatasetError(f"{path} is {name}")
        file.seek(0)
        encoding = detect_encoding(file)
    if not encoding.startswith("utf-8"):
        logger.info("%s is read as %s", path, encoding)
    return encoding


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open a file of text; bytes that are no characters become lone surrogates where they can.

    Raises:
        DatasetError: it ends within a character, or holds what is none in its encoding.
    """
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    errors = "strict" if wide else "surrogateescape"
    try:
        with open_bytes(path) as file:
            yield io.TextIOWrapper(file, encoding, errors=errors, newline="")
    except UnicodeDecodeError as error:
        remedy = "export it again, as UTF-8"
        raise broken(path, "", f"no valid {encoding} ({error.reason})", remedy) from error
