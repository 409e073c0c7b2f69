"""Processes of this machine: started, watched, stopped; they never outlive who started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamlearn.cluster.engines.local import LocalEngine
from streamlearn.errors import ResourceError

PATIENCE_SECONDS = 60


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    one = LocalEngine(tmp_path)
    yield one
    await one.aclose()


def waiting(directory: Path) -> list[str]:
    """Return arguments of a process that waits for ever: nobody writes what it reads."""
    pipe = directory / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    return ["source", "head", str(pipe)]


def log(directory: Path, name: str) -> str:
    return (directory / "logs" / f"{name}.log").read_text()


async def test_what_a_process_says_stands_in_its_log(engine: LocalEngine, tmp_path: Path) -> None:
    await engine.start("a", ["version"])
    ended = await engine.watch()
    assert (ended.name, ended.code, ended.said) == ("a", 0, "")
    assert log(tmp_path, "a").startswith("streamlearn ")
    assert engine.pid("a") is None


async def test_the_error_that_a_process_ended_with_is_told(
    engine: LocalEngine, tmp_path: Path
) -> None:
    await engine.start("a", ["train", "x", "--set", "model.alhpa=1", "--out", "o", "--json-logs"])
    ended = await engine.watch()
    assert ended.code == 2
    assert ended.said.startswith("`model.alhpa` is no setting")
    assert "\nhint: did you mean model.alpha?" in ended.said
    await engine.start("a", ["version"])  # the same log again
    assert (await engine.watch()).code == 0
    assert log(tmp_path, "a").count("error: ") == 1


async def test_a_process_is_stopped_by_its_name(engine: LocalEngine, tmp_path: Path) -> None:
    engine.stop("nobody")
    for at_once, code in ((True, -signal.SIGKILL), (False, -signal.SIGTERM)):
        await engine.start("a", waiting(tmp_path))
        assert engine.pid("a") is not None
        engine.stop("a", at_once=at_once)
        ended = await engine.watch()
        assert ended.code == code


async def test_closing_ends_everything(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path)
    for name in "abc":
        await engine.start(name, waiting(tmp_path))
    pids = [engine.pid(name) for name in "abc"]
    assert engine.peak_rss_bytes > 0
    await engine.aclose()
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_settings_of_the_environment_are_not_handed_on(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMLEARN_MODEL_ALPHA", "0.7")
    await engine.start("a", ["config", "show", "--json"])
    assert (await engine.watch()).code == 0
    assert json.loads(log(tmp_path, "a"))["model"]["alpha"]["value"] == 0.1


async def test_warnings_are_read_from_logs_once_and_whole_lines_only(
    engine: LocalEngine, tmp_path: Path
) -> None:
    await engine.start("a", ["version"])
    await engine.watch()
    assert engine.told() == []
    lines = [
        '{"level": "info", "message": "well"}',
        '{"level": "warning", "message": "less well"}',
        "Traceback, or anything",
        '{"level": "error", "message": "ill"}',
        '{"level": "warning", "mess',
    ]
    with (tmp_path / "logs" / "a.log").open("a") as file:
        file.write("\n".join(lines))
    found = [(one.name, one.level, one.text) for one in engine.told()]
    assert found == [("a", "warning", "less well"), ("a", "error", "ill")]
    with (tmp_path / "logs" / "a.log").open("a") as file:
        file.write('age": "late"}\n')
    assert [one.text for one in engine.told()] == ["late"]
    assert engine.told() == []


async def test_a_log_that_has_grown_large_is_put_aside(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.cluster.engines.local._LOG_BYTES_MAX", 5)
    for _ in range(2):
        await engine.start("a", ["version"])
        await engine.watch()
    assert log(tmp_path, "a") == (tmp_path / "logs" / "a.log.1").read_text()


def test_addresses_are_as_they_were_unless_someone_has_them(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path)
    first = engine.place("a", [], 2)
    assert len(set(first)) == 2
    assert LocalEngine(tmp_path).place("a", first, 2) == first
    other = engine.place("b", first, 2)  # spoken for
    assert not set(other) & set(first)
    host, _, port = first[0].rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        again = LocalEngine(tmp_path).place("a", first, 2)
    assert again[0] != first[0]
    assert again[1] == first[1]
    assert LocalEngine(tmp_path).place("a", ["10.0.0.1:7700", "x"], 1) != ["10.0.0.1:7700"]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import asyncio
        import pathlib, sys
        from streamlearn.cluster.engines.local import LocalEngine

        async def main():
            engine = LocalEngine(pathlib.Path(sys.argv[1]))
            await engine.start("a", ["source", "head", sys.argv[2]])
            while not pathlib.Path(sys.argv[1], "logs", "a.log").exists():
                await asyncio.sleep(0.01)
            print(engine.pid("a"), flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), waiting(tmp_path)[-1]], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(PATIENCE_SECONDS)
    for _ in range(100 * PATIENCE_SECONDS):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it outlived the one that started it")


async def test_a_process_that_cannot_be_started_is_told(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match="a cannot be started"):
        await engine.start("a", ["version"])
    assert engine.pid("a") is None
