"""The list of forgotten users: ingestion skips them, and the list names nobody."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from pathlib import Path

from rest_pg.temporary import temporary_name


class ForgottenUsers:
    """Keyed hashes of the users that were forgotten.

    A hash cannot be turned back into an id, and without the key in the file no id can be tried against
    it. Ids are compared whole, in NFC, without white space around them.
    """

    def __init__(self, *, filepath: str) -> None:
        """Read the list at ``filepath``; a missing file is an empty list.

        Args:
            filepath: a JSON file with ``key`` (hexadecimal) and ``users`` (HMAC-SHA256, hexadecimal).

        Raises:
            ValueError: the file is damaged. Nothing may be ingested then: a forgotten user could return.
        """
        self._path = Path(filepath)
        self._key, self._hashes = secrets.token_hex(32), frozenset[str]()
        if self._path.exists():
            try:
                kept = json.loads(self._path.read_text(encoding="utf-8"))
                self._key, self._hashes = str(kept["key"]), frozenset(map(str, kept["users"]))
                bytes.fromhex(self._key)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path}, the list of forgotten users, is damaged ({error!r}): restore it from a "
                    "backup. If you delete it, forgotten users return with the next ingestion."
                ) from error

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, user_id: object) -> bool:
        return bool(self._hashes) and self._hash(str(user_id)) in self._hashes

    def add(self, user_id: str) -> None:
        """Put a user on the list, and write it: whole or not at all, readable by its owner alone."""
        self._hashes |= {self._hash(user_id)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(self._path)
        content = json.dumps({"key": self._key, "users": sorted(self._hashes)}, indent=1)
        try:
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
            ) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def _hash(self, user_id: str) -> str:
        identity = unicodedata.normalize("NFC", user_id.strip())
        key, message = bytes.fromhex(self._key), identity.encode("utf-8", "surrogatepass")
        return hmac.new(key, message, hashlib.sha256).hexdigest()
