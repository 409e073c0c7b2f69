"""Resolving keys to slots ahead of learning: what a parse lane does for the learn lane behind it.

The lane that parses finds and inserts the rows of a minibatch while the lane that learns is still
at the minibatches before; the learn lane then goes straight to the slots. The first owns the words
that hold keys, the second those that hold columns and counts, so the two share cache lines but no
word. A segment is laid out anew only while nothing is on its way (the caller sees to that), so
slots stay valid until they are used.
"""

from __future__ import annotations

from numba import int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.table import FENCE, line_of, seek

__all__ = ["CHUNK", "MEMO_BITS", "resolve"]

# Slots that were resolved lately, direct-mapped: 32,768 keys of a click log are five in six of
# those that it names, and 384 KB stay in a core's second cache. The lines of hot rows are then left
# to the lane that writes them.
MEMO_BITS = 15
# Keys looked up at a time: the lines of those that miss (some 700) are on their way while the rest
# is looked up.
CHUNK = 4096


@njit(nogil=True, cache=True, error_model="numpy")
def resolve(
    keys, n, words, places, segment_of, inserted, loads, limits, memo_keys, memo_slots, missing,
    slots, state,
):  # fmt: skip
    """Find the slots of a minibatch's keys, inserting those that the table does not hold.

    Parameters
    ----------
    keys : uint64[nnz]
        ``keys[:n]`` count.
    words, places, segment_of, inserted, loads, limits
        The table, as for ``kernels.logistic.learn_exact``.
    memo_keys, memo_slots : uint64[2 ** MEMO_BITS], uint32[2 ** MEMO_BITS]
        Keys resolved before and their slots; the caller forgets them (zeros ``memo_keys``) whenever
        a segment has been laid out anew.
    missing : int32[>= 4096]
        Scratch.
    slots : uint32[nnz]
        Written.
    state : int64[1]
        Set to -1, or to a segment that must be made room in; then every key must be resolved again.
    """
    base = int64(words.ctypes.data)
    shift = uint64(40 - MEMO_BITS)
    mask = uint64((1 << MEMO_BITS) - 1)
    for start in range(0, n, CHUNK):
        end = min(start + CHUNK, n)
        misses = 0
        for i in range(start, end):
            key = keys[i]
            at = int64((key >> shift) & mask)
            slots[i] = memo_slots[at]
            missing[misses] = i
            if memo_keys[at] != key:
                line = line_of(key, places)
                slots[i] = uint32(line)
                prefetch(base + (line << 6))
                misses += 1
        for m in range(misses):
            i = int64(missing[m])
            key = keys[i]
            line = int64(slots[i])
            second = int64(words[line * 8 + 4] == key)
            slot = line * 2 + second
            if second | int64(words[line * 8] == key) == 0:
                slot = seek(words, key, line)
                if slot < 0:
                    slot = ~slot
                    segment = int64(segment_of[int64(key >> uint64(56))])
                    crowded = words[slot * 4] == FENCE
                    if not crowded:
                        words[slot * 4] = key
                        inserted[0] += 1
                        loads[segment] += 1
                    if crowded or loads[segment] > limits[segment]:
                        state[0] = segment
                        return
            slots[i] = uint32(slot)
            at = int64((key >> shift) & mask)
            memo_keys[at] = key
            memo_slots[at] = uint32(slot)
    state[0] = -1
