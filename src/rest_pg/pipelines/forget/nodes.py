"""Nodes that remove a user's texts, and whatever was made of them, from the project's directory."""

from __future__ import annotations

import html
import json
import logging
import mailbox
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pandas as pd

from rest_pg.backends.embeddings import digest
from rest_pg.checksums import COMPLETE, reseal, seal_of
from rest_pg.config import ForgetParams
from rest_pg.pipelines.forget.databases import MLFLOW_DATABASE, remove_traces
from rest_pg.temporary import temporary_name
from rest_pg.text import words

logger = logging.getLogger(__name__)

USER_FIELDS = ("user_id", "user", "name", "reviewerId", "author")
"""Where records, ours and those of raw files, name their user."""
TEXT_FIELDS = ("text", "reference", "output", "abstract", "reviewText", "content", "response")
KEPT_OUT = (".venv", ".git", "src", "conf", "docs", "tests")
"""Parts of a project, at its top, that show no user."""
WRITTEN = ("mlartifacts", "mlruns", ".viz")
"""Beside the data and logs, what runs write: at the project's top, too."""
CLOSED = (".parquet", ".zip", ".gz", ".bz2", ".xz", ".zst")
"""Raw files whose content can't be searched as it lies there."""
TRACE_WORDS = 6
"""So many words in a row of a user's text give it away in a file of another kind."""


@dataclass(slots=True)
class Traces:
    """By what a user is known in files."""

    user_id: str
    example_ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    trained_on: bool = False

    def of_user(self, record: Any) -> bool:
        """Whether a record is the user's, or about one of the user's examples."""
        if not isinstance(record, dict):
            return False
        if any(_same(record.get(name), self.user_id) for name in USER_FIELDS):
            return True
        sample = record.get("sample")
        inner = sample if isinstance(sample, dict) else record
        return inner.get("example_id") in self.example_ids

    def add(self, record: dict[str, Any]) -> None:
        """Note the texts and the example of a record of the user."""
        if "example_id" in record:
            self.example_ids.add(record["example_id"])
            self.trained_on |= record.get("split") == "train"
        documents = [d for d in record.get("profile", ()) if isinstance(d, dict)]
        for part in (record, *documents):
            found = (part.get(name) for name in TEXT_FIELDS)
            self.texts |= {text for text in found if isinstance(text, str) and text}

    def snippets(self) -> set[bytes]:
        """What gives the user away in other files: the id, the examples, the first words of texts."""
        plain = {self.user_id, *self.example_ids}
        for text in self.texts:
            own = text.split()
            plain.add(" ".join(own[:TRACE_WORDS]) if len(own) >= TRACE_WORDS else text)
        forms = {f(s) for s in plain if s for f in (str, html.escape, _as_json, _as_ascii)}
        return {form.encode("utf-8", "surrogatepass") for form in forms}


def list_policies(params: ForgetParams) -> pd.DataFrame:
    """List every version of every policy that was trained on the user's examples, or on samples of them.

    Raises:
        ValueError: no user is named, or nothing of that user is there.
    """
    traces = find_traces(params)
    policies = []
    if traces.trained_on:
        # those that were shipped lie among MLflow's artifacts
        for marker in sorted(path for path in _files(params) if path.name == COMPLETE):
            if "base_policy" not in marker.parts and "checkpoints" not in marker.parts:
                policies.append(str(marker.parent))
    return pd.DataFrame({"policy": policies})


def forget_user(params: ForgetParams, policies_to_retrain: pd.DataFrame) -> pd.DataFrame:
    """Remove a user from every file below the project that a run or its data wrote.

    Records are taken out of their files, which get new checksums; so are the embeddings of the user's
    texts. Work in progress (shards, checkpoints) goes whole, and so do files of other kinds that show the
    user: reports, tables and artifacts, which a run makes anew.

    Args:
        params: whom, and where data and MLflow's artifacts are kept.
        policies_to_retrain: listed before; here only so that it is.

    Returns:
        ``path``, ``done`` (records removed, file removed, left) and ``records`` (how many; 0 for whole
        files). Files that are ``left`` can't be taken apart here, and are to be removed at their source.
    """
    traces = find_traces(params)
    rows: list[tuple[str, str, int]] = []
    data = Path(params.data)
    for unfinished in [*data.glob("07_model_output/*shards"), *data.glob("06_models/checkpoints")]:
        shutil.rmtree(unfinished)
        rows.append((str(unfinished), "directory removed", 0))
    for path in _files(params):
        if path.suffix == ".mbox":
            rows.append((str(path), "records removed", _without_messages(path, traces)))
        elif _holds_lines(path):
            rows.append((str(path), "records removed", _without_records(path, traces)))
        elif path.suffix == ".parquet":
            rows.append((str(path), "records removed", _without_rows(path, traces)))
    snippets = traces.snippets()
    for path in _files(params):
        if path.name == MLFLOW_DATABASE and _shows(path, snippets):
            rows.append((str(path), "records removed", remove_traces(path, snippets)))
        raw = data / "01_raw" in path.parents
        if raw and path.suffix in CLOSED:
            rows.append((str(path), "not searched", 0))
        if path.name.endswith(".safetensors") or not _shows(path, snippets):
            continue
        if raw or path.suffix == ".db" or not _is_written(path, data):
            rows.append((str(path), "left", 0))
        else:
            seal_of(path).unlink(missing_ok=True)
            path.unlink()
            rows.append((str(path), "file removed", 0))
    done = [row for row in rows if row[1] != "records removed" or row[2]]
    return pd.DataFrame(done, columns=["path", "done", "records"])


def log_forgotten(forgotten: pd.DataFrame, policies_to_retrain: pd.DataFrame) -> None:
    """Say what was removed, what is left to do, and which policies know the user still."""
    logger.info(
        "removed %d records, and %d files and directories",
        forgotten["records"].sum(),
        forgotten["done"].isin(["file removed", "directory removed"]).sum(),
    )
    for path in forgotten.loc[forgotten["done"] == "left", "path"]:
        logger.warning("%s still shows the user: remove them there, at the source", path)
    for path in forgotten.loc[forgotten["done"] == "not searched", "path"]:
        logger.warning("%s can't be searched here: if the user is in it, remove them there", path)
    for policy in policies_to_retrain["policy"]:
        logger.warning("%s was trained on the user: delete it, and train it again", policy)


def find_traces(params: ForgetParams) -> Traces:
    """Read every record below the project once, and note what is the user's."""
    if params.user_id in (None, ""):
        raise ValueError("no user is named: add --params user_id=ID")
    traces = Traces(str(params.user_id))
    users: set[str] = set()
    found = False
    for path in _files(params):
        if path.suffix == ".mbox":
            senders = {_sender(message) for message in mailbox.mbox(path)}
            users |= senders
            found |= traces.user_id in senders
        if not _holds_lines(path):
            continue
        for _, record in _records(path):
            if not isinstance(record, dict):
                continue
            users |= {str(record[name]) for name in USER_FIELDS[:2] if record.get(name)}
            if any(_same(record.get(name), traces.user_id) for name in USER_FIELDS):
                traces.add(record)
                found = True
    if not found:
        shown = ", ".join(sorted(users)[:5])
        raise ValueError(
            f"user_id={traces.user_id!r} is in no file below {params.data}: name one of its "
            f"{len(users)} users ({shown}, …)"
        )
    return traces


def _files(params: ForgetParams) -> Iterator[Path]:
    """Every file of the project that a run may have written, and the raw data."""
    root = Path(params.data).resolve().parent
    for directory, names, files in os.walk(root):
        names[:] = sorted(n for n in names if Path(directory) != root or n not in KEPT_OUT)
        for name in sorted(files):
            path = Path(directory, name)
            if not path.is_symlink() and not name.endswith(".sha256"):
                yield path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _is_written(path: Path, data: Path) -> bool:
    """Whether a run wrote a file, and would again: what a person wrote is theirs to change."""
    inside = path.resolve().relative_to(data.resolve().parent)
    return inside.parts[0] in (data.name, *WRITTEN) or path.suffix == ".log"


def _holds_lines(path: Path) -> bool:
    """Whether a file has one JSON object a line."""
    if path.suffix == ".jsonl":
        return True
    if path.suffix != ".json" or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        first = file.readline(2**20).strip()
    return first.startswith(b"{") and first.endswith(b"}")


def _records(path: Path) -> Iterator[tuple[bytes, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield line, json.loads(line)
            except ValueError:  # not ours to judge here
                yield line, None


def _without_records(path: Path, traces: Traces) -> int:
    """Take the user's records out of a file; whoever reads it sees the old or the new one whole."""
    temporary, removed = temporary_name(path), 0
    with temporary.open("wb") as kept:
        for line, record in _records(path):
            if traces.of_user(record):
                removed += 1
            else:
                kept.write(line)
    if removed:
        reseal(temporary, path)
    else:
        temporary.unlink()
    return removed


def _without_rows(path: Path, traces: Traces) -> int:
    """Take the user's rows out of a table: by user, or by the checksum of an embedded text."""
    table = pd.read_parquet(path)
    if "user_id" in table:
        own = table["user_id"].map(lambda user: _same(user, traces.user_id))
    elif {"text", "embedding"} <= set(table):
        own = table["text"].isin({digest(text) for text in traces.texts})
    else:
        return 0
    if own.any():
        temporary = temporary_name(path)
        table[~own].to_parquet(temporary)
        reseal(temporary, path)
    return int(own.sum())


def _without_messages(path: Path, traces: Traces) -> int:
    box = mailbox.mbox(path, create=False)
    own = [key for key, message in box.iteritems() if _sender(message) == traces.user_id]
    for key in own:
        box.remove(key)
    box.flush()
    box.close()
    return len(own)


def _sender(message: Any) -> str:
    return parseaddr(str(message["from"] or ""))[1].lower()


def _shows(path: Path, snippets: set[bytes]) -> bool:
    """Whether a file holds any of the snippets; words may be cut by line ends."""
    content = path.read_bytes()
    if any(snippet in content for snippet in snippets):
        return True
    if path.suffix not in (".html", ".txt", ".log", ".csv", ".md"):
        return False
    joined = " ".join(words(content.decode("utf-8", "replace")))
    wanted = (" ".join(words(snippet.decode("utf-8", "replace"))) for snippet in snippets)
    return any(phrase in joined for phrase in wanted if phrase.count(" ") >= TRACE_WORDS - 1)


def _same(found: Any, user_id: str) -> bool:
    return found is not None and str(found).strip() == user_id


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]
