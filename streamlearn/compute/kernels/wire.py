"""Columns of keys, values and counts between arrays and bytes; the kernels of ``columns``.

Every kernel that reads a peer's bytes is given their whole size and proves, before its loop, that
the loop stays inside them; what else is wrong it says by a number, and its caller words it. Bytes
are little-endian. Nothing here is compiled with fastmath, so both ends compute the same floats.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, int64, njit, types, uint8, uint32, uint64
from numba.extending import intrinsic

from streamlearn.compute.kernels.bits import (
    clz,
    ctz,
    dice,
    float_bits,
    load64,
    popcount,
    store64,
)

__all__ = [
    "add_residuals",
    "count_bits",
    "drop_zeros",
    "expand_zeros",
    "fill_counts",
    "finite",
    "halve",
    "keep_residuals",
    "pack_bytes",
    "pack_counts",
    "pack_keys",
    "sign_bytes",
    "unhalve",
    "unpack_bytes",
    "unpack_keys",
    "unsent_zeroed",
]


@intrinsic
def bits_float(_context: Any, word: Any) -> Any:
    """Return the float32 that 32 bits are."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@njit(nogil=True, cache=True)
def pack_keys(keys, base, width, out):
    """Write keys as Elias-Fano code; return False, and write nothing, where they are not right.

    Elias ("Efficient Storage and Retrieval by Content and Address of Static Files", 1974) splits
    v[i] = (keys[i] - base) / 2 into ``width`` low bits, stored side by side, and the rest, stored
    as bit ``(v[i] >> width) + i`` of a bitmap. O(count).

    Parameters
    ----------
    keys : uint64[count]
        count > 0; strictly increasing, odd, none below ``base``, else False.
    base : uint64
        Odd.
    width : int64
        0 to 56, so that a field begins and ends within some eight bytes.
    out : uint8[1 + ceil(count * width / 8) + 8 * words]
        ``width``, low bits, bitmap of as many words as its highest bit asks for.
    """
    count = keys.shape[0]
    wrong = (keys[0] & uint64(1)) ^ uint64(1)
    for i in range(1, count):
        wrong |= uint64(keys[i] <= keys[i - 1]) | ((keys[i] & uint64(1)) ^ uint64(1))
    if wrong != uint64(0) or keys[0] < base:
        return False
    start = int64(out.ctypes.data) + 1
    out[0] = uint8(width)
    mask = (uint64(1) << uint64(width)) - uint64(1)
    # A field is stored with the bits before it in its first byte. What a store writes past the
    # field is written over by the next one, or by the bitmap, which has at least eight bytes.
    carry = uint64(0)
    bit = int64(0)
    for i in range(count):
        field = (keys[i] - base) >> uint64(1) & mask
        word = (field << uint64(bit & 7)) | carry
        store64(start + (bit >> 3), word)
        after = bit + width
        carry = word >> uint64(((after >> 3) - (bit >> 3)) << 3)
        bit = after
    bitmap = start + ((bit + 7) >> 3)
    word = uint64(0)
    shift = uint64(width) + uint64(1)
    for i in range(count):
        at = int64((keys[i] - base) >> shift) + i
        while (at >> 6) << 3 > bitmap - start - ((bit + 7) >> 3):
            store64(bitmap, word)
            word = uint64(0)
            bitmap += 8
        word |= uint64(1) << uint64(at & 63)
    store64(bitmap, word)
    return True


@njit(nogil=True, cache=True)
def unpack_keys(data, count, base, last, out):
    """Read what :func:`pack_keys` wrote; return 0, or what is wrong with it.

    1: the bitmap has not ``count`` bits, or ends in a word of zeros; 2: a key is above the range;
    3: keys do not increase; 4: bits past the last field are set. O(count + size of the bitmap).

    Parameters
    ----------
    data : uint8[size]
        data[0] <= 56 and size - 1 - ceil(count * data[0] / 8) is a positive multiple of 8: the
        caller has looked. Nothing else is taken for granted.
    count : int64
        count > 0.
    base, last : uint64
        Odd key that v = 0 means, and the largest v allowed, below 2**63.
    out : uint64[count]
        Keys; all of them in order and in range where 0 is returned.
    """
    width = int64(data[0])
    start = int64(data.ctypes.data) + 1
    bitmap = start + ((count * width + 7) >> 3)
    words = (data.shape[0] - 1 - ((count * width + 7) >> 3)) >> 3
    ones = int64(0)
    for w in range(words):
        ones += int64(popcount(load64(bitmap + 8 * w)))
    final = load64(bitmap + 8 * (words - 1))
    if ones != count or final == uint64(0):
        return 1
    # the highest bit is the last key's: no field below can overflow once this one does not
    highest = 64 * words - 1 - int64(clz(final)) - (count - 1)
    if uint64(highest) > last >> uint64(width):
        return 2
    mask = (uint64(1) << uint64(width)) - uint64(1)
    if (count * width) & 7:
        spill = uint64(data[1 + ((count * width) >> 3)])
        if spill >> uint64((count * width) & 7) != uint64(0):
            return 4
    wrong = uint64(0)
    least = uint64(0)
    at = int64(0)
    bit = int64(0)
    for w in range(words):
        word = load64(bitmap + 8 * w)
        while word != uint64(0):
            high = uint64((w << 6) + int64(ctz(word)) - at)
            word &= word - uint64(1)
            low = (load64(start + (bit >> 3)) >> uint64(bit & 7)) & mask
            bit += width
            v = (high << uint64(width)) | low
            wrong |= uint64(v < least)
            least = v + uint64(1)
            out[at] = base + (v << uint64(1))
            at += 1
    if wrong != uint64(0):
        return 3
    if least - uint64(1) > last:
        return 2
    return 0


@njit(nogil=True, cache=True, inline="always")
def _stir(state, word):
    """Return a state that a word has gone into: a bijection of either for any value of the other.

    Two multiplications: with one, a word's high bits reached so few bits of the state that two
    flipped bits of a column could cancel.
    """
    state ^= word
    state = (state ^ (state >> uint64(32))) * uint64(0x9E3779B97F4A7C15)
    return (state ^ (state >> uint64(29))) * uint64(0xBF58476D1CE4E5B9)


@njit(nogil=True, cache=True)
def sign_bytes(data):
    """Return 64 bits that every byte of a uint8[size] goes into, in its place.

    Four lanes of words, since one would wait for its multiplications; then the lanes, the words and
    bytes left and the size go into one of them. So two columns of one size that differ in one word
    have different signatures, and others the same one with a chance of about 2**-64. Not a defence
    against forgery. O(size).
    """
    size = data.shape[0]
    at = int64(data.ctypes.data)
    a, b = uint64(1), uint64(2)
    c, d = uint64(3), uint64(4)
    for _ in range(size >> 5):
        a = _stir(a, load64(at))
        b = _stir(b, load64(at + 8))
        c = _stir(c, load64(at + 16))
        d = _stir(d, load64(at + 24))
        at += 32
    state = _stir(_stir(_stir(a, b), c), d)
    for _ in range((size & 31) >> 3):
        state = _stir(state, load64(at))
        at += 8
    tail = uint64(0)
    for i in range(size & ~7, size):
        tail |= uint64(data[i]) << uint64(8 * (i & 7))
    state = _stir(_stir(state, tail), uint64(size))
    return state ^ (state >> uint64(32))


@njit(nogil=True, cache=True)
def finite(bits):
    """Return whether no float32 of ``bits`` (uint32[n]) is infinite or NaN."""
    wrong = uint32(0)
    for i in range(bits.shape[0]):
        wrong |= uint32((bits[i] & uint32(0x7F800000)) == uint32(0x7F800000))
    return wrong == uint32(0)


@njit(nogil=True, cache=True)
def halve(values, out):
    """Write float16 of float32, rounded to the nearest (half to even), large ones to 65504.

    Return False where one is infinite or NaN. ``values`` float32[n], ``out`` uint16[n].
    """
    wrong = uint32(0)
    for i in range(values.shape[0]):
        word = uint32(float_bits(values[i]))
        size = word & uint32(0x7FFFFFFF)
        wrong |= uint32(size >= uint32(0x7F800000))
        # 2**-14 and above: add half of what is cut off, less one where the rest is even
        normal = uint32(size + uint32(0xFFF) + ((size >> uint32(13)) & uint32(1))) >> uint32(13)
        normal = min(uint32(normal - uint32(112 << 10)), uint32(0x7BFF))
        # below: the spacing is 2**-24, which is what float32 has at 0.5
        small = uint32(float_bits(bits_float(size) + float32(0.5))) - uint32(0x3F000000)
        half = small if size < uint32(0x38800000) else normal
        out[i] = half | ((word >> uint32(16)) & uint32(0x8000))
    return wrong == uint32(0)


@njit(nogil=True, cache=True)
def unhalve(halves, out):
    """Write float32 of float16, exactly; return False where one is infinite or NaN.

    ``halves`` uint16[n], ``out`` float32[n].
    """
    wrong = uint32(0)
    scale = float32(2.0**112)
    for i in range(halves.shape[0]):
        word = uint32(halves[i])
        wrong |= uint32((word & uint32(0x7C00)) == uint32(0x7C00))
        size = bits_float(uint32((word & uint32(0x7FFF)) << uint32(13))) * scale
        out[i] = -size if word & uint32(0x8000) else size
    return wrong == uint32(0)


@njit(nogil=True, cache=True)
def pack_bytes(values, bits, seed, out):
    """Write values as one byte each, rounded without bias; return False where one is not finite.

    A block of 256 values has a base exponent e, one byte; a value is its sign, four bits of
    exponent E and three of mantissa M, and means

        2**(e - 130) * M                    where E = 0
        2**(e - 130) * (8 + M) * 2**(E - 1) elsewhere

    with e chosen so that E = 15 holds the largest. Between two neighbours of that grid a value goes
    to either with the chance that makes its mean right, in steps of 2**-20 of their distance.

    Parameters
    ----------
    values : float32[n]
    bits : uint32[n]
        The same memory.
    seed : uint64
        Same seed, same bytes.
    out : uint8[ceil(n / 256) + n]
        Base exponents, then codes.

    Notes
    -----
    Scaling by powers of two is exact at both ends, so nothing is rounded but on purpose. Values
    above 1.875 * 2**127 become that. e is at least 4, where a step of the grid is float32's
    smallest normal number. O(n).
    """
    n = values.shape[0]
    blocks = (n + 255) >> 8
    for block in range(blocks):
        # slices, since the compiler takes an index that begins above 0 for one that may be negative
        first, end = block << 8, min((block + 1) << 8, n)
        part, words, codes = values[first:end], bits[first:end], out[blocks + first : blocks + end]
        top = uint32(0)
        for i in range(end - first):
            top = max(top, uint32(words[i] & uint32(0x7FFFFFFF)))
        if top >= uint32(0x7F800000):
            return False
        # what would be rounded up past 1.875 of its power of two counts for the next one
        exponent = int64(uint32(top + uint32(0xFFFFF)) >> uint32(23)) - int64(14)
        exponent = min(max(exponent, int64(4)), int64(240))
        out[block] = uint8(exponent)
        scale = bits_float(uint32(257 - exponent) << uint32(23))
        # stirred twice: seeds that follow one another must not share each other's blocks
        counter = uint32(_stir(_stir(uint64(5), seed), uint64(block)) >> uint64(32))
        for i in range(end - first):
            r = dice(counter, i)
            size = abs(part[i]) * scale
            small = uint32(uint32(min(size, float32(8)) * float32(1048576)) + r) >> uint32(20)
            large = uint32(uint32(float_bits(size)) + r) >> uint32(20)
            code = small if size < float32(8) else min(large - uint32(1032), uint32(127))
            sign = uint32(words[i] >> uint32(24)) & uint32(128)
            codes[i] = uint8(code | sign) if code != uint32(0) else uint8(0)
    return True


@njit(nogil=True, cache=True)
def unpack_bytes(data, grid, out):
    """Read what :func:`pack_bytes` wrote; return False where a base exponent is out of range.

    Parameters
    ----------
    data : uint8[ceil(n / 256) + n]
    grid : float32[256]
        What each code means, in steps.
    out : float32[n]
        Finite where True is returned.
    """
    n = out.shape[0]
    blocks = (n + 255) >> 8
    for block in range(blocks):
        exponent = int64(data[block])
        if exponent < 4 or exponent > 240:
            return False
        scale = bits_float(uint32(exponent - 3) << uint32(23))  # 2**(exponent - 130)
        first, end = block << 8, min((block + 1) << 8, n)
        codes, part = data[blocks + first : blocks + end], out[first:end]
        for i in range(end - first):
            part[i] = grid[codes[i]] * scale
    return True


@njit(nogil=True, cache=True)
def count_bits(data, words):
    """Return the set bits of the first ``words`` 64-bit words of a uint8[>= 8 * words]."""
    at = int64(data.ctypes.data)
    ones = int64(0)
    for w in range(words):
        ones += int64(popcount(load64(at + 8 * w)))
    return ones


@njit(nogil=True, cache=True)
def drop_zeros(values, bitmap, out):
    """Write a bit for each value that is not zero, and those values; return how many.

    Parameters
    ----------
    values : float32[n]
    bitmap : uint8[8 * ceil(n / 64)]
    out : float32[n + 1]
        One more than can be needed, since every value is written before it is known to stay.
    """
    n = values.shape[0]
    start = int64(bitmap.ctypes.data)
    at = int64(0)
    for first in range(0, n, 64):
        word = uint64(0)
        part = values[first : min(first + 64, n)]
        for i in range(part.shape[0]):
            stays = part[i] != float32(0)
            out[at] = part[i]
            at += int64(stays)
            word |= uint64(stays) << uint64(i)
        store64(start + (first >> 3), word)
    return at


@njit(nogil=True, cache=True)
def expand_zeros(data, values, out):
    """Put values where a bitmap has bits, and zeros elsewhere.

    Parameters
    ----------
    data : uint8[>= 8 * ceil(n / 64)]
        The bitmap; its bits beyond n are not set.
    values : float32[>= set bits]
    out : float32[n]
    """
    n = out.shape[0]
    start = int64(data.ctypes.data)
    at = int64(0)
    for first in range(0, n, 64):
        word = load64(start + (first >> 3))
        out[first : min(first + 64, n)] = float32(0)
        while word != uint64(0):
            out[first + int64(ctz(word))] = values[at]
            at += 1
            word &= word - uint64(1)


@njit(nogil=True, cache=True)
def pack_counts(counts, bitmap, small, large):
    """Write a bit for each count that is not 1, and of those what it is; return two lengths.

    A count's code is 0 for 0 and count - 1 for 2 to 255, one byte; 255 says that the count stands
    among the large ones.

    Parameters
    ----------
    counts : uint32[n]
    bitmap : uint8[8 * ceil(n / 64)]
    small : uint8[n + 1]
    large : uint32[n + 1]
    """
    n = counts.shape[0]
    start = int64(bitmap.ctypes.data)
    smalls = larges = int64(0)
    for first in range(0, n, 64):
        word = uint64(0)
        part = counts[first : min(first + 64, n)]
        for i in range(part.shape[0]):
            count = part[i]
            other = count != uint32(1)
            big = count > uint32(255)
            small[smalls] = uint8(255) if big else uint8(max(count, uint32(1)) - uint32(1))
            large[larges] = count
            smalls += int64(other)
            larges += int64(big)
            word |= uint64(other) << uint64(i)
        store64(start + (first >> 3), word)
    return smalls, larges


@njit(nogil=True, cache=True)
def fill_counts(data, words, smalls, larges, out):
    """Read what :func:`pack_counts` wrote; return False where a large count is none.

    Parameters
    ----------
    data : uint8[8 * words + smalls + 4 * larges]
        A bitmap with ``smalls`` bits, codes of which ``larges`` are 255, large counts.
    words, smalls, larges : int64
        As said: the caller has counted.
    out : uint32[n]
        n <= 64 * words, and no bit of the bitmap is set beyond it.
    """
    n = out.shape[0]
    start = int64(data.ctypes.data)
    small = 8 * words
    large = small + smalls
    right = True
    for first in range(0, n, 64):
        word = load64(start + (first >> 3))
        out[first : min(first + 64, n)] = uint32(1)
        while word != uint64(0):
            code = uint32(data[small])
            count = code + uint32(code > uint32(0))
            if code == uint32(255):
                count = uint32(0)
                for byte in range(4):
                    count |= uint32(data[large + byte]) << uint32(8 * byte)
                large += 4
                right = right and count > uint32(255)
            out[first + int64(ctz(word))] = count
            small += 1
            word &= word - uint64(1)
    return right


@njit(nogil=True, cache=True)
def add_residuals(held, residuals, low, shift, keys, gradients):
    """Add to each gradient what is held for its key, in place.

    Parameters
    ----------
    held : uint64[entries]
        Key of each entry, 0 where there is none.
    residuals : float32[entries]
    low, shift : uint64
        A key's entry is ``(key - low) >> shift``, modulo ``entries``, which is a power of two.
    keys : uint64[k]
    gradients : float32[k]
    """
    mask = uint64(held.shape[0] - 1)
    for i in range(keys.shape[0]):
        at = ((keys[i] - low) >> shift) & mask
        if held[at] == keys[i]:
            gradients[i] += residuals[at]


@njit(nogil=True, cache=True)
def keep_residuals(held, residuals, low, shift, keys, wanted, decoded):
    """Hold ``wanted - decoded`` for each key; return how many others lost their entry by it.

    As :func:`add_residuals`; a key with nothing to hold takes no entry from another.
    """
    lost = int64(0)
    mask = uint64(held.shape[0] - 1)
    for i in range(keys.shape[0]):
        at = ((keys[i] - low) >> shift) & mask
        rest = wanted[i] - decoded[i]
        if held[at] == keys[i]:
            residuals[at] = rest
        elif rest != float32(0):
            lost += int64(held[at] != uint64(0))
            held[at] = keys[i]
            residuals[at] = rest
    return lost


@njit(nogil=True, cache=True)
def unsent_zeroed(weights, gradients, bound, first, mask):
    """Zero each gradient of a zero weight that is smaller than ``bound``, in place; say which.

    Parameters
    ----------
    weights, gradients : float32[k]
    bound : float32
    first : int64
        Gradients before this one stay.
    mask : bool[k]
        Written: whether the gradient was dropped.
    """
    for i in range(weights.shape[0]):
        drop = weights[i] == float32(0) and abs(gradients[i]) < bound and i >= first
        mask[i] = drop
        gradients[i] = float32(0) if drop else gradients[i]
