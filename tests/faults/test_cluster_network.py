"""Shards and workers on a bad network, and stopped for a while: every record counts once.

A proxy delays, throttles, cuts and corrupts what goes between real processes; SIGSTOP makes one
slow without killing it; network namespaces are cut apart where the tests may make some.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.faults.cluster import SHARDS, Cluster, Log
from tests.faults.proxy import Proxy
from tests.runs import settings

SEED = int(os.environ.get("SEED", "1"))
# A peer that says nothing for 20 seconds is lost (net.limits), and its lease is a second here.
LOST_SECONDS = 24.0
long = pytest.mark.skipif(not FULL, reason=f"lasts {LOST_SECONDS:.0f} s: the full suite runs it")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log.made(tmp_path_factory.mktemp("log"), 20)


@pytest.fixture
def proxied(log: Log, tmp_path: Path) -> Iterator[tuple[Cluster, list[Proxy]]]:
    """Shards that are reached through a proxy each."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(log, tmp_path / "out"))
        yield (
            cluster,
            [
                stack.enter_context(Proxy(address, SEED + index))
                for index, address in enumerate(cluster.addresses)
            ],
        )


def start_workers(cluster: Cluster, proxies: list[Proxy]) -> None:
    for name in ("a", "b"):
        cluster.start_worker(name, [proxy.address for proxy in proxies])


def test_delays_and_a_narrow_network_cost_time_alone(
    proxied: tuple[Cluster, list[Proxy]],
) -> None:
    cluster, proxies = proxied
    for proxy, rate in zip(proxies, (0.5e6, 2e6), strict=True):
        proxy.delay_seconds, proxy.bytes_per_second = 0.002, rate
    start_workers(cluster, proxies)
    assert cluster.end() == []
    assert [proxy.connections for proxy in proxies] == [2, 2]


@pytest.mark.parametrize("durability", ["log", "snapshot"])
def test_connections_that_are_cut_lose_and_repeat_nothing(
    log: Log, tmp_path: Path, durability: str
) -> None:
    draw = random.Random(SEED)
    with ExitStack() as stack:
        flags = settings(f"tables.durability={durability}")
        cluster = stack.enter_context(Cluster(log, tmp_path / "out", flags=flags))
        proxies = [stack.enter_context(Proxy(address, SEED)) for address in cluster.addresses]
        start_workers(cluster, proxies)
        cluster.until(lambda: cluster.learned() > 0, "anything learned")
        for number in range(20):
            time.sleep(draw.uniform(0, 0.3))
            proxies[number % SHARDS].cut()
        assert cluster.end() == [], f"seed {SEED}"
        assert all(proxy.cuts >= 5 for proxy in proxies), f"seed {SEED}"


def test_corrupted_bytes_end_connections_and_reach_no_table(
    proxied: tuple[Cluster, list[Proxy]],
) -> None:
    cluster, proxies = proxied
    for proxy in proxies:
        proxy.damage = 5e-6
    start_workers(cluster, proxies)
    cluster.until(lambda: cluster.learned() > 0, "anything learned")
    cluster.until(lambda: sum(proxy.damaged for proxy in proxies) >= 6, "six damaged bytes")
    for proxy in proxies:
        proxy.damage = 0.0
    assert cluster.end() == [], f"seed {SEED}"
    assert sum(proxy.connections for proxy in proxies) > 2 * SHARDS + 2


def test_a_shard_that_stops_for_a_while_is_waited_for(log: Log, tmp_path: Path) -> None:
    with Cluster(log, tmp_path / "out") as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        cluster.until_learned(0.1)
        for number in (1, 0):
            stopped = cluster.shards[number].process
            stopped.send_signal(signal.SIGSTOP)
            time.sleep(2.0)
            stopped.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        assert cluster.end() == []


@pytest.mark.full
@long
def test_others_go_on_without_a_worker_that_stopped_and_it_comes_back(
    log: Log, tmp_path: Path
) -> None:
    with Cluster(log, tmp_path / "out") as cluster:
        slow, quick = cluster.start_worker("a"), cluster.start_worker("b")
        cluster.until_learned(0.1)
        slow.process.send_signal(signal.SIGSTOP)
        cluster.until(lambda: list(cluster.status()["clocks"]) == ["b"], "without it")
        behind = cluster.learned()
        cluster.until(lambda: cluster.learned() > behind, "going on")
        slow.process.send_signal(signal.SIGCONT)
        assert cluster.end() == []
        assert slow.process.returncode == quick.process.returncode == 0


# --- network namespaces


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def apart() -> Iterator[tuple[str, str, str]]:
    """A network namespace: its name, this side's address, and this side's device."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2)")
    name, near, far = f"sl{os.getpid()}", f"sln{os.getpid()}", f"slf{os.getpid()}"
    subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        try:
            ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no pairs of network devices here: {error.stderr.decode().strip()}")
        ip("address", "add", f"{subnet}.1/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "address", "add", f"{subnet}.2/24", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, f"{subnet}.1", near
    finally:
        subprocess.run(["ip", "link", "delete", near], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.parametrize("seconds", [3.0, pytest.param(LOST_SECONDS + 4, marks=long)])
def test_a_host_that_is_cut_off_comes_back(
    log: Log, tmp_path: Path, apart: tuple[str, str, str], seconds: float
) -> None:
    name, host, device = apart
    token = tmp_path / "token"
    token.write_text("correct horse battery staple and more\n")
    token.chmod(0o600)
    flags = ["--token-file", str(token)]
    with Cluster(log, tmp_path / "out", host, flags) as cluster:
        far = cluster.start_worker("far", before=["ip", "netns", "exec", name])
        cluster.start_worker("near")
        cluster.until(lambda: len(cluster.status()["clocks"]) == 2, "both")
        ip("link", "set", device, "down")
        time.sleep(seconds)
        ip("link", "set", device, "up")
        assert cluster.end() == []
        assert far.process.returncode == 0
