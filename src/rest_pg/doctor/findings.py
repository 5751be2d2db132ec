"""What a check found, and how the findings are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    level: Level
    """A problem would make the run fail; a warning might, or makes it slow."""
    subject: str
    found: str
    remedy: str = ""


def ok(subject: str, found: str) -> Finding:
    """Return a finding that needs no remedy."""
    return Finding(level="ok", subject=subject, found=found)


def lay_out(findings: Sequence[Finding]) -> str:
    """Return a section's lines: level, subject, what was found, and below it the remedy."""
    width = max((len(f.subject) for f in findings), default=0)
    lines = []
    for finding in findings:
        first, *others = finding.found.splitlines() or [""]
        lines.append(f"  {finding.level:<8} {finding.subject:<{width}}  {first}")
        indent = " " * (13 + width)
        lines += [f"{indent}{line}" for line in others]
        if finding.remedy:
            lines.append(f"{indent}→ {finding.remedy}")
    return "\n".join(lines)


def histogram(values: Sequence[int], limit: int, n_bins: int = 8) -> str:
    """Draw how many values lie in each of ``n_bins`` equal bins up to ``limit``, a line per bin."""
    width = max(-(-limit // n_bins), 1)
    counts = [0] * n_bins
    for value in values:
        counts[min(max(value - 1, 0) // width, n_bins - 1)] += 1
    most = max(counts, default=0) or 1
    return "\n".join(
        f"{i * width + 1:>6,} to {min((i + 1) * width, limit):>6,} tokens  "
        f"{count:>6,}  {'█' * round(30 * count / most)}".rstrip()
        for i, count in enumerate(counts)
    )
