"""The seed of a field whose name turns up in the data: BLAKE2b in a kernel.

Formats with a schema compute their seeds beforehand; only those that meet names on the way (JSON
without columns) need this. It takes about half a microsecond, so its callers remember what it said.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64

from streamlearn.compute.kernels.bits import load8

__all__ = ["name_seed"]

# RFC 7693: initial vector, and the order in which each round takes the words of a block.
_IV = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)
_ORDER = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.int64,
)
# Which four of the sixteen words each step of a round mixes: columns, then diagonals.
_QUADS = np.array(
    [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ],
    np.int64,
)
# Parameter block: eight bytes of digest, no key, fan-out and depth 1, and whose hash it is.
_PARAMETERS = np.array(
    [0x01010008, 0, 0, 0, 0, 0, *np.frombuffer(b"streamlearn".ljust(16, b"\0"), "<u8").tolist()],
    np.uint64,
)
_BLOCK_BYTES = 128


@njit(nogil=True, cache=True)
def _rotate(word, bits):
    return (word >> uint64(bits)) | (word << uint64(64 - bits))


@njit(nogil=True, cache=True)
def name_seed(address, length):
    """Return the seed of the field with this name: what ``field_seed`` of its text says.

    BLAKE2b-64 (RFC 7693) personalised with ``streamlearn``, made odd. O(length).

    Parameters
    ----------
    address, length : int64
        Where the name's UTF-8 stands.
    """
    state = np.empty(8, np.uint64)
    for i in range(8):
        state[i] = _IV[i] ^ _PARAMETERS[i]
    block = np.empty(16, np.uint64)
    v = np.empty(16, np.uint64)
    done = int64(0)
    while True:
        last = length - done <= _BLOCK_BYTES
        size = length - done if last else _BLOCK_BYTES
        for i in range(16):
            block[i] = uint64(0)
        for i in range(size):
            block[i >> 3] |= load8(address + done + i) << uint64(8 * (i & 7))
        done += size
        for i in range(8):
            v[i] = state[i]
            v[i + 8] = _IV[i]
        v[12] ^= uint64(done)
        if last:
            v[14] = ~v[14]
        for turn in range(12):
            for step in range(8):
                a, b, c, d = _QUADS[step, 0], _QUADS[step, 1], _QUADS[step, 2], _QUADS[step, 3]
                first, second = _ORDER[turn % 10, 2 * step], _ORDER[turn % 10, 2 * step + 1]
                v[a] = v[a] + v[b] + block[first]
                v[d] = _rotate(v[d] ^ v[a], 32)
                v[c] = v[c] + v[d]
                v[b] = _rotate(v[b] ^ v[c], 24)
                v[a] = v[a] + v[b] + block[second]
                v[d] = _rotate(v[d] ^ v[a], 16)
                v[c] = v[c] + v[d]
                v[b] = _rotate(v[b] ^ v[c], 63)
        for i in range(8):
            state[i] ^= v[i] ^ v[i + 8]
        if last:
            return state[0] | uint64(1)
