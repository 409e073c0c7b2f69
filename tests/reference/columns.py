"""Slow twins of the columns: strings of bits, lists and Python's integers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

WORD = (1 << 64) - 1


def field_bits(number: int, width: int) -> str:
    """Return a number's bits, the lowest first."""
    return "".join(str(number >> i & 1) for i in range(width))


def bit_bytes(bits: str, unit: int) -> bytes:
    """Return bits as bytes, the lowest bit first, padded with zeros to whole units of bytes."""
    bits = bits.ljust(-(-len(bits) // (8 * unit)) * 8 * unit, "0")
    return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


def keys_bytes(keys: Sequence[int], low: int) -> bytes:
    """Return the column of sorted odd keys."""
    if not keys:
        return b""
    steps = [(key - low) >> 1 for key in keys]
    width = 0
    while width < 56 and 2 ** (width + 1) * len(steps) <= steps[-1] + 1:
        width += 1
    bits = ["0"] * ((steps[-1] >> width) + len(steps))
    for i, step in enumerate(steps):
        bits[(step >> width) + i] = "1"
    fields = "".join(field_bits(step, width) for step in steps)
    return bytes([width]) + bit_bytes(fields, 1) + bit_bytes("".join(bits), 8)


def bytes_keys(data: bytes, count: int, low: int) -> list[int]:
    """Return the keys of a column that is right."""
    if count == 0:
        return []
    width = data[0]
    fields_end = 1 + -(-count * width // 8)
    fields = "".join(field_bits(byte, 8) for byte in data[1:fields_end])
    bitmap = "".join(field_bits(byte, 8) for byte in data[fields_end:])
    keys = []
    for at, bit in enumerate(bitmap):
        if bit == "1":
            i = len(keys)
            below = int("0" + fields[i * width : (i + 1) * width][::-1], 2)
            keys.append((low | 1) + 2 * ((at - i << width) | below))
    assert len(keys) == count
    return keys


def grid(exponent: int) -> list[float]:
    """Return the sizes that the 128 codes of a block have."""
    sizes = []
    for code in range(128):
        power, mantissa = code // 8, code % 8
        steps = mantissa if power == 0 else (8 + mantissa) * 2 ** (power - 1)
        sizes.append(math.ldexp(steps, exponent - 130))
    return sizes


def base_exponent(values: Sequence[float]) -> int:
    """Return the lowest base exponent whose grid holds the largest of a block's values."""
    top = max(abs(value) for value in values)
    exponent = 4
    while exponent < 240 and grid(exponent)[-1] < top:
        exponent += 1
    return exponent


def neighbours(value: float, exponent: int) -> set[float]:
    """Return the one or two numbers of a block's grid that a value may become."""
    sizes = grid(exponent)
    size = min(abs(value), sizes[-1])
    below = max(s for s in sizes if s <= size)
    above = min(s for s in sizes if s >= size)
    return {math.copysign(below, value), math.copysign(above, value)}


def bytes_floats(data: bytes, count: int) -> list[float]:
    """Return the values of a column of one byte each."""
    blocks = -(-count // 256)
    values = []
    for i in range(count):
        code = data[blocks + i]
        size = grid(data[i // 256])[code & 127]
        values.append(-size if code & 128 else size)
    return values


def sparse_bytes(values: Sequence[float]) -> bytes:
    """Return the column of float32 without its zeros."""
    bits = "".join("1" if value else "0" for value in values)
    rest = [value for value in values if value]
    return bit_bytes(bits, 8) + struct.pack(f"<{len(rest)}f", *rest)


def counts_bytes(counts: Sequence[int]) -> bytes:
    """Return the column of counts."""
    bits = "".join("0" if count == 1 else "1" for count in counts)
    others = [count for count in counts if count != 1]
    small = bytes(255 if count > 255 else max(count - 1, 0) for count in others)
    large = [count for count in others if count > 255]
    return bit_bytes(bits, 8) + small + struct.pack(f"<{len(large)}I", *large)


def signature(data: bytes) -> int:
    """Return a key column's signature."""

    def stir(state: int, word: int) -> int:
        state ^= word
        state = (state ^ state >> 32) * 0x9E3779B97F4A7C15 & WORD
        return (state ^ state >> 29) * 0xBF58476D1CE4E5B9 & WORD

    padded = data + bytes(-len(data) % 8)
    words = [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]
    rounds = len(data) // 32
    lanes = [1, 2, 3, 4]
    for i, word in enumerate(words[: 4 * rounds]):
        lanes[i % 4] = stir(lanes[i % 4], word)
    state = lanes[0]
    rest = words[4 * rounds :] + ([] if len(data) % 8 else [0])
    for word in [*lanes[1:], *rest, len(data)]:
        state = stir(state, word)
    return state ^ state >> 32
