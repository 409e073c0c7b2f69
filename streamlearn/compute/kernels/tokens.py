"""Words of a text, straight to their keys: runs of letters, in lower case.

A word is a letter and all letters and combining marks that follow it; with digits, these count as
letters. Its key is ``token_key`` of its lower case in UTF-8. Plain ASCII goes by masks of 64 bytes:

    edges = letters ^ (letters << 1 | open)     a bit where a word begins or ends
    word of n <= 8 bytes = load64(at) | 0x2020… (letters and digits alone: that is its lower case)

What is not ASCII, and words with such characters, go character by character through a table. A
character that no word may hold only ends words, and so do bytes that are no text, and markup where
it is passed over.

Addresses are int64; loads may go 64 bytes past the end of the text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types, uint64
from numba.extending import intrinsic

from streamlearn.compute.kernels.bits import (
    apart,
    ctz,
    load8,
    load64,
    mask_eq2,
    mask_high,
    mix,
    store64,
    token_key,
)

__all__ = [
    "LATIN_1",
    "N_RULES",
    "R_DIGITS",
    "R_ENCODING",
    "R_LONGEST",
    "R_MARKUP",
    "R_SHORTEST",
    "R_STRICT",
    "UTF_8",
    "key_words",
    "spell_words",
    "word_keys",
]

# Encodings.
UTF_8, LATIN_1 = 0, 1

# Indices into ``rules`` (int64[N_RULES]): the encoding; whether bytes that are no text are an
# error, digits letters, markup passed over (0/1); the least and the most characters of a word.
R_ENCODING, R_STRICT, R_DIGITS, R_MARKUP, R_SHORTEST, R_LONGEST = 0, 1, 2, 3, 4, 5
N_RULES = 6

# Kinds of characters in the table.
_LETTER, _MARK, _DIGIT = 1, 2, 3

_ONE, _LOWER = uint64(1), uint64(0x2020202020202020)
_LESS, _AND, _SPACE = uint64(60), uint64(38), uint64(32)
_TAIL, _SIX = uint64(0x80), uint64(0x3F)
_SIGMA, _CAPITAL_I_DOT = 0x3A3, 0x130
_M1 = np.uint64(0x9E3779B97F4A7C15)
_M2 = np.uint64(0xBF58476D1CE4E5B9)

# Characters of an entity (&nbsp;) or the name of an element (<blockquote>) at most.
_NAME_MAX = 10


def _mask(low: int, count: int, folded: bool) -> Any:
    kind, i8 = ir.VectorType(ir.IntType(8), 64), ir.IntType(8)

    @intrinsic
    def mask(_context: Any, address: Any) -> Any:
        def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            data = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
            if folded:
                data = builder.or_(data, ir.Constant(kind, [i8(0x20)] * 64))
            above = builder.sub(data, ir.Constant(kind, [i8(low)] * 64))
            inside = builder.icmp_unsigned("<", above, ir.Constant(kind, [i8(count)] * 64))
            return builder.bitcast(inside, ir.IntType(64))

        return types.uint64(types.int64), generate

    return mask


# A bit for each of 64 bytes that is an ASCII letter, or a digit; bit 0 is the first.
_mask_letters = _mask(ord("a"), 26, folded=True)
_mask_digits = _mask(ord("0"), 10, folded=False)


@njit(nogil=True, cache=True, inline="always")
def _ascii_key(at, length, seed):
    """Return ``token_key`` of the lower case of ASCII letters and digits."""
    if length <= 8:
        gap = uint64(8 * (8 - length))
        return mix(((load64(at) | _LOWER) << gap) >> gap, seed)
    state = seed
    last = at + length - 8
    while at < last:
        h = ((load64(at) | _LOWER) ^ state) * _M1
        state = (h ^ (h >> uint64(32))) * _M2
        at += 8
    h = ((load64(last) | _LOWER) ^ state) * _M1
    state = (h ^ (h >> uint64(32))) * _M2
    return mix(uint64(length), state)


@njit(nogil=True, cache=True, inline="always")
def _among(key, table):
    """Say whether a key is in an open-addressing table whose size is a power of two."""
    mask = table.size - 1
    place = int64(key >> uint64(32)) & mask
    while table[place] != uint64(0):
        if table[place] == key:
            return True
        place = (place + 1) & mask
    return False


@njit(nogil=True, cache=True)
def _decode_long(at, stop):
    """Return a character of three or four bytes and their number; -1 and 1 where there is none."""
    lead = int64(load8(at))
    if lead < 0xE0 or lead > 0xF4:
        return int64(-1), 1
    size = 3 if lead < 0xF0 else 4
    if at + size > stop:
        return int64(-1), 1
    point = lead & (0x7F >> size)
    for i in range(1, size):
        byte = int64(load8(at + i))
        if byte & 0xC0 != 0x80:
            return int64(-1), 1
        point = point << 6 | byte & 0x3F
    # overlong forms, surrogates, and what lies above all characters
    if size == 3 and (point < 0x800 or 0xD800 <= point < 0xE000):
        return int64(-1), 1
    if size == 4 and (point < 0x10000 or point > 0x10FFFF):
        return int64(-1), 1
    return point, size


@njit(nogil=True, cache=True, inline="always")
def _decode(at, stop, encoding):
    """Return a character and its bytes; -1 and 1 where the bytes are no UTF-8 (table 3-7)."""
    lead, second = int64(load8(at)), int64(load8(at + 1))
    if lead < 0x80 or encoding == LATIN_1:
        point, size = lead, 1
    elif 0xC2 <= lead < 0xE0 and second & 0xC0 == 0x80 and at + 1 < stop:
        point, size = (lead & 0x1F) << 6 | second & 0x3F, 2
    else:
        point, size = _decode_long(at, stop)
    return point, size


@njit(nogil=True, cache=True, inline="always")
def _encode(point, to):
    """Write a character in UTF-8 to address ``to``, eight bytes in all; return where it ends."""
    p = uint64(point)
    last = _TAIL | p & _SIX
    if point < 0x80:
        word, size = p, 1
    elif point < 0x800:
        word, size = uint64(0xC0) | p >> uint64(6) | last << uint64(8), 2
    elif point < 0x10000:
        word = uint64(0xE0) | p >> uint64(12) | (_TAIL | p >> uint64(6) & _SIX) << uint64(8)
        word, size = word | last << uint64(16), 3
    else:
        word = uint64(0xF0) | p >> uint64(18) | (_TAIL | p >> uint64(12) & _SIX) << uint64(8)
        word |= (_TAIL | p >> uint64(6) & _SIX) << uint64(16)
        word, size = word | last << uint64(24), 4
    store64(to, word)
    return to + size


@njit(nogil=True, cache=True, inline="always")
def _cell(point, pages, cells):
    # an index without a sign is not looked at for being negative
    p = uint64(point)
    return int64(cells[uint64(pages[p >> uint64(8)]) << uint64(8) | p & uint64(255)])


@njit(nogil=True, cache=True, inline="always")
def _begins(kind, digits):
    return kind == _LETTER or (kind == _DIGIT and digits)


@njit(nogil=True, cache=True)
def _spell(at, stop, rules, pages, cells, to):
    """Write the lower case of the word at ``at`` to address ``to``; may write seven bytes more.

    Returns
    -------
    at : int64
        What follows the word: the first character that is no part of it.
    end : int64
        Where its text ends.
    characters : int64
        How many there are; may be more than were written, where it is too long.

    Notes
    -----
    A capital sigma that ends a word of several letters becomes the small one that does.
    """
    encoding, longest = rules[R_ENCODING], rules[R_LONGEST]
    digits = rules[R_DIGITS] != 0
    characters = 0
    sigma = int64(0)  # where the last letter was written, if it was a capital sigma
    while at < stop:
        point, size = _decode(at, stop, encoding)
        if point < 0:
            break
        cell = _cell(point, pages, cells)
        kind = cell & 3
        if not (_begins(kind, digits) or (kind == _MARK and characters > 0)):
            break
        at += size
        characters += 1
        if kind != _MARK:
            sigma = to if point == _SIGMA and characters > 1 else int64(0)
        if characters > longest:
            continue
        to = _encode(point + (cell >> 2), to)
        if point == _CAPITAL_I_DOT:
            # the one letter whose lower case is two characters: i and a combining dot
            characters += 1
            to = _encode(0x307, to)
    if sigma != 0 and characters <= longest:
        # of its two bytes the second is one less
        store64(sigma, load64(sigma) - uint64(0x100))
    return at, to, characters


@njit(nogil=True, cache=True, inline="always")
def _alphanumeric(byte):
    return (byte | uint64(32)) - uint64(97) < uint64(26) or byte - uint64(48) < uint64(10)


@njit(nogil=True, cache=True)
def _after_markup(at, stop, tags, seed, barren):
    """Return what follows the tag, comment or entity at ``at``; ``at + 1`` where there is none.

    A tag is ``<``, perhaps ``/`` or ``!``, the name of an element of HTML, a blank, ``/`` or ``>``,
    and all up to the next ``>``, with no ``<`` before it. A comment goes from ``<!--`` to ``-->``;
    where ``barren[0]`` is set it is known that none ends in this text.
    """
    if load8(at) == _AND:
        name = at + 1
        if name < stop and load8(name) == uint64(35):
            name += 1
        i = name
        while i < stop and i - name < _NAME_MAX:
            if not _alphanumeric(load8(i)):
                break
            i += 1
        return i + 1 if name < i < stop and load8(i) == uint64(59) else at + 1
    name = at + 1
    if name + 2 < stop and load64(at) & uint64(0xFFFFFFFF) == uint64(0x2D2D213C):  # <!--
        if barren[0]:
            return at + 1
        i = at + 4
        while i + 2 < stop:
            if load64(i) & uint64(0xFFFFFF) == uint64(0x3E2D2D):  # -->
                return i + 3
            i += 1
        barren[0] = True
        return at + 1
    if name < stop and (load8(name) == uint64(47) or load8(name) == uint64(33)):
        name += 1
    i = name
    while i < stop and i - name <= _NAME_MAX:
        if not _alphanumeric(load8(i)):
            break
        i += 1
    if i == name or i >= stop or i - name > _NAME_MAX:
        return at + 1
    byte = load8(i)
    if byte > _SPACE and byte != uint64(47) and byte != uint64(62):
        return at + 1
    if not _among(_ascii_key(name, i - name, seed), tags):
        return at + 1
    while i < stop and load8(i) != _LESS:
        if load8(i) == uint64(62):
            return i + 1
        i += 1
    return at + 1


@njit(nogil=True, cache=True)
def _slow_words(at, inside, stop, rules, seed, pages, cells, stops, scratch, keys, nnz):
    """Append words character by character, up to the next that begins with ASCII, or to markup.

    ``inside`` says that a word with characters beyond ASCII begins at ``at``.

    Returns
    -------
    at : int64
        Where it stopped.
    nnz : int64
    wrong : int64
        Address of the first byte that is no text, else 0; where that is an error it stops there.
    """
    apart()
    encoding, markup = rules[R_ENCODING], rules[R_MARKUP] != 0
    digits = rules[R_DIGITS] != 0
    text = int64(scratch.ctypes.data)
    wrong = int64(0)
    while at < stop:
        if not inside:
            byte = load8(at)
            if byte < uint64(0x80):
                if (byte | uint64(32)) - uint64(97) < uint64(26):
                    break
                if (digits and byte - uint64(48) < uint64(10)) or (
                    markup and byte in (_LESS, _AND)
                ):
                    break
                at += 1
                continue
            point, size = _decode(at, stop, encoding)
            if point < 0:
                wrong = at if wrong == 0 else wrong
                if rules[R_STRICT] != 0:
                    break
            if point < 0 or not _begins(_cell(point, pages, cells) & 3, digits):
                at += size
                continue
        inside = False
        at, end, characters = _spell(at, stop, rules, pages, cells, text)
        if characters < rules[R_SHORTEST] or characters > rules[R_LONGEST]:
            continue
        key = token_key(text, end - text, seed)
        if stops.size > 1 and _among(key, stops):
            continue
        keys[nnz] = key
        nnz += 1
    return at, nnz, wrong


@njit(nogil=True, cache=True)
def key_words(at, stop, rules, seed, pages, cells, stops, tags, scratch, barren, keys, nnz):
    """Append the keys of a text's words to ``keys``, in their order.

    Parameters
    ----------
    at, stop : int64
        Addresses of the text.
    rules : int64[N_RULES]
    seed : uint64
        Of keys.
    pages, cells : uint16[0x1100], int32[c]
        Kinds and lower cases of characters, see ``online.letters``.
    stops, tags : uint64[2**a], uint64[2**b]
        Open-addressing tables of the keys of words that are left out, and of elements' names; at
        most half full.
    scratch : uint8[4 * longest + 16]
    barren : bool[1]
        Working space, too.
    keys : uint64[n]
        Room for (stop - at) // 2 + 1 more, and one.
    nnz : int
        Keys so far.

    Returns
    -------
    nnz : int64
    wrong : int64
        Address of the first byte that is no text, 0 where all is; where that is an error nothing
        behind it is read.
    """
    encoding, strict = rules[R_ENCODING], rules[R_STRICT] != 0
    shortest, longest = rules[R_SHORTEST], rules[R_LONGEST]
    digits = uint64(0) - uint64(rules[R_DIGITS])
    markup = rules[R_MARKUP] != 0
    sieved = stops.size > 1
    barren[0] = False
    wrong = int64(0)
    begin = window = at
    open = uint64(0)
    while window < stop:
        letters = _mask_letters(window) | (_mask_digits(window) & digits)
        other = mask_high(window)
        if markup:
            other |= mask_eq2(window, _LESS, _AND)
        left = stop - window
        if left < 64:
            within = (_ONE << uint64(left)) - _ONE
            letters &= within
            other &= within
        edges = letters ^ (letters << _ONE | open)
        special = int64(64)
        if other != uint64(0):
            special = int64(ctz(other))
            # a word that runs into it has no end yet
            edges &= (_ONE << uint64(special)) - _ONE
        while edges != uint64(0):
            if open == uint64(0):
                begin = window + int64(ctz(edges))
                edges &= edges - _ONE
                open = _ONE
                if edges == uint64(0):
                    break
            length = window + int64(ctz(edges)) - begin
            edges &= edges - _ONE
            open = uint64(0)
            key = _ascii_key(begin, length, seed)
            keys[nnz] = key
            taken = length >= shortest and length <= longest
            if sieved and taken:
                taken = not _among(key, stops)
            nnz += taken
        if special == 64:
            window += 64
            continue
        at = window + special
        byte = load8(at)
        inside = False
        if byte not in (_LESS, _AND) and open != uint64(0):
            point, _ = _decode(at, stop, encoding)
            kind = _cell(point, pages, cells) & 3 if point >= 0 else 0
            inside = kind == _MARK or _begins(kind, digits != uint64(0))
        if open != uint64(0) and not inside:
            length = at - begin
            key = _ascii_key(begin, length, seed)
            if length >= shortest and length <= longest and not (sieved and _among(key, stops)):
                keys[nnz] = key
                nnz += 1
        if byte in (_LESS, _AND):
            window = _after_markup(at, stop, tags, seed, barren)
        else:
            window, nnz, astray = _slow_words(
                begin if inside else at, inside, stop, rules, seed, pages, cells, stops, scratch,
                keys, nnz,
            )  # fmt: skip
            if astray != 0 and wrong == 0:
                wrong = astray
                if strict:
                    return nnz, wrong
        open = uint64(0)
    if open != uint64(0):
        length = stop - begin
        key = _ascii_key(begin, length, seed)
        if length >= shortest and length <= longest and not (sieved and _among(key, stops)):
            keys[nnz] = key
            nnz += 1
    return nnz, wrong


@njit(nogil=True, cache=True)
def spell_words(
    at, stop, rules, seed, pages, cells, stops, tags, barren, keys, ends, text, count, to
):
    """Append the words of a text with their keys: what :func:`key_words` takes, spelt out.

    Parameters
    ----------
    keys, ends, text : uint64[n], int64[n], uint8[t]
        Written from ``count`` and ``to`` on: word ``i`` is ``text[ends[i - 1]:ends[i]]``. Room for
        twice the bytes of the text, and for a word that is too long and eight bytes.

    Returns
    -------
    count, to : int64
    """
    shortest, longest = rules[R_SHORTEST], rules[R_LONGEST]
    encoding, digits = rules[R_ENCODING], rules[R_DIGITS] != 0
    base = int64(text.ctypes.data)
    barren[0] = False
    while at < stop:
        byte = load8(at)
        if rules[R_MARKUP] != 0 and byte in (_LESS, _AND):
            at = _after_markup(at, stop, tags, seed, barren)
            continue
        point, size = _decode(at, stop, encoding)
        if point < 0 or not _begins(_cell(point, pages, cells) & 3, digits):
            at += size
            continue
        at, end, characters = _spell(at, stop, rules, pages, cells, base + to)
        if characters < shortest or characters > longest:
            continue
        key = token_key(base + to, end - base - to, seed)
        if stops.size > 1 and _among(key, stops):
            continue
        keys[count] = key
        to = end - base
        ends[count] = to
        count += 1
    return count, to


@njit(nogil=True, cache=True)
def word_keys(text, ends, seed, keys):
    """Compute the keys of texts as they stand, the i-th ``text[ends[i - 1]:ends[i]]``.

    Parameters
    ----------
    text : uint8[t]
        Seven bytes more than the texts.
    ends : int64[k]
    seed : uint64
    keys : uint64[k]
        Written.
    """
    base = int64(text.ctypes.data)
    begin = 0
    for i in range(ends.size):
        keys[i] = token_key(base + begin, ends[i] - begin, seed)
        begin = ends[i]
