"""Kernels that decide which rows a worker has copies of, and when it asks for them again."""

from __future__ import annotations

from numba import int64, njit, uint64

__all__ = ["NEVER", "plan", "renew"]

# Before every minibatch, however many a copy may lag.
NEVER = -(1 << 62)


@njit(nogil=True, cache=True)
def plan(keys, items, oldest, now, held, asked, fresh, shift, used, kept):
    """Say of each key which copy is used and which is made in the next minibatch.

    A key has one place, named by its top bits. What stands there stays while it may be used; then
    another key may take it.

    Parameters
    ----------
    keys, items : uint64[n], int64[n]
        And whether each is an item; of others no copies are made.
    oldest, now : int64
        A copy may lack what other workers did from minibatch ``oldest`` on; the next minibatch.
    held, asked, fresh : uint64[places], int64[places], int64[places]
        Of each place: its key; the minibatch for which its row was asked for last; up to which
        minibatch the copy lacks nothing. Written.
    shift : uint64
        A key's place is ``key >> shift``.
    used, kept : int64[n], int64[n]
        Written: places, -1 for none. A copy that is used is kept again: it changes.
    """
    for i in range(keys.shape[0]):
        used[i], kept[i] = -1, -1
        if items[i] == 0:
            continue
        at = int64(keys[i] >> shift)
        if held[at] != keys[i]:
            if held[at] != uint64(0) and asked[at] >= oldest:
                continue
            held[at], fresh[at] = keys[i], int64(NEVER)
        kept[i] = at
        if fresh[at] >= oldest:
            used[i] = at
        else:
            asked[at] = now


@njit(nogil=True, cache=True)
def renew(keys, used, kept, clock, held, fresh):
    """Note that rows came in which nothing is missing up to minibatch ``clock``."""
    for i in range(keys.shape[0]):
        at = kept[i]
        if at >= 0 and used[i] < 0 and held[at] == keys[i]:
            fresh[at] = max(fresh[at], clock)
