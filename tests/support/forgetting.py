"""A small project with a bit of everything that runs leave behind, and whose each row is."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import strategies as st
from kedro.io.core import Version

from rest_pg.backends.embeddings import digest
from rest_pg.checksums import check_seal, mark_complete
from rest_pg.datasets import PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.datasets.base import ORIGIN, origin_of
from rest_pg.freshness import Origin
from rest_pg.privacy.forget import forget
from rest_pg.records import (
    Answer,
    Document,
    Example,
    PolicyCheckpoint,
    Profile,
    Prompt,
    ReasoningPath,
    RetrievedDocument,
    Sample,
    Score,
    ScoredSample,
    SelectedSample,
    TrainingExample,
)
from rest_pg.storage.lock import GUARD
from rest_pg.temporary import TEMPORARY

REPOSITORY = Path(__file__).parents[2]
RAW = "data/01_raw/documents.jsonl"
Owner = str | None


@dataclass
class Written:
    """The users' texts of one data set, by user."""

    users: dict[str, list[str]]
    version: str
    folder: str = "data"


class Project:
    """A project directory, and the owner of each of its rows."""

    def __init__(self, root: Path, environments: Iterable[str] = ()) -> None:
        self.root = root
        self.rows: dict[Path, list[tuple[bytes, Owner]]] = {}
        self.tables: dict[Path, tuple[pd.DataFrame, list[Owner]]] = {}
        self.embeddings: dict[Path, list[str]] = {}
        self.writers: defaultdict[str, set[str]] = defaultdict(set)
        self.pages: dict[Path, set[str]] = {}
        self.policies: dict[Path, set[str]] = {}
        self.origins: dict[Path, Origin] = {}
        (root / "conf" / "local").mkdir(parents=True)
        (root / "conf" / "base").mkdir()
        for name in ("catalog.yml", "mlflow.yml"):
            shutil.copy(REPOSITORY / "conf" / "base" / name, root / "conf" / "base")
        catalog = root / "conf" / "base" / "catalog.yml"
        sotu = "type: rest_pg.datasets.sources.sotu.SotuDataset"  # whose users would take time
        own = f"{{type: rest_pg.datasets.sources.documents.DocumentsDataset, filepath: {RAW}}}"
        catalog.write_text(catalog.read_text().replace(f"\n  {sotu}", f" {own}"))
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        for name in environments:
            shutil.copytree(REPOSITORY / "conf" / name, root / "conf" / name)

    def add_environment(self, name: str, folder: str) -> None:
        """Give an environment the whole of a catalog, in a folder of its own."""
        text = (self.root / "conf/base/catalog.yml").read_text().replace("data/", f"{folder}/")
        (self.root / "conf" / name).mkdir()
        (self.root / "conf" / name / "catalog.yml").write_text(text)

    # ---- what a run leaves ----

    def run(self, written: Written) -> None:
        """Write what a run makes of the users' texts: each file with its checksum and provenance."""
        documents, examples, number = [], [], 0
        for user, texts in written.users.items():
            own = []
            for text in texts:
                number += 1
                own.append(Document(document_id=f"line-{number}", user_id=user, text=text))
            documents += own
            for i, document in enumerate(own):
                rest = tuple(d for d in own if d is not document)
                examples.append(
                    Example(
                        example_id=document.document_id,
                        user_id=user,
                        split=("train", "validation", "test")[i % 3],
                        input=f"Write about {number}.",
                        query=f"query of {document.text}",
                        reference=document.text,
                        profile=rest,
                    )
                )
        raw = Origin("raw", {"users": repr(written.users)})
        v, at = written.version, written.folder
        self._records(at, "02_intermediate/documents.jsonl", v, documents, Document, raw)
        made = self._origin("create_examples", documents=raw)
        self._records(at, "03_primary/examples.jsonl", v, examples, Example, made)
        self._derived(written, examples, made)
        self._embeddings(at, examples)

    def _derived(self, written: Written, examples: Sequence[Example], made: Origin) -> None:
        v, at = written.version, written.folder
        owner = {e.example_id: e.user_id for e in examples}
        profiles = [
            Profile(
                example_id=e.example_id,
                documents=tuple(
                    RetrievedDocument(document_id=d.document_id, text=d.text, similarity=0.5)
                    for d in e.profile[:2]
                ),
            )
            for e in examples
        ]
        profiled = self._origin("retrieve", examples=made)
        self._records(at, "04_feature/profiles.jsonl", v, profiles, Profile, profiled, owner)
        prompts = [
            Prompt(
                example_id=e.example_id,
                user_id=e.user_id,
                split=e.split,
                text=f"Their texts: {' '.join(d.text for d in e.profile)}",
                input=e.input,
                reference=e.reference,
                n_tokens=9,
                n_documents=1,
                n_words_cut=0,
            )
            for e in examples
        ]
        prompted = self._origin("create_prompts", examples=made, profiles=profiled)
        self._records(at, "05_model_input/prompts.jsonl", v, prompts, Prompt, prompted)
        paths = [
            ReasoningPath(example_id=e.example_id, text=f"Likes {e.reference}", copied_ngrams=0.0)
            for e in examples
        ]
        pathed = self._origin("write_paths", profiles=profiled)
        self._records(
            at, "05_model_input/reasoning_paths.jsonl", v, paths, ReasoningPath, pathed, owner
        )
        training = [
            TrainingExample(example_id=e.example_id, prompt="p", completion=e.reference)
            for e in examples
            if e.split == "train"
        ]
        trained = self._origin("create_sft", prompts=prompted, reasoning_paths=pathed)
        self._records(
            at, "05_model_input/sft_examples.jsonl", v, training, TrainingExample, trained, owner
        )
        base = Origin("import")
        self.policy(at, "base_policy", v, base, set())
        learnt = self._origin("train", base_policy=base, sft_examples=trained)
        self.policy(at, "policy_0", v, learnt, {owner[t.example_id] for t in training})
        self._samples(written, examples, prompted, learnt, owner)

    def _samples(
        self,
        written: Written,
        examples: Sequence[Example],
        prompted: Origin,
        learnt: Origin,
        owner: dict[str, str],
    ) -> None:
        v, at = written.version, written.folder
        samples = [
            Sample(
                example_id=e.example_id,
                sample_index=i,
                text=f"sample {i} of {e.reference}",
                reasoning_path="",
                response=f"sample {i} of {e.reference}",
                malformed="",
                finished=True,
                n_tokens=3,
            )
            for e in examples
            for i in range(2)
        ]
        drawn = self._origin("sample", policy_0=learnt, prompts=prompted)
        place = "07_model_output/iteration_1"
        self._records(at, f"{place}/samples.jsonl", v, samples, Sample, drawn, owner)
        scored = [ScoredSample(sample=s, score=Score(reward=0.5)) for s in samples]
        judged = self._origin("score", samples=drawn, prompts=prompted)
        self._records(at, f"{place}/scored_samples.jsonl", v, scored, ScoredSample, judged, owner)
        selected = [SelectedSample(sample=s, reward=0.5, weight=1.0) for s in samples[::2]]
        chosen = self._origin("select", scored_samples=judged)
        self._records(
            at, f"{place}/selected_samples.jsonl", v, selected, SelectedSample, chosen, owner
        )
        metrics = pd.DataFrame(
            {
                "example_id": [s.example_id for s in samples],
                "user_id": [owner[s.example_id] for s in samples],
                "reward": [0.1 * i for i in range(len(samples))],
            }
        )
        measured = self._origin("measure", scored_samples=judged)
        self.table(at, "08_reporting/iteration_1/metrics.parquet", v, metrics, measured)
        texts = "".join(f"<p>{e.user_id}: {e.reference}</p>" for e in examples)
        told = self._origin("report", examples=Origin("none"), metrics=measured)
        self.page(at, "08_reporting/report.html", texts, told, {e.user_id for e in examples})
        self.answers(written, examples)

    def answers(self, written: Written, examples: Sequence[Example]) -> None:
        answers = [
            Answer(
                example_id=f"request-{i}",
                user_id=e.user_id,
                request=e.input,
                response=e.reference,
                reasoning_path="",
                documents=(),
                malformed="",
                finished=True,
            )
            for i, e in enumerate(examples)
        ]
        origin = Origin("answer")
        self._records(
            written.folder,
            "07_model_output/answers.jsonl",
            written.version,
            answers,
            Answer,
            origin,
        )

    def shuffle(self, version: str, *, of: str, profile_of: str) -> list[Path]:
        """Give one example of a user the profile of another, as an experiment does, and go on with it."""
        name = f"{version}/examples.jsonl"
        path = self.root / f"data/03_primary/examples.jsonl/{name}"
        examples = [Example(**json.loads(line)) for line in path.read_text().splitlines()]
        mine = [e for e in examples if e.user_id == of]
        other = next(e for e in examples if e.user_id == profile_of)
        mixed = [replace(mine[0], profile=other.profile), *mine[1:]]
        origin = self._origin("shuffle", examples=self.origins[path])
        place = "07_model_output/shuffled_50"
        made = [self._records("data", f"{place}/examples.jsonl", version, mixed, Example, origin)]
        drawn = self._origin("sample", shuffled_examples=origin)
        samples = [
            Sample(
                example_id=e.example_id,
                sample_index=0,
                text="t",
                reasoning_path="",
                response="t",
                malformed="",
                finished=True,
                n_tokens=1,
            )
            for e in mixed
        ]
        owner = {e.example_id: e.user_id for e in mixed}
        made.append(
            self._records("data", f"{place}/samples.jsonl", version, samples, Sample, drawn, owner)
        )
        for file in made:
            self.rows.pop(file)
        return made

    def copy_to(self, root: Path) -> Project:
        """Return a copy of the project as it is."""
        shutil.copytree(self.root, root, symlinks=True)
        other = Project.__new__(Project)
        other.root, other.writers = root, self.writers
        for name in ("rows", "tables", "embeddings", "pages", "policies", "origins"):
            mine = getattr(self, name)
            setattr(other, name, {root / p.relative_to(self.root): v for p, v in mine.items()})
        return other

    # ---- files ----

    def _origin(self, code: str, **inputs: Origin) -> Origin:
        return Origin(code, {}, {name: origin.digest for name, origin in inputs.items()})

    def _records(
        self,
        folder: str,
        name: str,
        version: str | None,
        records: list[Any],
        kind: type,
        origin: Origin | None,
        owner: dict[str, str] | None = None,
    ) -> Path:
        dataset = RecordsDataset(
            filepath=str(self.root / folder / name),
            record=f"{kind.__module__}.{kind.__name__}",
            version=Version(None, version) if version else None,
        )
        dataset.origin = origin
        dataset.save(records)
        path = Path(dataset._get_load_path())
        lines = path.read_bytes().splitlines(keepends=True)
        owners = [_owner(record, owner or {}) for record in records]
        self.rows[path] = list(zip(lines, owners, strict=True))
        if origin:
            self.origins[path] = origin
        return path

    records = _records

    def table(
        self, folder: str, name: str, version: str | None, frame: pd.DataFrame, origin: Origin
    ) -> Path:
        dataset = SealedDataset(
            filepath=str(self.root / folder / name),
            dataset={"type": "pandas.ParquetDataset"},
            version=Version(None, version) if version else None,
        )
        dataset.origin = origin
        dataset.save(frame)
        path = Path(dataset._get_load_path())
        self.tables[path] = (frame, frame["user_id"].tolist())
        return path

    def page(
        self, folder: str, name: str, text: str, origin: Origin | None, users: set[str]
    ) -> Path:
        path = self.root / folder / name
        dataset = SealedDataset(filepath=str(path), dataset={"type": "text.TextDataset"})
        dataset.origin = origin
        dataset.save(text)
        self.pages[path] = users
        return path

    def _embeddings(self, folder: str, examples: Sequence[Example]) -> None:
        keys: dict[str, None] = {}
        for e in examples:
            # a text has one embedding, of whichever data set its writers are
            self.writers[digest(e.reference)].add(e.user_id)
            for text in (e.query, *(document.text for document in e.profile)):
                keys[digest(text)] = None
                self.writers[digest(text)].add(e.user_id)
        frame = pd.DataFrame({"text": list(keys), "embedding": [[0.1, 0.2]] * len(keys)})
        path = self.root / folder / "04_feature" / "embeddings" / "model" / "all.parquet"
        SealedDataset(filepath=str(path), dataset={"type": "pandas.ParquetDataset"}).save(frame)
        self.embeddings[path] = list(keys)

    def policy(
        self, folder: str, name: str, version: str, origin: Origin | None, users: set[str]
    ) -> Path:
        scratch = self.root / "scratch"
        scratch.mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (scratch / file).write_text(f"{file} a user line-1 of everybody")
        path = self.root / folder / "06_models" / name
        dataset = PolicyDataset(filepath=str(path), version=Version(None, version))
        dataset.origin = origin
        dataset.save(PolicyCheckpoint(scratch))
        found = Path(dataset._get_load_path())
        self.policies[found] = users
        return found

    def policy_without_provenance(self, folder: str, name: str, version: str) -> Path:
        path = self.root / folder / "06_models" / name / version / name
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        mark_complete(path)
        self.policies[path] = set()
        return path

    # ---- what must hold after a user was forgotten ----

    def check_without(self, *forgotten: str) -> None:
        """Everything of others is as it was, and nothing of those users is left."""
        for path, rows in self.rows.items():
            left = path.read_bytes()
            assert left == b"".join(line for line, owner in rows if owner not in forgotten), path
            check_seal(path)
            if path in self.origins and len(left) < sum(len(line) for line, _ in rows):
                renewed = Origin.from_json(origin_of(path).read_text())
                assert self.origins[path].digest in renewed.inputs["forgotten"]
            elif path in self.origins:
                assert Origin.from_json(origin_of(path).read_text()) == self.origins[path]
        for path, (frame, owners) in self.tables.items():
            stay = [owner not in forgotten for owner in owners]
            pd.testing.assert_frame_equal(pd.read_parquet(path), frame[stay].reset_index(drop=True))
            check_seal(path)
        for path, keys in self.embeddings.items():
            wanted = [key for key in keys if not self.writers[key] <= set(forgotten)]
            left = pd.read_parquet(path)["text"].tolist() if path.exists() else []
            assert left == wanted
        for path, users in self.pages.items():
            assert path.exists() == (not users & set(forgotten)), path
        for path in self.policies:
            assert sorted(p.name for p in path.iterdir() if p.name not in (ORIGIN,)), path

    def data(self) -> dict[str, bytes]:
        """Every file below its data, as :meth:`state` has them."""
        return {name: content for name, content in self.state().items() if name.startswith("data")}

    def state(self) -> dict[str, bytes]:
        """Every file but for the list of forgotten users, journals, receipts and the lock's guard."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
            and path.name != GUARD
            and path.suffix != TEMPORARY  # of the killed process, which is this one and lives
            and path.parent.name != "forgetting"
            and "forgotten_users" not in path.name
        }


def _owner(record: Any, owner: dict[str, str]) -> Owner:
    if hasattr(record, "user_id"):
        return record.user_id
    inner = getattr(record, "sample", record)
    return owner.get(inner.example_id)


def write_lines(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def forget_in(
    project: Project, user: str, *, yes: bool = True, retire: bool = False, env: str | None = None
) -> tuple[bool, str]:
    """Forget a user as the command does; return whether all went well, and what was printed."""
    said: list[str] = []
    with contextlib.chdir(project.root):
        done = forget(project.root, user, env, yes=yes, retire=retire, say=said.append)
    return done, "\n".join(said)


class Killed(BaseException):
    """The process is dead: nothing it would still do has an effect."""


class Deaths:
    """Counts what changes the disk, and dies at one of those calls."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def call(self) -> None:
        self.calls += 1
        if self.calls >= self.step:
            raise Killed


@contextmanager
def dying_after(step: int) -> Iterator[Deaths]:
    """Have the process die instead of its n-th change of the disk; all later ones fail as well."""
    deaths = Deaths(step)

    def deadly(function: Any) -> Any:
        def called(*arguments: Any, **named: Any) -> Any:
            deaths.call()
            return function(*arguments, **named)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "write_text"):
            patch.setattr(Path, name, deadly(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        yield deaths


PARTS = ["a", "ann", "anna", "ann b", "1", "11", "0010", "1e3", "true", "line-1", "line", "O'Brien"]
PARTS += ["Smith", "Smith, John", "名前", "名", "query of a", "-x", "No", "null", "café", "*"]
LONG = "the harbour lies in front of seven green hills and nobody has ever counted all of the ships"


@st.composite
def projects(draw: st.DrawFn) -> tuple[dict[str, list[str]], str]:
    """Users whose ids and texts are prefixes, substrings, numbers and single words of each other's."""
    ids = draw(st.lists(st.sampled_from(PARTS), min_size=2, max_size=5, unique=True))
    words = st.sampled_from([*PARTS, *LONG.split()])
    text = st.one_of(
        st.sampled_from([*PARTS, LONG, LONG[:40], LONG[20:]]),
        st.lists(words, min_size=1, max_size=14).map(" ".join),
    )
    users = {user: draw(st.lists(text, min_size=1, max_size=5)) for user in ids}
    return users, draw(st.sampled_from(ids))
