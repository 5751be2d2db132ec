"""The journal of a removal, which becomes its receipt: ids and hashes first, nobody in the end."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rest_pg.privacy.identity import normal
from rest_pg.privacy.plan import Plan, Step
from rest_pg.privacy.signs import Signs
from rest_pg.temporary import temporary_name

DIRECTORY = Path("data/forgetting")
JOURNAL, RECEIPT = "journal", "receipt"


class Journal:
    """One user's removal: what is to be removed, kept until all of it is."""

    def __init__(self, path: Path, user: str, content: dict[str, Any]) -> None:
        """Take a journal's file, its user, and what stands in it."""
        self.path, self.user, self.content = path, user, content

    @staticmethod
    def of(project: Path, user: str) -> Journal:
        """Return the journal of an interrupted removal of this user, or a new one."""
        for path, content in _kept(project, user):
            if content["kind"] == JOURNAL:
                return Journal(path, user, content)
        salt = secrets.token_hex(16)
        content = {"kind": JOURNAL, "salt": salt, "user": _hash(salt, user), "steps": []}
        return Journal(project / DIRECTORY / f"{secrets.token_hex(8)}.json", user, content)

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier removal was not done to its end."""
        return self.path.exists()

    @property
    def steps(self) -> list[Step]:
        """Return what is to be removed."""
        return [Step(**step) for step in self.content["steps"]]

    @property
    def signs(self) -> Signs:
        """Return the shingles of the user's texts, as hashes."""
        return Signs.from_json(self.user, self.content.get("signs", {}))

    def take(self, plan: Plan, policies: list[str]) -> None:
        """Add a plan to what is to be done, and write the journal: whole, readable by its owner alone."""
        known = {(s["action"], s["path"], s["key"]): s for s in self.content["steps"]}
        for step in plan.steps:
            earlier = known.setdefault((step.action, step.path, step.key), asdict(step))
            earlier["rows"] = sorted({*earlier["rows"], *step.rows})
            earlier["before"] = earlier["before"] or step.before
        self.content |= {
            "steps": sorted(known.values(), key=lambda s: (s["order"], s["path"], s["key"])),
            "ids": sorted({*self.content.get("ids", []), *plan.ids}),
            "signs": self.signs.joined(plan.signs).to_json(),
            "policies": sorted({*self.content.get("policies", []), *policies}),
        }
        write_private(self.path, self.content)

    def close(self, counts: dict[str, int], policies: list[str]) -> None:
        """Replace the journal by a receipt: how much was removed from which kind of data, and nobody's name."""
        receipt = {
            "kind": RECEIPT,
            "salt": self.content["salt"],
            "user": self.content["user"],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "removed": dict(sorted(counts.items())),
            "policies": policies,
        }
        write_private(self.path, receipt)


def policies_of(project: Path, user: str) -> list[str]:
    """Return the policies that earlier removals of this user left."""
    return sorted({p for _, content in _kept(project, user) for p in content.get("policies", [])})


def was_forgotten(project: Path, user: str) -> bool:
    """Whether a removal of this user was done to its end."""
    return any(content["kind"] == RECEIPT for _, content in _kept(project, user))


def private_files(project: Path) -> list[Path]:
    """Return all journals and receipts."""
    return sorted((project / DIRECTORY).glob("*.json"))


def _kept(project: Path, user: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in private_files(project):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            salt, known = content["salt"], content["user"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another's, or damaged: what it says is found again
        if hmac.compare_digest(_hash(salt, user), known):
            yield path, content


def _hash(salt: str, user: str) -> str:
    content = normal(user).encode("utf-8", "surrogatepass")
    return hmac.new(bytes.fromhex(salt), content, hashlib.sha256).hexdigest()


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that its owner alone may read: whole or not at all, and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
