"""A follower that runs: it equals its shard, whatever becomes of either."""

from __future__ import annotations

from typing import Any

import pytest

from streamlearn.errors import PeerLostError, RefusedError
from streamlearn.net.client import Link
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.network import TcpNetwork
from streamlearn.net.security import Secrets
from streamlearn.protocol import Pulled
from tests.cluster_parts import LIMITS, Cluster, place
from tests.shard_parts import keys_of, mark, pull, push, weights


async def link(address: str, role: str = "worker") -> Link:
    """Connect to a shard or follower."""
    return await Link.open(
        address,
        cluster="test",
        peer=Peer(role, "a"),
        secrets=Secrets(),
        network=TcpNetwork(Secrets()),
        limits=LIMITS,
        nonce=place().nonce,
        counters=Counters(),
    )


async def pushes(cluster: Cluster, count: int, gradient: float = 1.0) -> None:
    """Push so many minibatches."""
    of = cluster.specs[0]
    one = await link(cluster.addresses[0])
    known = cluster.shard(0).marks.get("p")
    begun = known.sequence if known else 0
    for sequence in range(begun + 1, begun + count + 1):
        keys = keys_of(of, *range(sequence, sequence + 5))
        await one.ask(push(of, keys, [gradient] * 5, clock=sequence, at=mark(sequence)))
    await one.close()


@pytest.mark.parametrize("durability", ["log", "snapshot"])
async def test_follower_equals_its_shard_also_when_that_comes_back_with_less(tmp_path, durability):
    async with Cluster(tmp_path, 1, durability=durability) as cluster:
        follower = await cluster.start_follower(0)
        await pushes(cluster, 10)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(0).digest()
        await cluster.kill_shard(0)
        await cluster.start_shard(0)
        assert (cluster.shard(0).lsn == 0) == (durability == "snapshot")
        # without a log, other records take the numbers of those that are gone
        await pushes(cluster, 15, gradient=-3.0)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(0).digest()
        # with one, the records behind its own were enough
        assert follower.images == (1 if durability == "log" else 2)


async def test_readers_are_answered_and_writers_are_not(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        follower = await cluster.start_follower(0)
        await pushes(cluster, 3)
        await cluster.caught_up(follower)
        of = cluster.specs[0]
        keys = keys_of(of, 1, 2, 3)
        answers: list[Any] = []
        for address in (cluster.addresses[0], follower.address):
            reader = await link(address, "reader")
            answers.append(await reader.ask(pull(of, keys, incarnation=0)))
            await reader.close()
        assert isinstance(answers[0], Pulled)
        assert weights(answers[0]) == weights(answers[1]) != [0.0] * 3
        writer = await link(follower.address)
        with pytest.raises(RefusedError) as caught:
            await writer.ask(push(of, keys))
        assert caught.value.code == "forbidden"
        await writer.close()


async def test_follower_without_its_state_says_so(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        await cluster.kill_shard(0)
        follower = await cluster.start_follower(0)
        reader = await link(follower.address, "reader")
        with pytest.raises(RefusedError) as caught:
            await reader.ask(pull(cluster.specs[0], keys_of(cluster.specs[0], 1), incarnation=0))
        assert (caught.value.code, caught.value.again) == ("busy", True)
        await cluster.start_shard(0)
        await pushes(cluster, 2)
        await cluster.caught_up(follower)
        assert follower.lag == 0
        await reader.close()


async def test_what_cannot_be_applied_has_the_state_sent_anew(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        follower = await cluster.start_follower(0)
        await pushes(cluster, 3)
        await cluster.caught_up(follower)
        follower.shard.lsn += 7  # it is not what the shard believes
        await pushes(cluster, 3)
        await cluster.until(lambda: follower.images == 2)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(0).digest()


async def test_follower_that_stops_is_reached_no_more(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        follower = await cluster.start_follower(0)
        await follower.stop()
        assert follower.state == "ended"
        with pytest.raises(PeerLostError):
            await link(follower.address, "reader")
