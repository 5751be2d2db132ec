"""Work in progress (shards, checkpoints): kept until the catalog has its result, whatever else runs meanwhile.

An engine names the directory of work that it has finished. The directory is removed when the outputs of the
node are saved, and not before: a run that is killed between the two takes everything from it. Nothing else
but ``kedro clean`` removes work in progress.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_finished: list[Path] = []


def note_finished(directory: Path) -> None:
    """Remember a directory whose work was done to its end."""
    _finished.append(directory)


def forget_finished() -> None:
    """Keep what was noted: its results may not have been saved."""
    _finished.clear()


def remove_finished() -> None:
    """Remove what was noted: its results are saved."""
    while _finished:
        shutil.rmtree(_finished.pop(), ignore_errors=True)
