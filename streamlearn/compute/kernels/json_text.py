"""The grammar of JSON (RFC 8259), value by value, on bytes that end with a newline.

Addresses are int64; loads may go 64 bytes past what is read. No bound is given: the newline at the
end of a record is part of no value, so that every scan stops there at the latest.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types, uint64
from numba.extending import intrinsic

from streamlearn.compute.kernels.bits import ctz, load8, load32, load64, store64

__all__ = [
    "CODES",
    "DEPTH_MAX",
    "EXPECT_ARRAY_COMMA",
    "EXPECT_COLON",
    "EXPECT_COMMA",
    "EXPECT_END",
    "EXPECT_ESCAPE",
    "EXPECT_KEY",
    "EXPECT_LEVELS",
    "EXPECT_NUMBER",
    "EXPECT_OBJECT",
    "EXPECT_STRING",
    "EXPECT_SURROGATE",
    "EXPECT_VALUE",
    "blank",
    "copy",
    "numeral",
    "plain_end",
    "unescape",
]

# Objects and arrays within one another: as many as a word has bits, one a level to say which.
DEPTH_MAX = 64

# What the grammar wanted where a record breaks it: ``bad_arg = 16 * byte + code``.
CODES = {
    1: "an object",
    2: "a key in quotes",
    3: "a colon",
    4: "a comma or }",
    5: "a comma or ]",
    6: "a value",
    7: "the string's end",
    8: "an escape of JSON",
    9: "a number of JSON",
    10: f"at most {DEPTH_MAX} levels",
    11: "the record's end",
    12: "the other half of a surrogate pair",
}
EXPECT_OBJECT, EXPECT_KEY, EXPECT_COLON, EXPECT_COMMA, EXPECT_ARRAY_COMMA = 1, 2, 3, 4, 5
EXPECT_VALUE, EXPECT_STRING, EXPECT_ESCAPE, EXPECT_NUMBER, EXPECT_LEVELS = 6, 7, 8, 9, 10
EXPECT_END, EXPECT_SURROGATE = 11, 12

_QUOTE, _BACKSLASH, _SPACE = uint64(34), uint64(92), uint64(32)


@intrinsic
def _mask_special(_context: Any, address: Any) -> Any:
    """Return a bit for each of 64 bytes that ends a run of a string: quote, backslash, control."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), 64)
        data = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

        def all_of(byte: int) -> ir.Constant:
            return ir.Constant(kind, [ir.IntType(8)(byte)] * 64)

        quote = builder.icmp_unsigned("==", data, all_of(34))
        backslash = builder.icmp_unsigned("==", data, all_of(92))
        control = builder.icmp_unsigned("<", data, all_of(32))
        mask = builder.or_(builder.or_(quote, backslash), control)
        return builder.bitcast(mask, ir.IntType(64))

    return types.uint64(types.int64), generate


@njit(nogil=True, cache=True)
def copy(at, length, target, to):
    """Copy bytes to ``target[to:]``, eight at a time; may write seven more."""
    address = int64(target.ctypes.data) + to
    for i in range(0, length, 8):
        store64(address + i, load64(at + i))


@njit(nogil=True, cache=True)
def blank(at):
    """Return the first byte from ``at`` that is not a space, tab or carriage return."""
    byte = load8(at)
    while byte == _SPACE or byte == uint64(9) or byte == uint64(13):
        at += 1
        byte = load8(at)
    return at


@njit(nogil=True, cache=True)
def plain_end(at):
    """Return the first quote, backslash or control character at or after ``at``."""
    mask = _mask_special(at)
    while mask == uint64(0):
        at += 64
        mask = _mask_special(at)
    return at + int64(ctz(mask))


@njit(nogil=True, cache=True)
def _hex4(at):
    """Return the number of four hexadecimal digits; negative where they are not."""
    value = 0
    for i in range(4):
        byte = int64(load8(at + i))
        if 48 <= byte <= 57:
            digit = byte - 48
        elif 97 <= (byte | 32) <= 102:
            digit = (byte | 32) - 87
        else:
            return -1
        value = 16 * value + digit
    return value


@njit(nogil=True, cache=True)
def unescape(at, target, to):
    """Decode the string whose first byte (behind the quote) is at ``at`` to ``target[to:]``.

    Returns
    -------
    at : int64
        The byte after the closing quote, or the one that is wrong.
    length : int64
        Bytes written, at most as many as were read.
    code : int64
        0, or what was expected there.
    """
    start = to
    while True:
        byte = load8(at)
        if byte == _QUOTE:
            return at + 1, to - start, 0
        if byte < _SPACE:
            return at, 0, EXPECT_STRING
        if byte != _BACKSLASH:
            target[to] = byte
            to += 1
            at += 1
            continue
        byte = load8(at + 1)
        if byte == uint64(117):
            point = _hex4(at + 2)
            if point < 0:
                return at, 0, EXPECT_ESCAPE
            size = 6
            if 0xD800 <= point < 0xE000:
                low = -1
                if point < 0xDC00 and load32(at + 6) & uint64(0xFFFF) == uint64(0x755C):
                    low = _hex4(at + 8)
                if not 0xDC00 <= low < 0xE000:
                    return at, 0, EXPECT_SURROGATE
                point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
                size = 12
            at += size
            if point < 0x80:
                target[to] = point
                to += 1
            elif point < 0x800:
                target[to] = 0xC0 | point >> 6
                target[to + 1] = 0x80 | point & 63
                to += 2
            elif point < 0x10000:
                target[to] = 0xE0 | point >> 12
                target[to + 1] = 0x80 | point >> 6 & 63
                target[to + 2] = 0x80 | point & 63
                to += 3
            else:
                target[to] = 0xF0 | point >> 18
                target[to + 1] = 0x80 | point >> 12 & 63
                target[to + 2] = 0x80 | point >> 6 & 63
                target[to + 3] = 0x80 | point & 63
                to += 4
            continue
        if byte in (_QUOTE, _BACKSLASH, uint64(47)):
            target[to] = byte
        elif byte == uint64(98):
            target[to] = 8
        elif byte == uint64(102):
            target[to] = 12
        elif byte == uint64(110):
            target[to] = 10
        elif byte == uint64(114):
            target[to] = 13
        elif byte == uint64(116):
            target[to] = 9
        else:
            return at, 0, EXPECT_ESCAPE
        to += 1
        at += 2


@njit(nogil=True, cache=True)
def numeral(at):
    """Return where a number of JSON ends that begins at ``at``; minus the address where it breaks.

    Grammar: ``-? (0 | [1-9] digits?) (. digits)? ([eE] [+-]? digits)?``.
    """
    if load8(at) == uint64(45):
        at += 1
    first = load8(at) - uint64(48)
    if first > uint64(9):
        return -at
    at += 1
    if first != uint64(0):
        while load8(at) - uint64(48) <= uint64(9):
            at += 1
    if load8(at) == uint64(46):
        at += 1
        if load8(at) - uint64(48) > uint64(9):
            return -at
        while load8(at) - uint64(48) <= uint64(9):
            at += 1
    if load8(at) | uint64(32) == uint64(101):
        at += 1
        sign = load8(at)
        if sign == uint64(43) or sign == uint64(45):
            at += 1
        if load8(at) - uint64(48) > uint64(9):
            return -at
        while load8(at) - uint64(48) <= uint64(9):
            at += 1
    return at
