"""Columns: keys, values and counts as the bytes that messages and log records carry.

A column says nothing of its own length: its message has a count, and decoding checks the bytes
against it before memory is taken, which is at most 64 times the bytes that came. Whatever bytes
come, decoding reads nothing outside them and raises nothing but :class:`ColumnError`. The same
input (and seed) always gives the same bytes. All numbers are little-endian.

=========  =========================================================================================
column     bytes, for ``n`` entries; an empty column for none
=========  =========================================================================================
keys       ``width`` (uint8, at most 56); n fields of ``width`` bits, the lowest bits of
           v[i] = (key[i] - low) >> 1 one behind the other from the lowest bit of each byte on, then
           zeros up to a whole byte; a bitmap of 64-bit words whose bit (v[i] >> width) + i is set
           for each i (Elias-Fano), up to the word that has the last of them
float32    n × 4 bytes
float16    n × 2 bytes
byte       ceil(n / 256) base exponents e (4 to 240), then n codes: sign, four bits E, three bits M,
           worth 2**(e - 130) × M where E = 0, else 2**(e - 130) × (8 + M) × 2**(E - 1)
sparse     bitmap of ceil(n / 64) words of the values that are not zero; then those, in one of the
           three codings above
counts     bitmap of ceil(n / 64) words of the counts that are not 1; a byte for each of those: 0
           for 0, count - 1 up to 255, 255 for more; the latter as 4 bytes each
lengths    bitmap of ceil(n / 64) words of the lengths that are not 0; where embeddings have several
           lengths, a byte for each of those: which of them, from 0 for the shortest. Of no length
           that is not 0: nothing
=========  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from streamlearn.compute.kernels import wire
from streamlearn.errors import ColumnError
from streamlearn.messages import F32, I64, U8, U32, U64

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BYTE",
    "FLOAT16",
    "FLOAT32",
    "NOTHING",
    "SPARSE",
    "Bytes",
    "Residuals",
    "decode_counts",
    "decode_keys",
    "decode_lengths",
    "decode_values",
    "encode_counts",
    "encode_keys",
    "encode_lengths",
    "encode_values",
    "signature",
    "unsent",
    "warm_up",
]

Bytes: TypeAlias = bytes | bytearray | memoryview | U8

# How values are coded: a type, and with SPARSE a bitmap of what is not zero before it.
FLOAT32: Final = 0
FLOAT16: Final = 1
BYTE: Final = 2
SPARSE: Final = 16
_CODINGS: Final = frozenset({FLOAT32, FLOAT16, BYTE, *(SPARSE | t for t in (0, 1, 2))})

_WORD: Final = (1 << 64) - 1
# A field of so many bits lies within eight bytes, wherever it begins.
_WIDTH_MAX: Final = 56
_BLOCK: Final = 256


def _grid() -> F32:
    """Return what the 256 codes of a byte mean, in steps."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    sizes = np.where(exponent == 0, mantissa, (8 + mantissa) << np.maximum(exponent - 1, 0))
    return np.concatenate([sizes, -sizes]).astype(np.float32)


_GRID: Final = _grid()


NOTHING: Final[U8] = np.empty(0, np.uint8)


def encode_keys(keys: U64, low: int) -> U8:
    """Return the bytes of keys that are sorted.

    2 bits a key and what tells keys apart at their density: 6.3 bytes a key for 25,000 over all
    2**64, 5.3 for 6 million. O(count).

    Parameters
    ----------
    keys : uint64[count]
        Strictly increasing, odd, none below ``low``.
    low : int
        First key of the shard's range.

    Returns
    -------
    uint8[size]

    Raises
    ------
    ValueError
        The keys are not as said.
    """
    keys = np.ascontiguousarray(keys, np.uint64)
    count = keys.size
    if count == 0:
        return np.empty(0, np.uint8)
    base = low | 1
    span = (int(keys[-1]) - base) >> 1
    if span >= 0:
        width = max(0, min(_WIDTH_MAX, ((span + 1) // count).bit_length() - 1))
        words = ((span >> width) + count + 63) >> 6
        out = np.empty(1 + _whole(count * width, 8) + 8 * words, np.uint8)
        if wire.pack_keys(keys, np.uint64(base), width, out):
            return out
    raise ValueError(f"keys must be odd, strictly increasing and at least {low}")


def decode_keys(data: Bytes, count: int, low: int, high: int) -> U64:
    """Return the keys that bytes are.

    Parameters
    ----------
    data : bytes-like
    count : int
        Of keys.
    low, high : int
        Range of the keys, both ends in it, as uint64; ``low`` as they were encoded with.

    Returns
    -------
    uint64[count]
        Strictly increasing, odd, in the range.

    Raises
    ------
    ColumnError
        The bytes are not ``count`` such keys and nothing else.
    """
    column = _column(data)
    if count == 0:
        if column.size:
            raise ColumnError(f"a key column of no keys has {column.size} bytes")
        return np.empty(0, np.uint64)
    if not 0 < count <= 8 * column.size:
        raise ColumnError(f"a key column of {column.size} bytes cannot hold {count} keys")
    width = int(column[0])
    if width > _WIDTH_MAX:
        raise ColumnError(f"a key column's fields have {width} bits, and at most 56 are allowed")
    bitmap = column.size - 1 - _whole(count * width, 8)
    if bitmap <= 0 or bitmap % 8:
        raise ColumnError(
            f"a key column of {column.size} bytes is not {count} fields of {width} bits and whole "
            "words of a bitmap"
        )
    base = low | 1
    if high < base:
        raise ColumnError(f"there are no keys from {low} to {high}, and a column has {count}")
    out = np.empty(count, np.uint64)
    wrong = wire.unpack_keys(column, count, np.uint64(base), np.uint64((high - base) >> 1), out)
    if wrong:
        raise ColumnError(
            (
                f"a key column's bitmap does not have {count} bits and end with the last of them",
                f"a key is above {high}, the last of the range",
                "keys are not strictly increasing",
                "a key column has bits behind its last field",
            )[wrong - 1]
        )
    return out


def encode_values(values: F32, coding: int, seed: int = 0) -> U8:
    """Return the bytes of values.

    Parameters
    ----------
    values : float32[count]
        Finite; rows of several are taken one behind the other, and -0 as 0 where zeros are left
        out.
    coding : int
        ``FLOAT32`` (exact), ``FLOAT16`` (nearest; beyond 65504 becomes that) or ``BYTE`` (a grid of
        three binary digits of precision over 17 powers of two below the largest of 256 values,
        rounded so that the mean over seeds is the value to within 2**-20 of a step; beyond
        1.875 * 2**127 becomes that); each with ``| SPARSE`` leaves zeros out.
    seed : int
        Of the rounding. A retry with the same seed gives the same bytes.

    Returns
    -------
    uint8[size]

    Raises
    ------
    ValueError
        A value is NaN or infinite, or the coding is none of these.
    """
    if coding not in _CODINGS:
        raise ValueError(f"there is no coding {coding} of values")
    values = np.ascontiguousarray(values, np.float32).reshape(-1)
    head = 0
    if coding & SPARSE and values.size:
        head = 8 * _whole(values.size, 64)
        bitmap = np.empty(head, np.uint8)
        packed = np.empty(values.size + 1, np.float32)
        values = packed[: wire.drop_zeros(values, bitmap, packed)]
    kind, count = coding & ~SPARSE, values.size
    out = np.empty(head + _size(kind, count), np.uint8)
    if head:
        out[:head] = bitmap
    if not _pack(kind, values, seed, out[head:]):
        raise ValueError("a value is NaN or infinite")
    return out


def decode_values(data: Bytes, count: int, coding: int, out: F32 | None = None) -> F32:
    """Return the values that bytes are.

    Parameters
    ----------
    data : bytes-like
    count : int
    coding : int
        As they were encoded with.
    out : float32[count], optional
        Where to write them; what it holds after an error is unspecified, but was not taken from
        outside the bytes.

    Returns
    -------
    float32[count]
        Finite; ``out`` where it was given.

    Raises
    ------
    ColumnError
        The bytes are not ``count`` such values and nothing else, or one is NaN or infinite.
    ValueError
        ``out`` is not a contiguous float32[count].
    """
    if coding not in _CODINGS:
        raise ColumnError(f"there is no coding {coding} of values")
    if count < 0:
        raise ColumnError(f"a value column cannot hold {count} values")
    column = _column(data)
    kind = coding & ~SPARSE
    ones, head = count, 0
    if coding & SPARSE:
        ones, head = _bitmap(column, count, "value")
    if column.size - head != _size(kind, ones):
        raise ColumnError(
            f"a value column of {column.size} bytes is not {ones} values of coding {kind}"
            + (f" behind a bitmap of {head} bytes" if head else "")
        )
    if out is None:
        out = np.empty(count, np.float32)
    elif out.shape != (count,) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous float32[{count}]")
    if not coding & SPARSE:
        _unpack(kind, column, out)
    elif count:
        packed = np.empty(ones, np.float32)
        _unpack(kind, column[head:], packed)
        wire.expand_zeros(column, packed, out)
    return out


def encode_counts(counts: U32) -> U8:
    """Return the bytes of counts, most of which are 1: an eighth of a byte each, and what more.

    Parameters
    ----------
    counts : uint32[count]

    Returns
    -------
    uint8[size]
    """
    counts = np.ascontiguousarray(counts, np.uint32)
    head = 8 * _whole(counts.size, 64)
    bitmap = np.empty(head, np.uint8)
    small = np.empty(counts.size + 1, np.uint8)
    large = np.empty(counts.size + 1, np.uint32)
    smalls, larges = wire.pack_counts(counts, bitmap, small, large)
    return np.concatenate([bitmap, small[:smalls], large[:larges].view(np.uint8)])


def decode_counts(data: Bytes, count: int) -> U32:
    """Return the counts that bytes are.

    Returns
    -------
    uint32[count]

    Raises
    ------
    ColumnError
        The bytes are not ``count`` counts and nothing else.
    """
    column = _column(data)
    smalls, head = _bitmap(column, count, "count")
    larges = int(np.count_nonzero(column[head : head + smalls] == _BLOCK - 1))
    if column.size != head + smalls + 4 * larges:
        raise ColumnError(
            f"a count column of {column.size} bytes is not a bitmap of {head} bytes, {smalls} "
            f"small counts and {larges} large ones"
        )
    out = np.empty(count, np.uint32)
    if not wire.fill_counts(column, head >> 3, smalls, larges, out):
        raise ColumnError("a large count is below 256")
    return out


def encode_lengths(dims: I64, lengths: Sequence[int]) -> U8:
    """Return the bytes of how many coordinates embeddings have: an eighth of a byte each, or more.

    Parameters
    ----------
    dims : int64[count]
        Each 0 or one of ``lengths``.
    lengths : sequence of int
        Those that there may be, ascending, at most 256.

    Returns
    -------
    uint8[size]

    Raises
    ------
    ValueError
        A length is none of them.
    """
    there = dims != 0
    held = dims[there]
    if not held.size:
        return np.empty(0, np.uint8)
    codes = np.searchsorted(np.asarray(lengths), held)
    if codes.max() >= len(lengths) or np.any(np.asarray(lengths)[codes] != held):
        raise ValueError(f"an embedding's length is none of {tuple(lengths)}")
    bitmap = np.zeros(8 * _whole(dims.size, 64), np.uint8)
    packed = np.packbits(there, bitorder="little")
    bitmap[: packed.size] = packed
    return np.concatenate([bitmap, codes.astype(np.uint8)]) if len(lengths) > 1 else bitmap


def decode_lengths(data: Bytes, count: int, lengths: Sequence[int]) -> I64:
    """Return the lengths that bytes are.

    Parameters
    ----------
    count : int
        At most what another column of the message has been found to hold: no bytes are lengths of
        0, however many.

    Returns
    -------
    int64[count]

    Raises
    ------
    ColumnError
        The bytes are not ``count`` lengths, each 0 or one of ``lengths``.
    """
    column = _column(data)
    if count < 0:
        raise ColumnError(f"a length column cannot hold {count} entries")
    if not column.size:
        return np.zeros(count, np.int64)
    ones, head = _bitmap(column, count, "length")
    expected = head + (ones if len(lengths) > 1 else 0)
    if column.size != expected or not ones:
        raise ColumnError(
            f"a length column of {column.size} bytes is not {ones} lengths behind a bitmap of "
            f"{head} bytes"
        )
    dims = np.zeros(count, np.int64)
    there = np.unpackbits(column[:head], count=count, bitorder="little").view(np.bool_)
    if len(lengths) == 1:
        dims[there] = lengths[0]
        return dims
    codes = column[head:]
    if codes.max() >= len(lengths):
        raise ColumnError(f"an embedding's length is number {codes.max()} of {len(lengths)}")
    dims[there] = np.asarray(lengths, np.int64)[codes]
    return dims


def signature(data: Bytes) -> int:
    """Return 64 bits over every byte of a key column, each in its place.

    Columns of one size that differ in one word (eight bytes, from a multiple of eight on) always
    have different ones, any other two the same one with a chance of about 2**-64. It tells columns
    apart; it proves nothing about who sent them.
    """
    return int(wire.sign_bytes(_column(data)))


class Residuals:
    """What encoding lost of the gradients of recently sent keys, to be sent with their next ones.

    Error feedback: ``add`` to the gradients what is held, encode, ``keep`` what the decoded values
    lack. So the decoded values of a key and what is held for it always add up to its gradients. A
    key has one place, named by its top bits; another key may take it, and then what was held is
    lost, which has mean zero where rounding is unbiased. Frequent keys find theirs again before
    that.

    Parameters
    ----------
    bits : int
        1 to 32: 2**bits entries of 12 bytes.
    low, high : int
        Range of the keys, both ends in it: only those may be given.

    Attributes
    ----------
    lost : int
        Entries that another key has taken.
    """

    def __init__(self, bits: int, low: int = 0, high: int = _WORD) -> None:
        if not 1 <= bits <= 32:
            raise ValueError(f"residuals take 1 to 32 bits, not {bits}")
        if not 0 <= low <= high <= _WORD:
            raise ValueError(f"there are no keys from {low} to {high}")
        self.lost = 0
        self._low, self._high = low, high
        self._shift = np.uint64(max(0, (high - low).bit_length() - bits))
        self._held = np.zeros(1 << bits, np.uint64)
        self._residuals = np.zeros(1 << bits, np.float32)

    def add(self, keys: U64, gradients: F32) -> None:
        """Add what is held to the gradients, in place.

        Parameters
        ----------
        keys : uint64[count]
            Sorted, in the range.
        gradients : float32[count]
        """
        self._check(keys, gradients)
        low = np.uint64(self._low)
        wire.add_residuals(self._held, self._residuals, low, self._shift, keys, gradients)

    def keep(self, keys: U64, wanted: F32, decoded: F32) -> None:
        """Hold ``wanted - decoded`` for the keys, in place of what was held.

        Parameters
        ----------
        keys : uint64[count]
            Sorted, in the range.
        wanted, decoded : float32[count]
            What ``add`` left, and what the other side makes of it.
        """
        self._check(keys, wanted)
        self._check(keys, decoded)
        self.lost += wire.keep_residuals(
            self._held,
            self._residuals,
            np.uint64(self._low),
            self._shift,
            keys,
            wanted,
            decoded,
        )

    def _check(self, keys: U64, values: F32) -> None:
        if keys.dtype != np.uint64 or values.dtype != np.float32 or keys.shape != values.shape:
            raise ValueError(
                f"{keys.dtype}{keys.shape} and {values.dtype}{values.shape} are not the keys and "
                "values of one push"
            )
        if keys.size and not self._low <= int(keys[0]) <= int(keys[-1]) <= self._high:
            raise ValueError(f"keys are not sorted, or not from {self._low} to {self._high}")


def unsent(
    weights: F32, gradients: F32, l1: float, delta: float, *, has_intercept: bool = False
) -> NDArray[np.bool_]:
    """Zero the gradients that would not move their weights from zero, in place, and say which.

    A coordinate with w = 0 and |g| < l1 - delta satisfies the conditions of Karush, Kuhn and Tucker
    with a margin of ``delta`` (Li et al., "Scaling Distributed Machine Learning with the Parameter
    Server", OSDI 2014, section 5.1); ``SPARSE`` then leaves it out. A stream needs what was dropped
    again: many small gradients make a weight. So let :class:`Residuals` keep it, with the gradients
    before the drop as ``wanted``.

    Parameters
    ----------
    weights, gradients : float32[count]
    l1, delta : float
        Both at least 0; nothing is dropped where ``delta >= l1``.
    has_intercept : bool
        Whether entry 0 is the constant feature, which has no penalty and is never dropped.

    Returns
    -------
    bool[count]
        Whether a gradient was dropped.
    """
    if weights.shape != gradients.shape or not weights.dtype == gradients.dtype == np.float32:
        raise ValueError(
            f"{weights.dtype}{weights.shape} and {gradients.dtype}{gradients.shape} are not the "
            "weights and gradients of one push"
        )
    mask = np.empty(weights.size, np.bool_)
    bound = np.float32(max(l1 - delta, 0.0))
    wire.unsent_zeroed(weights, gradients, bound, int(has_intercept), mask)
    return mask


def warm_up() -> None:
    """Compile everything here, so that nobody waits for it later."""
    keys = np.array([1, 5], np.uint64)
    column = encode_keys(keys, 0)
    decode_keys(column, 2, 0, _WORD)
    signature(column)
    values = np.array([0.0, 1.0], np.float32)
    for coding in sorted(_CODINGS):
        decode_values(encode_values(values, coding), 2, coding)
    decode_counts(encode_counts(np.array([1, 300], np.uint32)), 2)
    residuals = Residuals(1)
    residuals.add(keys, values)
    residuals.keep(keys, values, values)
    unsent(values, values, 1.0, 0.0)


def _column(data: Bytes) -> U8:
    """Return bytes as an array that cannot be written: kernels are compiled for one type."""
    column = np.frombuffer(data, np.uint8)
    column.flags.writeable = False
    return column


def _whole(bits: int, unit: int) -> int:
    return -(-bits // unit)


def _size(kind: int, count: int) -> int:
    """Return the bytes of ``count`` values of a coding that is not sparse."""
    if kind == BYTE:
        return _whole(count, _BLOCK) + count
    return count * (2 if kind == FLOAT16 else 4)


def _pack(kind: int, values: F32, seed: int, out: U8) -> bool:
    """Write values; return False where one is not finite."""
    if kind == FLOAT32:
        out.view(np.float32)[:] = values
        return bool(wire.finite(values.view(np.uint32)))
    if kind == FLOAT16:
        return bool(wire.halve(values, out.view(np.uint16)))
    return bool(wire.pack_bytes(values, values.view(np.uint32), np.uint64(seed & _WORD), out))


def _unpack(kind: int, column: U8, out: F32) -> None:
    """Read ``out.size`` values from a column of their size."""
    if kind == BYTE:
        if not wire.unpack_bytes(column, _GRID, out):
            raise ColumnError("a block's base exponent is not from 4 to 240")
        return
    if kind == FLOAT32:
        out.view(np.uint8)[:] = column
        right = wire.finite(out.view(np.uint32))
    else:
        halves = np.empty(out.size, np.uint16)
        halves.view(np.uint8)[:] = column
        right = wire.unhalve(halves, out)
    if not right:
        raise ColumnError("a value is NaN or infinite")


def _bitmap(column: U8, count: int, name: str) -> tuple[int, int]:
    """Return the set bits of the bitmap that leads a column, and its bytes."""
    words = _whole(count, 64)
    if count < 0 or column.size < 8 * words:
        raise ColumnError(f"a {name} column of {column.size} bytes cannot hold {count} entries")
    if count % 64:
        last = int.from_bytes(column[8 * words - 8 : 8 * words].tobytes(), "little")
        if last >> count % 64:
            raise ColumnError(f"a {name} column's bitmap has bits behind its {count} entries")
    return int(wire.count_bits(column, words)), 8 * words
