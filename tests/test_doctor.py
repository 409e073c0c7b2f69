"""What the doctor says of machines that are well, and of machines that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlearn.config import JobConfig, OutputConfig, SourceConfig
from streamlearn.doctor import Finding, Machine, examine, findings_text
from streamlearn.errors import SourceError

WELL = {
    "proc/cpuinfo": "processor : 0\nmodel name : Fast 1\nflags : avx2 avx512bw avx512_vbmi2\n",
    "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
    "proc/sys/vm/overcommit_memory": "0\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path / "root"
    for name, text in WELL.items():
        write(root, name, text)
    cache = tmp_path / "cache" / "streamlearn" / "kernels" / "0123456789abcdef"
    cache.mkdir(parents=True)
    (cache / "ftrl.push-1.py311.nbi").touch()
    return Machine(environ={"XDG_CACHE_HOME": str(tmp_path / "cache")}, root=root)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def found(machine: Machine, job: JobConfig | None = None, **reached: object) -> dict[str, Finding]:
    return {one.name: one for one in examine(machine, job or JobConfig(), lambda job: reached)}


def test_a_machine_that_is_well(machine: Machine) -> None:
    findings = found(machine)
    for name in ("processor", "memory", "overcommit", "huge pages", "kernel cache", "dependencies"):
        assert findings[name].level == "ok", findings[name]
        assert findings[name].advice == ""
    assert findings["memory"].found == "8.0 GiB of 16.0 GiB available"
    assert findings["kernel cache"].found.endswith("kernels, 1 kernels")
    assert "numba " in findings["dependencies"].found
    assert "source" not in findings


def test_a_machine_that_tells_nothing_is_warned_about_and_nothing_raises(tmp_path: Path) -> None:
    findings = found(Machine(environ={}, root=tmp_path))
    for name in ("processor", "memory", "overcommit", "huge pages"):
        assert findings[name].level == "warn"


def test_an_old_processor_is_slower_but_works(machine: Machine) -> None:
    write(machine.root, "proc/cpuinfo", "model name : Old\nflags : sse2 avx2\n")
    finding = found(machine)["processor"]
    assert finding.level == "warn"
    assert finding.found == "Old: avx2; without avx512bw avx512_vbmi2"


def test_little_memory_asks_for_a_bounded_table(machine: Machine) -> None:
    write(machine.root, "sys/fs/cgroup/memory.max", str(512 << 20))
    finding = found(machine)["memory"]
    assert finding.level == "warn"
    assert finding.found.endswith("of which a control group allows 0.5 GiB")
    assert "--features-max" in finding.advice


def test_a_container_with_one_core_is_told(machine: Machine) -> None:
    write(machine.root, "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert found(machine)["cores"].level == "warn"
    assert "allows 1" in found(machine)["cores"].found


def test_a_machine_that_reserves_nothing_fails(machine: Machine) -> None:
    write(machine.root, "proc/sys/vm/overcommit_memory", "2\n")
    finding = found(machine)["overcommit"]
    assert finding.level == "fail"
    assert "-b 24" in finding.advice


def test_huge_pages_that_are_off_are_told(machine: Machine) -> None:
    write(machine.root, "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    assert found(machine)["huge pages"].level == "warn"


def test_an_empty_kernel_cache_is_told(machine: Machine, tmp_path: Path) -> None:
    cold = Machine(
        environ={"NUMBA_CACHE_DIR": str(tmp_path / "cold")},
        root=machine.root,
    )
    finding = found(cold)["kernel cache"]
    assert finding.level == "warn"
    assert str(tmp_path / "cold") in finding.found


def test_a_kernel_cache_that_cannot_be_written_is_told(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache")}
    locked = Machine(environ, machine.root)
    finding = found(locked)["kernel cache"]
    assert finding.level == "warn"
    assert "NUMBA_CACHE_DIR" in finding.advice


def test_an_output_directory_that_cannot_be_fails(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = JobConfig(output=OutputConfig(dir=str(tmp_path / "file" / "out")))
    assert found(machine, job)["disk"].level == "fail"
    job = JobConfig(output=OutputConfig(dir=str(tmp_path / "new" / "out")))
    assert found(machine, job)["disk"].found.endswith(f"free in {tmp_path}")


def test_a_source_is_reached_where_one_is_named(machine: Machine) -> None:
    job = JobConfig(source=SourceConfig(uri=("s3://b/x",)))
    assert found(machine, job, ok=True)["source"].found == "s3://b/x can be read"
    told = found(machine, job, ok=False, error="no bucket b", cause="404", hint="create it")
    assert told["source"] == Finding("source", "fail", "no bucket b (404)", "create it")
    assert found(machine, job, ok=False)["source"].level == "fail"

    def refuse(job: JobConfig) -> dict[str, object]:
        raise SourceError("no answer from s3", cause="timed out", hint="--endpoint-url")

    (finding,) = [one for one in examine(machine, job, refuse) if one.name == "source"]
    assert finding == Finding("source", "fail", "no answer from s3 (timed out)", "--endpoint-url")


def test_findings_read_one_a_line_with_advice_below() -> None:
    findings = [Finding("cores", "ok", "2"), Finding("huge pages", "warn", "never", "turn on")]
    assert findings_text(findings).splitlines() == [
        "ok    cores       2",
        "warn  huge pages  never",
        "                  -> turn on",
    ]
    assert findings[1].as_dict() == {
        "name": "huge pages",
        "level": "warn",
        "found": "never",
        "advice": "turn on",
    }
