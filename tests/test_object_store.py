"""An object store as fsspec's memory filesystem: the same calls as S3's, without a network."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import build_policy, document
from kedro.io.core import DatasetError, Version

from rest_pg import object_store
from rest_pg.checksums import COMPLETE, policy_fingerprint
from rest_pg.datasets import PolicyDataset, RecordsDataset, SealedDataset
from rest_pg.datasets.policy import at_hand
from rest_pg.freshness import Origin
from rest_pg.object_store import open_store, roots_of
from rest_pg.privacy.forget import forget
from rest_pg.records import PolicyCheckpoint
from rest_pg.runtime.session import RunParameters

DOCUMENT = "rest_pg.records.Document"
ORIGIN = Origin("code", {"k": 1}, {})


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        RunParameters, "project", None
    )  # of a session that another file's tests had
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return memory


def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing is copied yet."""
    place = tmp_path / "another"
    place.mkdir()
    monkeypatch.chdir(place)


def records(version: str | None = "v1") -> RecordsDataset:
    kept = RecordsDataset(
        filepath="memory://bucket/documents.jsonl",
        record=DOCUMENT,
        version=Version(version, version),
    )
    kept.origin = ORIGIN
    return kept


def test_records_are_read_on_another_machine(store, tmp_path, monkeypatch) -> None:
    assert not records().exists()
    records().save([document(1, "one")])
    assert sorted(path.rpartition("/")[2] for path in store.find("/bucket")) == [
        "documents.jsonl",
        "documents.jsonl.origin.json",
        "documents.jsonl.sha256",
    ]
    another_machine(tmp_path, monkeypatch)
    found = records(None)  # the newest version
    assert found.exists()
    assert found.stored_origin() == ORIGIN
    assert found.load() == [document(1, "one")]
    shown = found.preview()
    assert dict(zip(shown["columns"], shown["data"][0], strict=True))["text"] == "one"
    assert found._describe()["filepath"] == "memory://bucket/documents.jsonl"
    changed = records()
    changed.origin = Origin("other code", {"k": 1}, {})
    assert not changed.exists()


def test_a_copy_is_read_while_it_is_the_store_s(store, monkeypatch) -> None:
    fetched: list[str] = []
    get = type(store).get_file
    monkeypatch.setattr(
        type(store),
        "get_file",
        lambda self, path, to, **k: (fetched.append(path), get(self, path, to, **k)),
    )
    records().save([document(1, "one")])
    assert records().load() == [document(1, "one")]
    assert not any(path.endswith(".jsonl") for path in fetched)
    # an unversioned one is replaced from elsewhere
    plain = {"filepath": "memory://bucket/table.json", "dataset": {"type": "json.JSONDataset"}}
    SealedDataset(**plain).save({"a": 1})
    copy = Path("data/.objects/memory/bucket/table.json")
    mine = copy.read_bytes()
    SealedDataset(**plain).save({"a": 2})
    copy.write_bytes(mine)  # as a machine that saw the first version only; damage is no different
    assert SealedDataset(**plain).load() == {"a": 2}


def test_a_damaged_object_is_named_and_counts_as_missing(store, tmp_path, monkeypatch) -> None:
    records().save([document(1, "one")])
    path = "/bucket/documents.jsonl/v1/documents.jsonl"
    store.pipe_file(path, store.cat_file(path).replace(b"one", b"two"))
    another_machine(tmp_path, monkeypatch)
    assert not records().exists()
    with pytest.raises(DatasetError, match="is damaged"):
        records().load()


def test_an_interrupted_save_leaves_the_version_before(store, monkeypatch) -> None:
    records("v1").save([document(1, "one")])
    put = type(store).put_file

    def fail(self: Any, copy: str, path: str, **others: Any) -> None:
        if path.endswith(".jsonl"):
            raise OSError("the connection is lost")
        put(self, copy, path, **others)

    with monkeypatch.context() as broken:
        broken.setattr(type(store), "put_file", fail)
        with pytest.raises(DatasetError, match="connection is lost"):
            records("v2").save([document(2, "two")])
    assert records(None).load() == [document(1, "one")]


def policy_dataset(version: str | None = "v1") -> PolicyDataset:
    return PolicyDataset(
        filepath="memory://bucket/models/policy_1", version=Version(version, version)
    )


def test_a_policy_is_fetched_once_and_checked(store, tmp_path, monkeypatch) -> None:
    build_policy(tmp_path / "made")
    policy_dataset().save(PolicyCheckpoint(tmp_path / "made"))
    mine = policy_dataset().load()
    assert mine.path.is_dir()
    assert mine.address == "memory://bucket/models/policy_1/v1/policy_1"
    another_machine(tmp_path, monkeypatch)
    theirs = at_hand(replace(mine, path=Path("not/here")))
    assert theirs.path != mine.path
    assert policy_fingerprint(theirs) == policy_fingerprint(mine)
    assert at_hand(mine) is mine
    assert policy_dataset(None).exists()
    weights = "/bucket/models/policy_1/v1/policy_1/model.safetensors"
    store.pipe_file(weights, store.cat_file(weights)[:-1] + b"x")
    assert policy_dataset().exists()  # what was fetched is whole
    third = tmp_path / "third"
    third.mkdir()
    monkeypatch.chdir(third)
    assert not policy_dataset().exists()
    with pytest.raises(DatasetError, match="anew"):
        policy_dataset().load()


def test_a_copy_of_the_policy_before_is_never_taken_for_the_newest(
    store, tmp_path, monkeypatch
) -> None:
    """Without versions a machine's copy may be whole, and another policy than the store's."""
    place = PolicyDataset(filepath="memory://bucket/models/policy_1")
    place.save(build_policy(tmp_path / "made", seed=1))
    before = place.load()
    shutil.copytree("data", tmp_path / "another" / "data")
    place.save(build_policy(tmp_path / "made", seed=2))
    mine = place.load()
    monkeypatch.chdir(tmp_path / "another")
    stale = replace(mine, path=Path("data") / before.path.relative_to(tmp_path / "data"))
    assert policy_fingerprint(stale) == before.fingerprint != mine.fingerprint
    theirs = at_hand(stale)
    assert policy_fingerprint(theirs) == mine.fingerprint
    with pytest.raises(DatasetError, match="is another policy than"):
        at_hand(replace(before, path=Path("not/here")))


def test_a_policy_that_was_not_put_to_the_end_is_no_version(store, tmp_path, monkeypatch) -> None:
    for version in ("v1", "v2"):
        build_policy(tmp_path / "made", seed=int(version[1]))
        policy_dataset(version).save(PolicyCheckpoint(tmp_path / "made"))
    store.rm_file(f"/bucket/models/policy_1/v2/policy_1/{COMPLETE}")
    another_machine(tmp_path, monkeypatch)
    assert "v1" in str(policy_dataset(None).load().path)


def test_a_marker_that_names_other_places_reaches_nothing(store, tmp_path, monkeypatch) -> None:
    store.pipe_file(
        f"/bucket/models/policy_1/v1/policy_1/{COMPLETE}",
        b'{"files": {"../../../../../../evil": {"bytes": 1, "sha256": "x"}}}',
    )
    store.pipe_file("/evil", b"x")
    store.pipe_file("/bucket/evil", b"x")
    assert not policy_dataset().exists()
    assert not list(tmp_path.rglob("evil"))


def test_a_store_without_its_package_is_named(monkeypatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(object_store.fsspec, "get_filesystem_class", missing)
    with pytest.raises(DatasetError, match=r"s3://bucket/x.*Install s3fs"):
        open_store("s3://bucket/x", {})
    assert open_store("data/x.jsonl", {}) == (None, "data/x.jsonl")
    assert open_store("file:///data/x.jsonl", {}) == (None, "/data/x.jsonl")


def test_credentials_are_shown_nowhere(store) -> None:
    kept = RecordsDataset(
        filepath="memory://bucket/documents.jsonl",
        record=DOCUMENT,
        credentials={"secret": "hush"},
    )
    assert "hush" not in str(kept)
    assert "hush" not in repr(kept._store)
    assert "hush" not in str(kept._describe())


def test_roots_are_in_front_of_names_in_braces() -> None:
    entries = {
        "documents": {"filepath": "memory://bucket/documents.jsonl"},
        "{t}.samples": {"filepath": "memory://bucket/out/{t}/samples.jsonl"},
        "table": {"dataset": {"filepath": "memory://bucket/out/table.csv"}},
        "here": {"filepath": "data/x.jsonl"},
        "backend": {"arguments": {"directory": "data/x"}},
    }
    assert sorted(root.address for root in roots_of(entries)) == [
        "memory://bucket/documents.jsonl",
        "memory://bucket/out",
        "memory://bucket/out/table.csv",
    ]


def test_who_is_forgotten_is_forgotten_in_the_store(store, tmp_path, monkeypatch) -> None:
    texts = [
        "the harbour is open to every ship that comes",
        "the hills are green in this early May and June",
    ]
    for version in ("v1", "v2"):
        records(version).save(
            [document(1, texts[0], user="ann"), document(2, texts[1], user="bob")]
        )
    report = {"filepath": "memory://bucket/report.html", "dataset": {"type": "text.TextDataset"}}
    SealedDataset(**report).save(f"<p>{texts[0]}</p>")
    another_machine(tmp_path, monkeypatch)
    entries: dict[str, Any] = {
        "documents": {
            "type": "rest_pg.datasets.RecordsDataset",
            "filepath": "memory://bucket/documents.jsonl",
            "record": DOCUMENT,
            "credentials": "mine",
        },
        "report": report
        | {"type": "rest_pg.datasets.SealedDataset", "credentials": {"secret": "inline"}},
    }
    for name, content in (("base/catalog", entries), ("local/credentials", {"mine": {}})):
        path = Path.cwd() / "conf" / f"{name}.yml"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    said: list[str] = []
    assert forget(Path.cwd(), "ann", None, yes=True, retire=False, say=said.append), said
    left = b"".join(store.cat_file(path) for path in store.find("/bucket"))
    assert b'"ann' not in left
    assert b"harbour" not in left
    assert [d.user_id for v in ("v1", "v2") for d in records(v).load()] == ["bob", "bob"]
    assert not store.exists("/bucket/report.html")


def test_a_key_that_leaves_its_place_is_refused(store, tmp_path) -> None:
    for address in ("memory://bucket/../../x.jsonl", "memory://bucket/a/../b.jsonl"):
        with pytest.raises(DatasetError, match=r"holds '..'"):
            open_store(address, {})
    # to a store a key is any text: somebody may have put one
    kept, _ = open_store("memory://bucket/a", {})
    assert kept is not None
    for key in ("bucket/../../../escaped", "bucket/a/..", "bucket\\..\\escaped"):
        with pytest.raises(DatasetError, match=r"holds '..'"):
            kept.copy_of(key)
    assert kept.copy_of("bucket/a..b/..c").is_relative_to(tmp_path / "data" / ".objects")
