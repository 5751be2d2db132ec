from pathlib import Path

import pytest

from rest_pg.privacy.forgotten import ForgottenUsers


def test_a_missing_list_holds_nobody(tmp_path: Path) -> None:
    assert "Ann" not in ForgottenUsers(filepath=str(tmp_path / "none.json"))


def test_ids_are_compared_whole_and_in_nfc(tmp_path: Path) -> None:
    path = tmp_path / "forgotten_users.json"
    ForgottenUsers(filepath=str(path)).add("Jose\u0301")
    ForgottenUsers(filepath=str(path)).add("0010")
    listed = ForgottenUsers(filepath=str(path))
    assert len(listed) == 2
    assert "Jos\u00e9 " in listed
    assert "0010" in listed
    assert not {"10", "001", "Jose", "00100"} & {
        u for u in ("10", "001", "Jose", "00100") if u in listed
    }


def test_the_file_names_nobody_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "forgotten_users.json"
    ForgottenUsers(filepath=str(path)).add("Ann Example")
    assert "Ann" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "xyz", "users": []}', '{"key": 1'])
def test_a_damaged_list_stops_ingestion(tmp_path: Path, content: str) -> None:
    path = tmp_path / "forgotten_users.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="restore it from a backup"):
        ForgottenUsers(filepath=str(path))
