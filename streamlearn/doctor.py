"""What about this machine would make a run slow or fail, and what to do about it.

Each check is a function of a :class:`Machine` (where the facts are read) and a job, and returns
findings; :func:`examine` runs them all. A check that cannot tell says so as a warning and never
raises.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final, Literal

from streamlearn.config import JobConfig
from streamlearn.errors import StreamlearnError

__all__ = ["Finding", "Machine", "examine", "findings_text"]

Level = Literal["ok", "warn", "fail"]

# The table of a small model, the validation and the compiler fit in this; less is a laptop of 2005.
_MEMORY_BYTES_MIN: Final = 1 << 30
# One file or socket a partition read ahead, the listener, the snapshot: a few hundred at worst.
_FILES_MIN: Final = 1024
# Snapshots are written beside the ones they replace.
_DISK_BYTES_MIN: Final = 1 << 30
# What the parse kernels' byte shuffles are compiled to; without it they work, slower.
_CPU_FLAGS: Final = ("avx2", "avx512bw", "avx512_vbmi2")
_DISTRIBUTION: Final = "streamlearn"
_EXTRAS: Final[Mapping[str, tuple[str, str]]] = {
    "kafka": ("aiokafka", "Kafka sources"),
    "arrow": ("pyarrow", "export to Parquet"),
    "deep": ("torch", "deep models"),
    "onnx": ("onnxruntime", "export of nets to ONNX"),
    "ray": ("ray", "many machines with Ray"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    name : str
    level : str
        ``ok``, ``warn`` (slower, or something is missing) or ``fail`` (a run will not work).
    found : str
        What is so.
    advice : str
        What to do; empty where all is well.
    """

    name: str
    level: Level
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the finding for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the facts are read: the file system from ``root`` on, and the environment.

    Attributes
    ----------
    environ : mapping
    root : Path
        ``/``; tests give a directory with a ``proc`` and ``sys`` of their own.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path("/")

    def read(self, name: str) -> str:
        """Return a file below the root as text; empty where it cannot be read."""
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def examine(
    machine: Machine, job: JobConfig, reach: Callable[[JobConfig], Mapping[str, Any]]
) -> list[Finding]:
    """Run every check.

    Parameters
    ----------
    machine : Machine
    job : JobConfig
        Its sources are reached, if it names some; its output directory's disk is looked at.
    reach : callable
        Lists a job's sources and says what it found; may raise StreamlearnError.
    """
    findings = [
        _python(),
        *_dependencies(),
        *_extras(),
        _kernel_cache(machine),
        _cores(machine),
        _cpu(machine),
        _memory(machine),
        _overcommit(machine),
        _huge_pages(machine),
        _open_files(),
        _disk(job.output.dir),
    ]
    if job.source.uri:
        findings.append(_source(job, reach))
    return findings


def findings_text(findings: Sequence[Finding]) -> str:
    """Return findings for people: a line each, what to do below those that need it."""
    width = max((len(finding.name) for finding in findings), default=0)
    text = ""
    for finding in findings:
        text += f"{finding.level:<4}  {finding.name:<{width}}  {finding.found}\n"
        if finding.advice:
            text += f"{'':<4}  {'':<{width}}  -> {finding.advice}\n"
    return text


def _python() -> Finding:
    return Finding("python", "ok", platform.python_version())


def _dependencies() -> list[Finding]:
    """Check what the package says it needs, with the versions that are there."""
    try:
        needed = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [
            Finding(
                "dependencies",
                "warn",
                "streamlearn is not installed here, so what it needs is not known",
                "pip install .",
            )
        ]
    found: list[str] = []
    missing: list[str] = []
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        name = _name_of(requirement)
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    findings = [Finding("dependencies", "ok", ", ".join(found))] if found else []
    if missing:
        advice = f"pip install {' '.join(missing)}"
        findings.append(Finding("dependencies", "fail", f"no {', '.join(missing)}", advice))
    return findings


def _name_of(requirement: str) -> str:
    """Return the project's name of a requirement (``numba>=0.61`` is numba's)."""
    for at, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:at]
    return requirement


def _extras() -> list[Finding]:
    """Check which optional parts are there; what is not is no fault."""
    present: list[str] = []
    absent: list[str] = []
    for extra, (module, use) in _EXTRAS.items():
        (present if util.find_spec(module) else absent).append(f"{extra} ({use})")
    told = f"present: {', '.join(present) or 'none'}; absent: {', '.join(absent) or 'none'}"
    return [Finding("extras", "ok", told)]


def _kernel_cache(machine: Machine) -> Finding:
    """Check that compiled kernels are kept, where ``compute.kernels`` puts them."""
    name = "kernel cache"
    given = machine.environ.get("NUMBA_CACHE_DIR")
    home = machine.environ.get("XDG_CACHE_HOME") or machine.environ.get("HOME", "") + "/.cache"
    directory = Path(given) if given else Path(home) / "streamlearn" / "kernels"
    above = _existing(directory)
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        return Finding(
            name,
            "warn",
            f"{directory} cannot be written: every start compiles all kernels",
            "set NUMBA_CACHE_DIR to a directory that can be written",
        )
    warm = sum(1 for _ in directory.rglob("*.nbi")) if directory.is_dir() else 0
    if not warm:
        told = f"{directory} is empty: the first run compiles the kernels (up to a minute)"
        return Finding(name, "warn", told, "nothing to do; the second run starts at once")
    return Finding(name, "ok", f"{directory}, {warm} kernels")


def _existing(path: Path) -> Path:
    """Return the nearest directory at or above a path that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _cores(machine: Machine) -> Finding:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    allowed = _cgroup_cores(machine)
    told = f"{cores}" + (f", of which a control group allows {allowed:g}" if allowed else "")
    if min(cores, allowed or cores) < 2:
        return Finding("cores", "warn", told, "with two, one parses while the other learns")
    return Finding("cores", "ok", told)


def _cgroup_cores(machine: Machine) -> float:
    """Return the cores that a container may use; 0 where there is no limit."""
    quota, _, period = machine.read("sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else 0.0


def _cpu(machine: Machine) -> Finding:
    flags: set[str] = set()
    model = "unknown"
    for line in machine.read("proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    if not flags:
        return Finding("processor", "warn", "its features cannot be read on this system")
    present = [flag for flag in _CPU_FLAGS if flag in flags]
    missing = [flag for flag in _CPU_FLAGS if flag not in flags]
    told = f"{model}: {' '.join(present) or 'none of ' + ' '.join(_CPU_FLAGS)}"
    if missing:
        advice = "all works; text is parsed faster on a processor that has them"
        return Finding("processor", "warn", f"{told}; without {' '.join(missing)}", advice)
    return Finding("processor", "ok", told)


def _memory(machine: Machine) -> Finding:
    figures = _meminfo(machine)
    total, available = figures.get("MemTotal", 0), figures.get("MemAvailable", 0)
    if not total:
        return Finding("memory", "warn", "its size cannot be read on this system")
    limit = machine.read("sys/fs/cgroup/memory.max").strip()
    told = f"{_gib(available)} of {_gib(total)} available"
    if limit.isdigit() and int(limit) < total:
        available = min(available, int(limit))
        told += f", of which a control group allows {_gib(int(limit))}"
    if available < _MEMORY_BYTES_MIN:
        advice = "free some, or bound the table: --features-max N, or -b BITS"
        return Finding("memory", "warn", told, advice)
    return Finding("memory", "ok", told)


def _meminfo(machine: Machine) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    figures: dict[str, int] = {}
    for line in machine.read("proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            figures[key] = int(number[0]) * 1024
    return figures


def _overcommit(machine: Machine) -> Finding:
    """Check that address space can be reserved without memory behind it."""
    mode = machine.read("proc/sys/vm/overcommit_memory").strip()
    if mode == "2":
        return Finding(
            "overcommit",
            "fail",
            "vm.overcommit_memory is 2: tables cannot reserve address space",
            "sysctl vm.overcommit_memory=0, or use the hashed table: -b 24",
        )
    if not mode:
        return Finding("overcommit", "warn", "vm.overcommit_memory cannot be read")
    return Finding("overcommit", "ok", f"vm.overcommit_memory is {mode}")


def _huge_pages(machine: Machine) -> Finding:
    name, knob = "huge pages", "sys/kernel/mm/transparent_hugepage/enabled"
    setting = machine.read(knob)
    if "[always]" in setting or "[madvise]" in setting:
        return Finding(name, "ok", setting.strip())
    told = setting.strip() or "not known to this system"
    advice = f"echo madvise > /{knob}: a large table is read faster"
    return Finding(name, "warn", told, advice)


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:  # not on Windows
        return Finding("open files", "warn", "the limit cannot be read on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{soft} (at most {hard})"
    if soft < _FILES_MIN:
        return Finding("open files", "warn", told, f"ulimit -n {_FILES_MIN}")
    return Finding("open files", "ok", told)


def _disk(directory: str) -> Finding:
    above = _existing(Path(directory or "."))
    if not above.is_dir():
        return Finding("disk", "fail", f"{above} is no directory", "choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        return Finding("disk", "fail", f"{above} cannot be written", "choose another --out")
    free = shutil.disk_usage(above).free
    told = f"{_gib(free)} free in {above}"
    if free < _DISK_BYTES_MIN:
        return Finding("disk", "warn", told, "a snapshot needs room beside the one it replaces")
    return Finding("disk", "ok", told)


def _source(job: JobConfig, reach: Callable[[JobConfig], Mapping[str, Any]]) -> Finding:
    named = ", ".join(job.source.uri)
    try:
        told = reach(job)
    except StreamlearnError as error:
        cause = f" ({error.cause})" if error.cause else ""
        return Finding("source", "fail", f"{error.message}{cause}", error.hint or "")
    if told.get("ok") is False:
        found = told.get("error") or f"{named} cannot be read"
        why = told.get("cause")
        advice = told.get("hint") or f"streamlearn source check {named}"
        return Finding("source", "fail", f"{found} ({why})" if why else found, advice)
    return Finding("source", "ok", f"{named} can be read")


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
