from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.sim.loop import Owner, SimLoop
from tests.sim.network import Fabric, Weather
from tests.sim.trace import Trace


class Peer(asyncio.BufferedProtocol):
    """Keeps what it hears; can answer it."""

    def __init__(self, echo=False, room=50):
        self.echo = echo
        self.memory = bytearray(room)
        self.heard = bytearray()
        self.transport = None
        self.lost = asyncio.get_running_loop().create_future()
        self.eof = False
        self.paused = 0
        self.resumed = 0

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.memory

    def buffer_updated(self, nbytes):
        self.heard += self.memory[:nbytes]
        if self.echo:
            self.transport.write(self.memory[:nbytes])

    def eof_received(self):
        self.eof = True

    def connection_lost(self, exc):
        self.lost.set_result(exc)

    def pause_writing(self):
        self.paused += 1

    def resume_writing(self):
        self.resumed += 1


class Net:
    def __init__(self, seed=1, **weather):
        self.loop = SimLoop()
        self.trace = Trace(self.loop.time)
        self.fabric = Fabric(self.loop, Random(seed), self.trace)
        self.fabric.weather = Weather(**weather)
        self.a, self.b = self.fabric.host("a"), self.fabric.host("b")
        self.accepted = []

    async def pair(self, **keywords):
        def accept():
            self.accepted.append(Peer(**keywords))
            return self.accepted[-1]

        listener = await self.b.listen("b:7", accept)
        peer = await self.a.connect(listener.address, lambda: Peer(**keywords))
        await asyncio.sleep(0.1)
        return peer, self.accepted[-1]

    def run(self, main):
        result = self.loop.run_until_complete(main(), seconds_max=1000)
        assert not self.loop.problems
        self.loop.close()
        return result


@pytest.mark.parametrize("seed", range(20))
def test_bytes_come_whole_and_in_order_however_they_are_cut(seed):
    net = Net(seed, jitter_seconds=0.1, spike_share=0.2, spike_seconds=3, piece_bytes_max=70)

    async def main():
        near, far = await net.pair()
        said = bytes(Random(seed).randbytes(3000))
        for at in range(0, 3000, 500):
            near.transport.write(said[at : at + 500])
            await asyncio.sleep(0.01)
        near.transport.writelines([b"x", memoryview(b"yz")])
        near.transport.close()
        assert await near.lost is None
        await far.lost
        assert far.heard == said + b"xyz"
        assert far.eof

    net.run(main)


def test_answers_come_back():
    net = Net(jitter_seconds=0.01)

    async def main():
        near, far = await net.pair()
        far.echo = True
        near.transport.write(b"hello")
        await asyncio.sleep(5)
        assert near.heard == b"hello"

    net.run(main)


def test_connections_overtake_one_another():
    net = Net(3, jitter_seconds=1.0)

    async def main():
        order = []

        class Notes(Peer):
            def buffer_updated(self, nbytes):
                order.append(self.memory[0])

        listener = await net.b.listen("b:7", Notes)
        peers = [await net.a.connect(listener.address, Peer) for _ in range(10)]
        for number, peer in enumerate(peers):
            peer.transport.write(bytes([number]))
        await asyncio.sleep(100)
        assert sorted(order) == list(range(10)) != order

    net.run(main)


def test_a_reader_that_pauses_stops_the_writer():
    net = Net()

    async def main():
        near, far = await net.pair()
        far.transport.pause_reading()
        for _ in range(40):
            near.transport.write(bytes(10_000))
            await asyncio.sleep(0.01)
        assert (near.paused, near.resumed) == (1, 0)
        assert not far.heard
        assert near.transport.get_write_buffer_size() > 300_000
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert len(far.heard) == 400_000
        assert (near.paused, near.resumed) == (1, 1)

    net.run(main)


def test_nobody_listens():
    net = Net()

    async def main():
        with pytest.raises(ConnectionRefusedError):
            await net.a.connect("b:9", Peer)

    net.run(main)


def test_an_address_is_listened_at_once():
    net = Net()

    async def main():
        listener = await net.b.listen("b:7", Peer)
        with pytest.raises(OSError, match="in use"):
            await net.b.listen("b:7", Peer)
        await listener.close()
        await net.b.listen("b:7", Peer)
        assert (await net.b.listen("b:0", Peer)).address != "b:0"

    net.run(main)


def test_a_cut_holds_bytes_back_until_it_heals_in_that_direction_only():
    net = Net()

    async def main():
        near, far = await net.pair()
        net.fabric.cut("a", "b")
        near.transport.write(b"late")
        far.transport.write(b"now")
        await asyncio.sleep(5)
        assert (near.heard, far.heard) == (b"now", b"")
        net.fabric.heal("a", "b")
        await asyncio.sleep(1)
        assert far.heard == b"late"

    net.run(main)


def test_a_cut_that_lasts_ends_the_senders_side_only():
    net = Net()

    async def main():
        near, far = await net.pair()
        net.fabric.cut("a", "b")
        near.transport.write(b"lost")
        assert isinstance(await near.lost, TimeoutError)
        assert net.loop.time() > 30
        net.fabric.heal_all()
        await asyncio.sleep(100)
        assert not far.lost.done()
        far.transport.write(b"?")
        assert isinstance(await far.lost, ConnectionResetError)

    net.run(main)


def test_connecting_over_a_cut_times_out():
    net = Net()

    async def main():
        await net.b.listen("b:7", Peer)
        net.fabric.cut("b", "a")
        with pytest.raises(TimeoutError):
            await net.a.connect("b:7", Peer)
        assert net.loop.time() > 10

    net.run(main)


def test_a_reset_reaches_both_ends():
    net = Net()

    async def main():
        near, far = await net.pair()
        assert net.fabric.reset("b") == 1
        assert isinstance(await far.lost, ConnectionResetError)
        assert isinstance(await near.lost, ConnectionResetError)
        near.transport.write(b"nobody")
        await asyncio.sleep(1)
        assert net.fabric.connections == 0

    net.run(main)


@pytest.mark.parametrize("fault", ["reset", "half_reset", "corrupt"])
def test_faults_of_pieces_fire(fault):
    net = Net(**{f"{fault}_share": 1.0})

    async def main():
        near, far = await net.pair()
        near.transport.write(b"hello")
        await asyncio.sleep(100)
        return near, far

    near, far = net.run(main)
    assert net.fabric.fired[fault]
    assert far.heard != b"hello"
    if fault == "half_reset":
        assert near.lost.done() != far.lost.done()


def _frame(head):
    return head[0]


def test_frames_are_tapped_whole_and_sent_twice():
    net = Net(duplicate_share=1.0)
    tapped = []
    net.fabric.frame_bytes = _frame
    net.fabric.tap = lambda pipe, frame: tapped.append((pipe.by_client, frame))

    async def main():
        near, far = await net.pair()
        near.transport.write(b"\x03ab\x02")
        near.transport.write(b"c")
        await asyncio.sleep(1)
        return far

    far = net.run(main)
    assert far.heard == b"\x03ab\x03ab\x02c\x02c"
    assert tapped == [(True, b"\x03ab"), (True, b"\x02c")]


def test_a_killed_process_loses_its_connections_and_listeners():
    net = Net()
    owner = Owner("b")

    async def main():
        with net.loop.as_owner(owner):
            _near, _ = await net.pair()
        other = await net.a.connect("b:7", Peer)
        owner.kill()
        net.fabric.kill(owner, silently=False)
        assert isinstance(await other.lost, ConnectionResetError)
        with pytest.raises(ConnectionRefusedError):
            await net.a.connect("b:7", Peer)

    net.run(main)


def test_a_machine_without_power_says_nothing():
    net = Net()
    owner = Owner("b")

    async def main():
        with net.loop.as_owner(owner):
            listener = await net.b.listen("b:7", Peer)
        near = await net.a.connect(listener.address, Peer)
        owner.kill()
        net.fabric.kill(owner, silently=True)
        await asyncio.sleep(100)
        assert not near.lost.done()
        near.transport.write(b"?")
        await near.lost

    net.run(main)


def test_a_frozen_process_reads_once_it_is_thawed():
    net = Net()
    owner = Owner("b")

    async def main():
        peers = []

        def accept():
            peers.append(Peer())
            return peers[-1]

        with net.loop.as_owner(owner):
            await net.b.listen("b:7", accept)
        net.loop.freeze(owner)
        near = await net.a.connect("b:7", Peer)
        near.transport.write(bytes(200_000))
        await asyncio.sleep(10)
        assert not peers
        assert near.paused == 1
        net.loop.thaw(owner)
        await asyncio.sleep(1)
        assert len(peers[0].heard) == 200_000

    net.run(main)


def test_one_seed_is_one_trace():
    def digest(seed):
        net = Net(seed, jitter_seconds=0.1, reset_share=0.05, piece_bytes_max=100)

        async def main():
            near, _ = await net.pair(echo=True)
            near.transport.write(b"to and fro")
            await asyncio.sleep(3)

        net.run(main)
        return net.trace.digest

    assert digest(5) == digest(5) != digest(6)
