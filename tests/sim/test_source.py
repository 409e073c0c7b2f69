from __future__ import annotations

from random import Random

from streamlearn.messages import Position
from tests.sim.loop import SimLoop
from tests.sim.source import SimSource, records


def test_blocks_are_the_partition_from_the_position_on():
    made = records(1, 3, 20, 8)
    loop = SimLoop()

    async def main():
        source = SimSource(made, Random(1), lambda: 0.5)
        for partition in await source.partitions():
            text = made.texts[partition.uri]
            for offset in (0, text.index(b"\n") + 1):
                blocks = [one async for one in source.read(partition, Position(offset=offset))]
                parts = [bytes(one.buffer[one.start : one.end]) for one in blocks]
                assert b"".join(parts) == text[offset:]
                assert [one.last for one in blocks] == [False] * (len(blocks) - 1) + [True]

    loop.run_until_complete(main())
    assert loop.time() > 1
    loop.close()


def test_what_it_must_add_up_to_follows_from_the_seed():
    one, same, other = records(1, 3, 20, 8), records.__wrapped__(1, 3, 20, 8), records(2, 3, 20, 8)
    assert one == same != other
    assert one.minibatches > 10
    for name, ends in one.ends.items():
        assert ends[-1] == (len(one.texts[name]), one.texts[name].count(b"\n"), True)
    assert one.bad > 0
    assert sum(one.counts.values()) > one.good
