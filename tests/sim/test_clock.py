from __future__ import annotations

import asyncio

from tests.sim.clock import SimClock
from tests.sim.loop import SimLoop


def test_wall_time_drifts_and_steps_while_the_other_only_grows():
    loop = SimLoop()

    async def main():
        true, fast = SimClock(loop), SimClock(loop, rate=1.5)
        before = fast.wall()
        assert before == true.wall()
        await asyncio.sleep(10)
        assert fast.wall() - before == 15
        fast.step(-100)
        assert fast.wall() - before == -85
        assert fast.monotonic() == 10

    loop.run_until_complete(main())
    loop.close()
