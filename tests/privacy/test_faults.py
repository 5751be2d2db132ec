"""Links, damaged files, full disks: what is in reach is done, the rest is named, and nobody else's is touched."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest
from support.forgetting import Project, Written, forget_in, write_lines

from rest_pg.checksums import check_seal, example_digest, seal_of
from rest_pg.privacy import removal
from rest_pg.privacy.journal import DIRECTORY
from rest_pg.privacy.signs import Signs, decode

ANN = ["The harbour lies behind seven green hills and a wall.", "Ships.", "1", "ann goes home"]
BOB = ["We planted an orchard of old apple trees last spring.", "Ships and ann", "12", "line-1"]
VERSION = "2026-01-01T00.00.00.000Z"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.run(Written({"ann": ANN, "bob": BOB}, VERSION))
    return made


def path_of(project: Project, name: str) -> Path:
    return project.root / "data" / name / VERSION / Path(name).name


def kind_of(project: Project) -> str:
    (path,) = (project.root / DIRECTORY).glob("*.json")
    return str(json.loads(path.read_text())["kind"])


# ---- links ----


def test_a_linked_file_is_changed_where_it_lies_and_its_neighbours_are_not(
    project: Project, tmp_path: Path
) -> None:
    path = path_of(project, "02_intermediate/documents.jsonl")
    place = tmp_path / "elsewhere"
    neighbour = write_lines(place / "neighbour.jsonl", {"user_id": "ann", "document_id": "line-1"})
    real = place / "store.jsonl"
    path.rename(real)
    path.symlink_to(real)
    before = neighbour.read_bytes()
    assert forget_in(project, "ann")[0]
    assert path.is_symlink()
    assert sorted(p.name for p in place.iterdir()) == ["neighbour.jsonl", "store.jsonl"]
    assert neighbour.read_bytes() == before
    project.check_without("ann")


def test_a_linked_folder_is_followed(project: Project, tmp_path: Path) -> None:
    (project.root / "data").rename(tmp_path / "disk")
    write_lines(tmp_path / "disk" / "notes.jsonl", {"user_id": "ann"})
    (project.root / "data").symlink_to(tmp_path / "disk")
    assert forget_in(project, "ann")[0]
    assert "ann" in (tmp_path / "disk" / "notes.jsonl").read_text()
    project.check_without("ann")


def test_a_linked_page_goes_with_its_link(project: Project, tmp_path: Path) -> None:
    page = project.root / "data/08_reporting/report.html"
    page.rename(tmp_path / "real.html")
    page.symlink_to(tmp_path / "real.html")
    assert forget_in(project, "ann")[0]
    assert not page.is_symlink()
    assert not (tmp_path / "real.html").exists()


# ---- damage ----


def damage_line(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1].rpartition(b"\n")[0] + b'\n{"cut": "he')


@pytest.mark.parametrize("name", ["05_model_input/prompts.jsonl", "03_primary/examples.jsonl"])
def test_a_damaged_file_is_named_and_stays_damaged_and_the_rest_goes_on(
    project: Project, name: str
) -> None:
    path = path_of(project, name)
    damage_line(path)
    seal = seal_of(path).read_text()
    done, said = forget_in(project, "ann")
    assert not done
    assert f"{path} is damaged" in said
    assert b'"user_id": "ann"' not in path.read_bytes()
    assert seal_of(path).read_text() == seal
    assert kind_of(project) == "journal"
    del project.rows[path]
    project.check_without("ann")
    for part in path.parent.iterdir():
        part.unlink()
    assert forget_in(project, "ann")[0]
    assert kind_of(project) == "receipt"


def test_a_damaged_table_is_named_and_the_rest_goes_on(project: Project) -> None:
    path = path_of(project, "08_reporting/iteration_1/metrics.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    done, said = forget_in(project, "ann")
    assert not done
    assert f"{path} can't be read" in said
    del project.tables[path]
    project.check_without("ann")


def test_a_flipped_bit_is_damage(project: Project) -> None:
    path = path_of(project, "07_model_output/iteration_1/samples.jsonl")
    path.write_bytes(path.read_bytes().replace(b"sample 0", b"sample 9", 1))
    done, said = forget_in(project, "bob")
    assert not done
    assert f"{path} is damaged" in said


def test_a_full_disk_loses_nothing_and_the_rest_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = path_of(project, "05_model_input/prompts.jsonl")
    before = full.read_bytes()
    real = removal.put_sealed

    def put(temporary: Path, path: Path, **more: object) -> None:
        if path == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        real(temporary, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "put_sealed", put)
        done, said = forget_in(project, "ann")
    assert not done
    assert "No space left on device" in said.split("Not done.")[1]
    assert full.read_bytes() == before
    check_seal(full)
    assert [p.name for p in full.parent.iterdir() if p.name.startswith(".")] == []
    assert forget_in(project, "ann")[0]
    project.check_without("ann")


def test_a_full_disk_before_the_journal_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.state()

    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            forget_in(project, "ann")
    assert project.state() == before
    assert not list((project.root / DIRECTORY).iterdir())


# ---- sources, and what ingestion left out ----


def test_sources_are_named_and_never_changed_inside_and_outside_data(
    project: Project, tmp_path: Path
) -> None:
    (project.root / "conf/own").mkdir()
    (project.root / "conf/own/catalog.yml").write_text(
        "raw_documents:\n"
        "  type: rest_pg.datasets.sources.documents.DocumentsDataset\n"
        f"  filepath: {tmp_path}/outside.jsonl\n"
    )
    outside = write_lines(
        tmp_path / "outside.jsonl", {"user": "ann", "text": "x"}, {"user": "anna", "text": "y"}
    )
    requests = write_lines(
        project.root / "data/01_raw/requests.jsonl", {"user": "ann", "request": "x"}
    )
    before = [outside.read_bytes(), requests.read_bytes()]
    done, said = forget_in(project, "ann")
    assert done, said
    named = said.split("Sources that hold the user.")[1]
    assert f"{outside} (1 records)" in named
    assert "data/01_raw/requests.jsonl (1 records)" in named
    assert [outside.read_bytes(), requests.read_bytes()] == before


def test_a_user_of_raw_data_alone_is_put_on_the_list(project: Project) -> None:
    write_lines(project.root / "data/01_raw/requests.jsonl", {"user": "carl", "request": "x"})
    done, said = forget_in(project, "carl")
    assert done, said
    assert (project.root / "data/forgotten_users.json").exists()


def test_rejected_records_of_a_user_go(project: Project) -> None:
    raw = project.root / "data/01_raw/requests.jsonl"
    write_lines(raw, {"user": "ann", "request": 3}, {"user": "bob", "request": 4})
    rejected = project.root / "data/02_intermediate/rejected_records.jsonl/v/rejected_records.jsonl"
    rows = [
        {
            "source": f"/moved/01_raw/{raw.name}, line {n}",
            "field": field,
            "expected": "a text",
            "found": found,
        }
        for n, field, found in (
            (1, "request", "3"),
            (2, "request", "4"),
            (3, "user", "'ann'"),
            (4, "user", "'anna'"),
            (5, "text", ascii(ANN[0])[:80]),
        )
    ]
    write_lines(rejected, *rows)
    done, said = forget_in(project, "ann")
    assert done, said
    left = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [row["found"] for row in left] == ["4", "'anna'"]


# ---- work in progress ----


def test_a_checkpoint_is_retired_if_its_training_was_of_the_user(project: Project) -> None:
    examples = path_of(project, "05_model_input/sft_examples.jsonl").read_text().splitlines()
    digests = [example_digest(json.loads(line)) for line in examples]
    place = project.root / "data/06_models/checkpoints"
    for name, rows in (("of_all", digests), ("of_bob", digests[-1:])):
        (place / name / "checkpoint-5").mkdir(parents=True)
        (place / name / "checkpoint-5" / "model.safetensors").write_text("x")
        (place / name / "rows.json").write_text(json.dumps(rows))
    done, said = forget_in(project, "ann", retire=True)
    assert done, said
    assert not (place / "of_all" / "checkpoint-5").exists()
    assert (place / "of_bob" / "checkpoint-5" / "model.safetensors").exists()


def test_events_of_kedro_viz_that_quote_the_user_go(project: Project) -> None:
    events = project.root / ".viz/kedro_pipeline_events.json"
    events.parent.mkdir()
    kept = [{"event": "after_node_run", "node": "ann", "duration": 1}, {"error": "annabel is bad"}]
    events.write_text(json.dumps([*kept, {"event": "on_node_error", "error": "user ann is bad"}]))
    assert forget_in(project, "ann")[0]
    assert json.loads(events.read_text()) == kept


# ---- the scan at the end ----


def test_the_scan_lists_what_may_be_left_and_changes_nothing(project: Project) -> None:
    files = {
        "notebooks/mine.ipynb": json.dumps({"source": [f"# {ANN[0]}\n"]}),
        "notes/id.md": "ask (ann) about it",
        "notes/escaped.json": json.dumps(
            json.dumps("<b>h&auml;h</b> " + ANN[0].replace("green", "gr\u0065en"))
        ),
        "notes/page.html": "<p>The harbour <b>lies</b> behind\nseven &#103;reen hills and a wall.</p>",
        "notes/other.md": "annabel, joann and seven green hills",
        "data/08_reporting/mine.txt": "THE HARBOUR LIES BEHIND SEVEN GREEN HILLS, and a wall",
        "run.log": "nobody",
    }
    for name, text in files.items():
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with gzip.open(project.root / "notes" / "old.log.gz", "wt") as file:
        file.write("it was ann")
    before = {name: (project.root / name).read_bytes() for name in files}
    done, said = forget_in(project, "ann")
    assert done, said
    listed = said.split("These may still show the user.")[1]
    for name in (
        "notebooks/mine.ipynb",
        "notes/escaped.json",
        "notes/page.html",
        "08_reporting/mine.txt",
    ):
        assert f"{name}: words of the user's texts" in listed, name
    for name in ("notes/id.md: the id", "notes/old.log.gz: the id"):
        assert name in listed
    for name in ("notes/other.md", "run.log", "policy_0", "forgotten_users", "data/forgetting"):
        assert name not in listed
    assert {name: (project.root / name).read_bytes() for name in files} == before


def test_a_quotation_in_anothers_record_is_listed_and_stays(tmp_path: Path) -> None:
    quoting = f"ann wrote to me: {ANN[0]}"
    project = Project(tmp_path / "project")
    project.run(Written({"ann": ANN, "bob": [*BOB, quoting]}, VERSION))
    done, said = forget_in(project, "ann")
    assert done
    project.check_without("ann")
    listed = said.split("These may still show the user.")[1]
    assert "documents.jsonl: the id and words of the user's texts" in listed


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        ("a\\u00e9b", "aéb"),
        ("&lt;b&gt; &#x27;", "<b> '"),
        ("\\\\u0041", "A"),
        ("\\ud83d\\ude00", "😀"),
        ("e\u0301", "é"),
        ("&amp;amp;quot;", '"'),
    ],
)
def test_escapes_are_decoded(escaped: str, plain: str) -> None:
    assert decode(escaped) == plain


@pytest.mark.parametrize(
    ("user", "text", "named"),
    [
        ("ann", "by ann.", True),
        ("ann", "anna", False),
        ("ann", "joann", False),
        ("1", "v=1;", True),
        ("1", "11", False),
        ("-x", "a-x", True),
        ("O'Brien", "O'Brien's", True),
        ("名前", "「名前」", True),
        ("Smith, John", "Smith, Johnny", False),
    ],
)
def test_an_id_is_a_token(user: str, text: str, named: bool) -> None:
    assert Signs(user).names(text) == named
