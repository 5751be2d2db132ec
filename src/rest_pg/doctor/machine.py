"""Checks of the machine and what is installed on it: versions, devices, memory, disk."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rest_pg.backends.models import device, supports_bfloat16
from rest_pg.backends.native import load_library
from rest_pg.cost import ModelSize
from rest_pg.doctor.findings import Finding, ok

INSTALL = "run `make .venv/installed` (or pip install --editable .)"
CGROUP = Path("/sys/fs/cgroup")
BYTES_PER_WEIGHT = 4
"""Policies are saved in float32."""
TRAINED_BYTES = 16
"""Of a weight that is trained: itself, its gradient and two moments, in float32."""


def check_versions(project: Path) -> list[Finding]:
    """Compare Python and every installed library with the bounds that the project states."""
    python, requirements = _bounds(project)
    version = platform.python_version()
    if SpecifierSet(python).contains(version):
        findings = [ok("Python", f"{version} ({python})")]
    else:
        remedy = f"make .venv with a Python that is {python}"
        findings = [Finding(level="problem", subject="Python", found=version, remedy=remedy)]
    wrong = list(_wrong_versions(requirements))
    if not wrong:
        findings.append(ok("libraries", f"{len(requirements)} installed, all within their bounds"))
    return findings + wrong


def _bounds(project: Path) -> tuple[str, list[Requirement]]:
    """Return the bounds of the project at hand, or where there is only its wheel, of that."""
    file = project / "pyproject.toml"
    stated = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "dependencies" in stated.get("project", {}):
        own = stated["project"]
        return own.get("requires-python", ""), [Requirement(r) for r in own["dependencies"]]
    metadata = importlib.metadata.metadata("rest-pg")
    requirements = [Requirement(r) for r in importlib.metadata.requires("rest-pg") or []]
    return metadata["Requires-Python"] or "", [r for r in requirements if r.marker is None]


def _wrong_versions(requirements: Sequence[Requirement]) -> Iterator[Finding]:
    for requirement in requirements:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                level="problem",
                subject=requirement.name,
                found=found or "not installed",
                remedy=f"{INSTALL}: it has to be {requirement.specifier}",
            )


def check_devices() -> list[Finding]:
    """Say what computes here, and in which type."""
    products = "bfloat16" if supports_bfloat16() else "float32"
    if device().type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        found = f"{', '.join(names)}; the first is used, {memory:.0f} GB, products in {products}"
        findings = [ok("GPU", found)]
        if len(names) > 1:
            remedy = "nothing here uses several: choose one by CUDA_VISIBLE_DEVICES"
            findings.append(
                Finding(level="warning", subject="GPUs", found=str(len(names)), remedy=remedy)
            )
        return findings
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    found = f"{threads} threads ({capability}), products in {products}"
    if products == "float32":
        found += ", as it has no bfloat16: about half as fast"
    return [ok("CPU", found), *_check_decoding(), ok("GPU", "none")]


def _check_decoding() -> Iterator[Finding]:
    """Say whether samples are written in machine code, where it could be so."""
    if not torch.cpu._is_avx512_bf16_supported():
        return
    if load_library() is not None:
        yield ok("decoding", "in machine code (backends/native)")
        return
    remedy = "install a C++ compiler (g++): sampling takes two to three times as long without"
    yield Finding(level="warning", subject="decoding", found="in PyTorch", remedy=remedy)


def available_memory() -> int:
    """Return the bytes that a run may take: what is free, or what a container's limit leaves."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - used)


class OtherWork:
    """What other programs take of the processors from its making on, hypervisors included."""

    SHARE = 0.2
    """Of all processors; more of it makes a measured time say little."""

    def __init__(self) -> None:
        self._started, self._own = psutil.cpu_times(), psutil.Process().cpu_times()

    def check(self) -> list[Finding]:
        """Warn if it was much: times that were measured beside it are too long."""
        now, own = psutil.cpu_times(), psutil.Process().cpu_times()
        took = {name: getattr(now, name) - getattr(self._started, name) for name in now._fields}
        idle = took["idle"] + took.get("iowait", 0.0)
        # what guests took is counted among user times already
        total = sum(v for name, v in took.items() if not name.startswith("guest"))
        mine = own.user + own.system - self._own.user - self._own.system
        share = (total - idle - mine) / max(total, 1e-9)
        if share < self.SHARE:
            return []
        found = f"other programs took {share:.0%} of the processors meanwhile"
        remedy = "end them and look again, or take the estimate as one beside them"
        return [Finding(level="warning", subject="other work", found=found, remedy=remedy)]


def check_memory(needed: float, source: str) -> Finding:
    """Compare the bytes that the run needs with those that are there.

    Args:
        needed: at its peak.
        source: what says so.
    """
    there = available_memory() + psutil.Process().memory_info().rss
    found = f"{there / 1e9:.1f} GB there; the run takes about {needed / 1e9:.1f} GB ({source})"
    if needed <= 0.9 * there:
        return ok("memory", found)
    return Finding(
        level="warning" if needed <= there else "problem",
        subject="memory",
        found=found,
        remedy="lower generator.max_cache_tokens, set trainer.gradient_checkpointing: true in "
        "catalog.yml, or set maximization.lora and sft.lora",
    )


def memory_needed(size: ModelSize, *, lora: bool) -> float:
    """Estimate a training's bytes from the weights alone: what rows need comes on top."""
    weights = size.body + size.hidden * size.vocabulary
    return float(weights * (3 * BYTES_PER_WEIGHT if lora else TRAINED_BYTES))


def check_disk(project: Path, policy_bytes: int, n_iterations: int, *, lora: bool) -> list[Finding]:
    """Compare free disk with what the run writes: policies, a checkpoint, and half-written ones."""
    # a checkpoint of all weights holds two moments of each beside it
    checkpoint = 0 if lora else 3 * policy_bytes
    places = {
        "disk of data/": (project, (n_iterations + 2) * policy_bytes + checkpoint),
        "disk of TMPDIR": (Path(tempfile.gettempdir()), 2 * policy_bytes),
    }
    findings = []
    for subject, (path, needed) in places.items():
        free = shutil.disk_usage(path).free
        found = f"{free / 1e9:.1f} GB free; the run writes about {needed / 1e9:.1f} GB"
        remedy = "delete old versions below data/06_models, or lower n_iterations"
        if subject == "disk of TMPDIR":
            remedy = "set TMPDIR to a larger disk"
        enough = free >= needed
        findings.append(
            ok(subject, found)
            if enough
            else Finding(level="problem", subject=subject, found=found, remedy=remedy)
        )
    return findings
