import mailbox
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest
from conftest import document
from kedro.io.core import DatasetError

from rest_pg.config import ExampleParams
from rest_pg.datasets.sources.mail import MailDataset, own_words
from rest_pg.pipelines.data_ingestion.examples import cut_opening
from rest_pg.pipelines.data_ingestion.nodes import create_examples

BODY = """Dear Bob,

the pier is open again.

On Mon, 3 Jan 2022 at 10:00, Bob <bob@example.org> wrote:
> is it open?
"""


def message(body: str = BODY, sender: str = "Ann Smith <Ann@Example.org>") -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, "bob@example.org", "Re: the  pier"
    mail["Date"] = "Tue, 04 Jan 2022 09:30:00 +0100"
    mail.set_content(body)
    return mail


def write_mbox(path: Path, *messages: EmailMessage) -> None:
    box = mailbox.mbox(path)
    for mail in messages:
        box.add(mail)
    box.close()


def test_an_mbox_is_read_by_sender_without_quotations(tmp_path: Path) -> None:
    write_mbox(tmp_path / "own.mbox", message(), message("A second one.", "bob@example.org"))
    first, second = MailDataset(path=str(tmp_path / "own.mbox")).load()
    assert first["user"] == "ann@example.org"
    assert first["text"] == "Dear Bob,\n\nthe pier is open again."
    assert (first["title"], first["date"]) == ("Re: the pier", "2022-01-04T09:30:00+01:00")
    assert (second["user"], second["text"], second["id"]) == (
        "bob@example.org",
        "A second one.",
        "own-2",
    )


def test_avocados_zip_files_are_read_where_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "007.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("007/007-000002-EM.txt", message("A second one.").as_bytes())
        archive.writestr("007/007-000001-EM.txt", message().as_bytes())
        archive.writestr("007/notes.xml", "<x/>")
    first, second, other = MailDataset(path=str(tmp_path)).load()
    assert first["text"] == "Dear Bob,\n\nthe pier is open again."
    assert first["id"] == "007/007/007-000001-EM.txt"
    assert second["text"] == "A second one."
    assert other["source"].endswith("007.zip, 007/notes.xml")
    assert other["skipped"].startswith("no mail")


def test_a_damaged_zip_file_is_a_bad_record_and_no_end(tmp_path: Path) -> None:
    whole = tmp_path / "a.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("1.txt", message("The first one.").as_bytes())
        archive.writestr("2.txt", message("A second one.").as_bytes())
    content = bytearray(whole.read_bytes())
    place = content.index(b"A second")
    content[place] ^= 1
    whole.write_bytes(content)
    (tmp_path / "b.zip").write_bytes(b"no zip file")
    good, flipped, none = MailDataset(path=str(tmp_path)).load()
    assert good["text"] == "The first one."
    assert "CRC" in flipped["unreadable"]
    assert flipped["source"].endswith("a.zip, 2.txt")
    assert "not a zip file, as its name says: copy or export it again" in none["unreadable"]


def test_single_messages_in_directories_html_and_a_bad_date(tmp_path: Path) -> None:
    page = message()
    page.set_content("<style>p {}</style><p>Hello <b>you</b></p><p>bye</p>", subtype="html")
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.eml").write_bytes(page.as_bytes())
    (tmp_path / "ann" / "2.txt").write_bytes(b"From: a@b.c\nDate: never\n\nHi there")
    html, undated = MailDataset(path=str(tmp_path)).load()
    assert html["text"] == "Hello you\nbye"
    assert (undated["text"], undated["date"]) == ("Hi there", None)
    assert undated["odd"] == ["the date 'never' can't be told"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mine\n-- \nAnn Smith\nHarbour Office", "mine"),
        ("mine\n----- Original Message -----\nFrom: x", "mine"),
        ("> theirs\nmine", "mine"),
        ("we - and they - agree", "we - and they - agree"),
    ],
)
def test_own_words(text: str, kept: str) -> None:
    assert own_words(text) == kept


def test_missing_and_empty_mailboxes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not there: export your mail as mbox"):
        MailDataset(path=str(tmp_path / "none")).load()
    with pytest.raises(DatasetError, match="holds no message"):
        MailDataset(path=str(tmp_path)).load()
    (tmp_path / "notes.md").write_text("Buy tickets.")
    with pytest.raises(DatasetError, match=r"holds no message.*notes\.md: no mail"):
        MailDataset(path=str(tmp_path)).load()


def test_an_opening_is_given_and_the_rest_is_asked_for() -> None:
    assert cut_opening("one  two\nthree four", 2) == ("one  two", "three four")
    assert cut_opening("one two", 0) == ("", "one two")
    assert cut_opening("one two", 5) == ("one two", "")
    params = ExampleParams(
        setting="user",
        validation_share=0.34,
        test_share=0.34,
        examples_per_user={"train": 1, "validation": 1, "test": 1},
        max_profile_size=3,
        min_profile_size=2,
        max_reference_words=40,
        n_key_items=2,
        opening_words=3,
    )
    documents = [
        document(i, f"{user} wrote letter {i} about {word} and {word} again", user, title="News")
        for user in ("ann", "bob", "eve")
        for i, word in enumerate(("harbours", "schools", "railways", "taxes"))
    ]
    template = 'Complete the mail with the subject "{{ title }}", which begins: {{ opening }}'
    for example in create_examples(documents, template, params, seed=1):
        assert example.input.endswith(f'"News", which begins: {example.user_id} wrote letter')
        assert example.reference.split()[1] == "about"
        # nothing of what has to be written is searched for
        assert example.query == f"News {example.user_id} wrote letter"
