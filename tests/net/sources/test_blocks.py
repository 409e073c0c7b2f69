"""The pool of blocks: bounded, fair, and never stuck."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streamlearn.messages import BLOCK_HEADROOM_BYTES, BLOCK_TAILROOM_BYTES
from streamlearn.net.sources.blocks import BlockPool, settle

BLOCK = 4096


def pool_of(buffers: int) -> BlockPool:
    return BlockPool(BLOCK, buffers * BlockPool.bytes_of(BLOCK))


async def granted(work: asyncio.Task[object]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return work.done()


async def test_a_buffer_has_room_before_and_after_a_block_and_begins_on_a_page():
    pool = pool_of(3)
    (share,) = await pool.reserve(1)
    lease = await share.acquire()
    assert len(lease.array) >= BLOCK_HEADROOM_BYTES + BLOCK + BLOCK_TAILROOM_BYTES
    assert lease.array.ctypes.data % 4096 == 0
    assert pool.bytes_in_use == len(lease.array) == pool.buffer_bytes
    lease.release()
    assert pool.bytes_in_use == 0


async def test_a_buffer_that_came_back_is_used_again_before_a_new_one():
    pool = pool_of(3)
    (share,) = await pool.reserve(1)
    lease = await share.acquire()
    address = lease.array.ctypes.data
    lease.release()
    assert (await share.acquire()).array.ctypes.data == address


async def test_one_reader_takes_half_and_leaves_room_for_the_next():
    pool = pool_of(12)
    (first,) = await pool.reserve(2)
    for _ in range(6):
        await asyncio.wait_for(first.acquire(), 1)
    more = asyncio.create_task(first.acquire())
    assert not await granted(more)
    (second,) = await asyncio.wait_for(pool.reserve(3), 1)
    for _ in range(3):
        await asyncio.wait_for(second.acquire(), 1)
    assert pool.waits == 1
    more.cancel()
    await asyncio.wait({more})


async def test_a_share_always_gets_its_minimum():
    pool = pool_of(6)
    hungry, modest = await pool.reserve(1, 3)
    taken = 0
    while await granted(task := asyncio.create_task(hungry.acquire())):
        taken += 1
    assert 1 <= taken <= 3
    for _ in range(3):
        await asyncio.wait_for(modest.acquire(), 1)
    assert pool.buffers_in_use <= pool.capacity
    task.cancel()
    await asyncio.wait({task})


async def test_who_waits_is_served_by_a_release_in_order():
    pool = pool_of(2)
    (share,) = await pool.reserve(2)
    leases = [await share.acquire(), await share.acquire()]
    waiting = [asyncio.create_task(share.acquire()) for _ in range(2)]
    assert not await granted(waiting[0])
    leases[0].release()
    assert await granted(waiting[0])
    assert not waiting[1].done()
    leases[1].release()
    assert await granted(waiting[1])
    assert pool.buffers_in_use_max == 2


async def test_a_cancelled_wait_loses_no_buffer():
    pool = pool_of(1)
    (share,) = await pool.reserve(1)
    lease = await share.acquire()
    early, late = (asyncio.create_task(share.acquire()) for _ in range(2))
    await granted(early)
    early.cancel()
    await asyncio.wait({early})
    lease.release()  # grants to `late`, which is cancelled before it can take it
    late.cancel()
    await asyncio.wait({late})
    assert pool.buffers_in_use == 0
    (await asyncio.wait_for(share.acquire(), 1)).release()


async def test_opening_waits_until_minimums_can_be_promised_and_is_not_starved():
    pool = pool_of(4)
    (first,) = await pool.reserve(3)
    opening = asyncio.create_task(pool.reserve(2))
    assert not await granted(opening)
    leases = [await first.acquire() for _ in range(3)]
    above = asyncio.create_task(first.acquire())
    assert not await granted(above)  # stands back for who opens
    first.close()
    for lease in leases:
        lease.release()
    assert await granted(opening)
    assert await granted(above)


async def test_a_cancelled_opening_leaves_nothing_reserved():
    pool = pool_of(2)
    (first,) = await pool.reserve(2)
    waiting, granted_late = (asyncio.create_task(pool.reserve(2)) for _ in range(2))
    await granted(waiting)
    waiting.cancel()
    await asyncio.wait({waiting})
    first.close()
    granted_late.cancel()
    await asyncio.wait({granted_late})
    await asyncio.wait_for(pool.reserve(2), 1)


async def test_a_block_may_be_released_by_another_thread():
    pool = pool_of(1)
    (share,) = await pool.reserve(1)
    lease = await share.acquire()
    waiting = asyncio.create_task(share.acquire())
    await asyncio.to_thread(lease.release)
    (await asyncio.wait_for(waiting, 5)).release()


async def test_a_second_release_is_our_own_mistake():
    pool = pool_of(1)
    (share,) = await pool.reserve(1)
    lease = await share.acquire()
    lease.release()
    with pytest.raises(AssertionError, match="twice"):
        lease.release()


async def test_settle_raises_a_cancellation_only_when_the_work_has_ended():
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        ended.set()

    task = asyncio.create_task(settle(asyncio.to_thread(work)))
    await asyncio.sleep(0.01)
    task.cancel()
    assert not await granted(task)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_settle_passes_on_results_and_errors():
    assert await settle(asyncio.to_thread(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        await settle(asyncio.to_thread(lambda: 1 // 0))
