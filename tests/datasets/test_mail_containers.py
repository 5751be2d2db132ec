"""Mail in every container: what a file is, its content says."""

import gzip
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
from kedro.io.core import DatasetError

from rest_pg.datasets.sources.mail import MailDataset

LINE = "From ann@example.org Mon Jan  1 10:00:00 2024\n"


def letter(text: str, head: str = "", sender: str = "Ann <ann@example.org>") -> str:
    return f"From: {sender}\nSubject: pier\nDate: Tue, 02 Jan 2024 09:30:00 +0100\n{head}\n{text}\n"


def mbox(*texts: str, line: str = LINE) -> str:
    return "".join(f"{line}{letter(text)}\n" for text in texts)


def load(path: Path) -> list[dict[str, Any]]:
    return MailDataset(path=str(path)).load()


def texts(path: Path) -> list[str]:
    return [record["text"] for record in load(path) if "text" in record]


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        "From - Mon Jan 01 10:00:00 2024\n",
        "From 1787@xxx Mon Jan 01 10:00:00 +0000 2024\n",
        "From ann at example.org  Mon Jan  1 10:00:00 2024\n",
        "From MAILER-DAEMON Mon Jan  1 10:00:00 2024 +0100\n",
        "From ann Mon, 1 Jan 2024 10:00:00 +0100\n",
        "From ann@example.org Mon Jan  1 10:00 CET 2024\n",
    ],
)
@pytest.mark.parametrize("name", ["own.mbox", "Inbox", "2024-January.txt"])
def test_from_lines_of_all_programs(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / name).write_text(mbox("One.\n\nFrom here on.", "Two.", line=line))
    assert texts(tmp_path) == ["One.\n\nFrom here on.", "Two."]
    (tmp_path / name).write_bytes(mbox("One.", "Two.", line=line).replace("\n", "\r\n").encode())
    assert texts(tmp_path / name) == ["One.", "Two."]


def test_escaped_and_unescaped_from(tmp_path: Path) -> None:
    path = tmp_path / "own.mbox"
    path.write_text(
        mbox("A\n\n>From me.\n>>From him.\n\nFrom Bob on Mon Jan 1 all is\nB\nFrom x\nC")
    )
    assert texts(path) == ["A\n\nFrom me.\n\nFrom Bob on Mon Jan 1 all is\nB\nFrom x\nC"]
    # a quotation without spaces stays one
    path.write_text(mbox("A\n\n>theirs\n>From them\n>theirs\n\nB"))
    assert texts(path) == ["A\n\nB"]
    # without a blank line only known fields start a message
    path.write_text(mbox("A\n" + LINE + "and B", "C").replace("A\n\n", "A\n"))
    assert texts(path) == [f"A\n{LINE}and B", "C"]


def test_content_length_decides_where_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "own.mbox"
    body = f"A\n\n{LINE}From: me\n\n>From B\n"
    whole = f"{LINE}{letter(body, f'Content-Length: {len(body)}' + chr(10))}\n"
    path.write_text(whole + mbox("C"))
    first, second = load(path)
    assert first["text"] == f"A\n\n{LINE}From: me"
    assert second["text"] == "C"
    path.write_text(whole.replace(f"Length: {len(body)}", "Length: 99999") + mbox("C"))
    assert texts(path) == ["A", "From B", "C"]


def test_single_messages_in_every_layout(tmp_path: Path) -> None:
    whole = letter("Mine.")
    for name in ("a/cur/1:2,S", "b/new/2", "mh/17", "c/m.eml", "d/note.txt", ".Sent/cur/3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole)
    emlx = tmp_path / "V10" / "Messages" / "1.emlx"
    emlx.parent.mkdir(parents=True)
    emlx.write_text(f"{len(whole)}  \n{whole}<?xml version='1.0'?><plist><dict/></plist>\n")
    (tmp_path / "Sent.mbox").mkdir()
    (tmp_path / "Sent.mbox" / "mbox").write_text(mbox("Mine."))
    (tmp_path / "Sent.mbox" / "table_of_contents").write_bytes(b"\0\0\1")
    (tmp_path / "Inbox.msf").write_text("// <!-- <mdb:mork:z v='1.4'/> -->")
    (tmp_path / "empty").touch()
    records = load(tmp_path)
    assert [r["text"] for r in records if "text" in r] == ["Mine."] * 8
    assert {r["id"] for r in records if "skipped" in r} == {
        "Sent.mbox/table_of_contents",
        "Inbox.msf",
        "empty",
    }
    assert len({r["id"] for r in records}) == len(records)


def test_equal_names_in_two_folders_have_their_own_ids(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "Sent.mbox").write_text(mbox("A", "B"))
    assert [r["id"] for r in load(tmp_path)] == [
        "2023/Sent-1",
        "2023/Sent-2",
        "2024/Sent-1",
        "2024/Sent-2",
    ]
    (tmp_path / "2023" / "Sent").write_text(mbox("C"))
    assert len({r["id"] for r in load(tmp_path)}) == 5


def test_archives_hold_any_mail(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "takeout.zip", "w") as archive:
        archive.writestr("Takeout/Mail/All mail.mbox", mbox("A", "B"))
        archive.writestr("one", letter("C"))
        archive.writestr("picture.png", b"\x89PNG")
        archive.writestr("inner.zip", b"PK\x03\x04")
    (tmp_path / "2024-May.txt.gz").write_bytes(gzip.compress(mbox("D").encode()))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(mbox("E").encode())[:-9])
    records = load(tmp_path)
    assert [r["text"] for r in records if "text" in r] == ["D", "A", "B", "C"]
    assert [r["id"] for r in records if "text" in r][:2] == [
        "2024-May.txt-1",
        "takeout/Takeout/Mail/All mail-1",
    ]
    assert sum("unreadable" in r for r in records) == 1
    assert "unpack it" in next(r["skipped"] for r in records if "inner" in r["source"])


@pytest.mark.parametrize(
    ("magic", "remedy"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save the message as .eml"),
        (b"!BDN\0\0", "export it as mbox"),
    ],
)
def test_outlooks_own_files_are_named_with_the_remedy(
    tmp_path: Path, magic: bytes, remedy: str
) -> None:
    (tmp_path / "a").write_bytes(magic + b"\0" * 99)
    with pytest.raises(DatasetError, match=remedy):
        load(tmp_path / "a")
    (tmp_path / "b").write_text(letter("Mine."))
    skipped, _ = load(tmp_path)
    assert remedy in skipped["skipped"]


def test_files_that_should_hold_mail_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.mbox").write_bytes(b"\0\1\2")
    (tmp_path / "b.eml").write_text("no header at all")
    (tmp_path / "c").write_text(letter("Mine."))
    first, second, _ = load(tmp_path)
    assert "not an mbox file" in first["unreadable"]
    assert "not an eml file" in second["unreadable"]


def test_obfuscated_and_odd_senders(tmp_path: Path) -> None:
    path = tmp_path / "m.eml"
    for sender, user in [
        ("ann at example.org (Ann)", "ann@example.org"),
        ('"Smith, Ann" <Ann@Example.org>', "ann@example.org"),
        ("Smith, Ann <ann@example.org>", "ann@example.org"),
        ("=?utf-8?q?J=C3=BCrgen=2C_A?= <j@example.org>", "j@example.org"),
        ("a@example.org, b@example.org", "a@example.org"),
        ("a@example.org, b@example.org\nSender: b@example.org", "b@example.org"),
        ("Ann (at work) <ann@example.org>", "ann@example.org"),
        ("Jürgen <jürgen@exämple.org>", "jürgen@exämple.org"),
        ('"ann@example.org" <ann@example.org>', "ann@example.org"),
    ]:
        path.write_text(letter("Mine.", sender=sender))
        assert [record["user"] for record in load(path)] == [user]
    for sender in ("", "undisclosed-recipients:;", "<>"):
        path.write_text(letter("Mine.", sender=sender))
        assert ["no sender" in record["unreadable"] for record in load(path)] == [True]


def test_messages_without_words_and_deleted_ones_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "Inbox").write_text(
        f"{LINE}{letter('> theirs')}\n{LINE}{letter('')}\n"
        f"{LINE}{letter('gone', 'X-Mozilla-Status: 0009' + chr(10))}\n"
        f"{LINE}{letter('x', 'Content-Type: multipart/encrypted; boundary=b' + chr(10))}\n"
        f"{LINE}{letter('Mine.').replace('Tue', 'Some day')}"
    )
    with caplog.at_level(logging.WARNING):
        records = load(tmp_path)
    assert [r.get("skipped") for r in records] == [
        "no words of the sender's own",
        "no words of the sender's own",
        "deleted in Thunderbird",
        "an encrypted message",
        None,
    ]
    assert "1 of 5 messages are odd" in caplog.text
