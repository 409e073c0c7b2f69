"""Floats to one byte each in one pass: scales of blocks, codes by chance, what is kept back.

What ``compute.rounding`` does with tensors in some twenty passes, to the bit.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int8, njit, uint32

__all__ = ["scales_of", "write"]


@njit(nogil=True, cache=True, error_model="numpy")
def scales_of(values, code_max, scale_min, out):
    """Write each block's scale: its largest magnitude over ``code_max``, 0 below ``scale_min``.

    Parameters
    ----------
    values : float32[blocks, block]
    code_max, scale_min : float32
    out : float32[blocks]
        NaN where a value is NaN, infinite where one is.
    """
    for b in range(values.shape[0]):
        block = values[b]
        most, wrong = float32(0), uint32(0)
        for i in range(block.shape[0]):
            size = abs(block[i])
            most = max(most, size)
            wrong |= uint32(size != size)
        scale = float32(most / code_max)
        if scale < scale_min:
            scale = float32(0)
        out[b] = float32(np.nan) if wrong != 0 else scale


@njit(nogil=True, cache=True, error_model="numpy")
def write(values, scales, first, second, at, codes):
    """Write the codes of blocks, and leave in ``values`` what rounding kept back.

    code = floor(x/s) + (u < x/s - floor(x/s)), with u by counter: see ``compute.rounding.noise``.

    Parameters
    ----------
    values : float32[blocks, block]
        Changed in place.
    scales : float32[blocks]
        Finite.
    first, second : uint32
        The key's words.
    at : uint32
        The place of the first value.
    codes : int8[blocks, block]
    """
    place = uint32(at)
    for b in range(values.shape[0]):
        block, out, scale = values[b], codes[b], scales[b]
        if scale == 0:
            out[:] = 0
            place = uint32(place + uint32(block.shape[0]))
            continue
        for i in range(block.shape[0]):
            x = uint32(uint32(place + uint32(i)) + first)
            x = uint32(x ^ uint32(x >> uint32(16)))
            x = uint32(x * uint32(0x7FEB352D))
            x = uint32(x ^ uint32(x >> uint32(15)))
            x = uint32(x ^ second)
            x = uint32(x * uint32(0x846CA68B))
            x = uint32(x ^ uint32(x >> uint32(16)))
            dice = float32(np.int32(x >> uint32(8))) * float32(2.0**-24)
            code = float32(block[i] / scale)
            low = np.floor(code)
            if dice < float32(code - low):
                low = float32(low + float32(1))
            out[i] = int8(low)
            block[i] = float32(block[i] - float32(low * scale))
        place = uint32(place + uint32(block.shape[0]))
