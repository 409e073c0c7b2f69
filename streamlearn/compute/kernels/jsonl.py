"""JSON, one object a line, straight to compressed sparse rows: check, flatten, type, hash, cross.

One pass over the bytes with a stack of 64 levels. Every byte of a record is checked against the
grammar (RFC 8259), also where its value is not wanted. A value's *path* is the keys that lead to
it with dots between; an array adds nothing to the path, so each of its elements is a value of it.
The path is hashed as it stands in the record and looked up in a small open-addressing table, which
says what to make of the value: an *op*, or, where all fields are wanted, just a seed.

Addresses are int64; loads may go 64 bytes past the end of the data. What ends a record is its
newline, which no rule of the grammar takes for part of a value: no other bound is looked at.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import (
    cross_key,
    ctz,
    load8,
    load32,
    log_bucket,
    mask_eq2,
    mask_high,
    mix,
    store32,
    token_key,
)
from streamlearn.compute.kernels.delimited import (
    CATEGORY,
    DENSE,
    HOUR,
    NUMBER,
    RAW,
    TIME,
    WEEKDAY,
    label_of_number,
    label_of_token,
)
from streamlearn.compute.kernels.json_names import C_TEXT, tell
from streamlearn.compute.kernels.json_text import (
    DEPTH_MAX,
    EXPECT_ARRAY_COMMA,
    EXPECT_COLON,
    EXPECT_COMMA,
    EXPECT_END,
    EXPECT_KEY,
    EXPECT_LEVELS,
    EXPECT_NUMBER,
    EXPECT_OBJECT,
    EXPECT_SURROGATE,
    EXPECT_VALUE,
    blank,
    copy,
    numeral,
    plain_end,
    unescape,
)
from streamlearn.compute.kernels.seeds import name_seed
from streamlearn.compute.kernels.text import number, utf8_valid
from streamlearn.compute.kernels.times import NO_HOUR, parse_time

__all__ = [
    "AUTO",
    "C_TEXT",
    "LABEL",
    "N_COUNTERS",
    "N_SETTINGS",
    "WEIGHT",
    "parse_records",
    "path_hash",
]

# Kinds of ops besides those of delimited text. AUTO: a number is NUMBER, all else CATEGORY.
AUTO, LABEL, WEIGHT = 0, 7, 8

# Indices into ``settings`` (int64[N_SETTINGS]).
S_DYNAMIC, S_LABEL_MODE, S_WEIGHT, S_RECORD_MAX, S_FEATURES_MAX, S_TELL = 0, 1, 2, 3, 4, 5
N_SETTINGS = 6

# Indices into ``counters`` (int64[N_COUNTERS]): paths remembered, how many may be; text written.
C_PATHS, C_PATHS_MAX = 0, 1  # and C_TEXT, 2
N_COUNTERS = 3

# Paths are hashed with a seed of their own: only the table of ops sees these hashes.
_PATH_SEED = np.uint64(0x6A736F6E6C706174)

# Reason codes of the minibatch.
_R_LABEL, _R_NUMBER, _R_UTF8, _R_TOO_LONG, _R_SYNTAX, _R_FEATURES = 2, 3, 4, 5, 7, 8
_R_TIME, _R_WEIGHT = 9, 10

_QUOTE, _NEWLINE, _SPACE = uint64(34), uint64(10), uint64(32)

# Types of values.
_NULL, _TEXT, _NUMBER, _BOOLEAN = 0, 1, 2, 3


@njit(nogil=True, cache=True)
def path_hash(at, length):
    """Return the hash of a path in the table of ops, never 0.

    A key of a short token does not tell zero bytes at its end from nothing; a path's hash does.
    """
    return token_key(at, length, _PATH_SEED) ^ (uint64(length) << uint64(1))


@njit(nogil=True, cache=True)
def _find(wanted, table):
    """Return the place of a path's hash in the table, or ``-1 - place`` of where it would stand."""
    mask = table.size - 1
    place = int64(wanted >> uint64(32)) & mask
    while True:
        found = table[place]
        if found == wanted:
            return place
        if found == uint64(0):
            return -1 - place
        place = (place + 1) & mask


@njit(nogil=True, cache=True)
def _record(begin, settings, kinds, seeds, ids, table, table_ops, table_seeds, threshold, label_tokens, label_ends, label_values, path, token, levels, level_ops, level_seeds, slots, keys, values, ids_at, dense_at, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters):  # fmt: skip  # noqa: E501
    """Read the record at ``begin``, which ends at the first newline.

    Returns
    -------
    nnz : int64
        Where its features end.
    reason, field, arg : int64
        As in ``Minibatch.bad_*``.
    label, weight : float64
    """
    base = int64(path.ctypes.data)
    dynamic = settings[S_DYNAMIC] != 0
    has_values, telling = values.size > 0, settings[S_TELL] != 0
    has_slots = slots.size > 0
    last = nnz + settings[S_FEATURES_MAX]
    label, label_at = np.nan, -16
    weight, weight_at = -1.0, -16
    reason, bad_field, arg = 0, -1, 0
    crowded = False

    at = blank(begin)
    if load8(at) != uint64(123):
        return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_OBJECT, label, weight
    at += 1
    depth = 0
    objects = uint64(1)  # bit i: whether level i is an object
    levels[0] = 0
    in_object = True
    opened = True  # whether nothing stands in this level yet
    path_at, path_length = base, 0
    op, seed = -1, uint64(0)
    while True:
        byte = load8(at)
        if byte <= _SPACE:
            at = blank(at)
            byte = load8(at)
        closing = False
        if opened and byte == (uint64(125) if in_object else uint64(93)):
            closing = True
        elif in_object:
            if byte != _QUOTE:
                return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_KEY, label, weight
            at += 1
            prefix = levels[depth]
            stop = plain_end(at)
            if load8(stop) == _QUOTE:
                path_at, path_length = at, stop - at
                at = stop + 1
                if prefix != 0:
                    copy(path_at, path_length, path, prefix)
                    path_at, path_length = base, prefix + path_length
            else:
                at, path_length, code = unescape(at, path, prefix)
                if code != 0:
                    wrong = _R_UTF8 if code == EXPECT_SURROGATE else _R_SYNTAX
                    return nnz, wrong, -1, 16 * (at - begin) + code, label, weight
                path_at, path_length = base, prefix + path_length
            byte = load8(at)
            if byte != uint64(58):
                at = blank(at)
                if load8(at) != uint64(58):
                    return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_COLON, label, weight
            at += 1
            wanted = path_hash(path_at, path_length)
            place = _find(wanted, table)
            if place >= 0:
                op, seed = int64(table_ops[place]), table_seeds[place]
            elif not dynamic:
                op = -1
            else:
                op, seed = -2, name_seed(path_at, path_length)
                if counters[C_PATHS] < counters[C_PATHS_MAX]:
                    counters[C_PATHS] += 1
                    table[-1 - place] = wanted
                    table_ops[-1 - place] = -2
                    table_seeds[-1 - place] = seed
            byte = load8(at)
            if byte <= _SPACE:
                at = blank(at)
                byte = load8(at)
        else:
            path_at, path_length = base, levels[depth]
            op, seed = level_ops[depth], level_seeds[depth]

        if not closing:
            opened = False
            begins = at
            if byte == _QUOTE:
                at += 1
                stop = plain_end(at)
                if load8(stop) == _QUOTE:
                    token_at, length = at, stop - at
                    at = stop + 1
                else:
                    at, length, code = unescape(at, token, int64(0))
                    if code != 0:
                        wrong = _R_UTF8 if code == EXPECT_SURROGATE else _R_SYNTAX
                        return nnz, wrong, -1, 16 * (at - begin) + code, label, weight
                    token_at = int64(token.ctypes.data)
                kind = _TEXT
            elif byte - uint64(48) <= uint64(9) or byte == uint64(45):
                token_at = at
                at = numeral(at)
                if at < 0:
                    return nnz, _R_SYNTAX, -1, 16 * (-at - begin) + EXPECT_NUMBER, label, weight
                length = at - token_at
                kind = _NUMBER
            elif byte == uint64(123) or byte == uint64(91):
                if depth == DEPTH_MAX - 1:
                    return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_LEVELS, label, weight
                if path_at != base:
                    copy(path_at, path_length, path, 0)
                depth += 1
                in_object = byte == uint64(123)
                if in_object:
                    path[path_length] = 46
                    levels[depth] = path_length + 1
                    objects |= uint64(1) << uint64(depth)
                else:
                    levels[depth] = path_length
                    level_ops[depth] = op
                    level_seeds[depth] = seed
                    objects &= ~(uint64(1) << uint64(depth))
                opened = True
                at += 1
                continue
            else:
                word = load32(at)
                token_at = at
                if word == uint64(0x65757274):  # true
                    kind, length = _BOOLEAN, 4
                elif word == uint64(0x736C6166) and load8(at + 4) == uint64(101):  # false
                    kind, length = _BOOLEAN, 5
                elif word == uint64(0x6C6C756E):
                    kind, length = _NULL, 0
                    at += 4
                else:
                    return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_VALUE, label, weight
                at += length

            if op != -1 and length > 0:
                make = AUTO
                field = int64(-1)
                if op >= 0:
                    make = int64(kinds[op])
                    seed = seeds[op, 0]
                    field = int64(ids[op, 0])
                if make == AUTO:
                    make = NUMBER if kind == _NUMBER else CATEGORY
                if make == LABEL:
                    label_at = 16 * (begins - begin)
                    if settings[S_LABEL_MODE] == 0:
                        label = label_of_token(
                            token_at,
                            length,
                            int64(label_tokens.ctypes.data),
                            int64(label_ends.ctypes.data),
                            int64(label_values.ctypes.data),
                            label_ends.size,
                            int64(threshold),
                        )
                    else:
                        label = label_of_number(token_at, length, settings[S_LABEL_MODE], threshold)
                elif make == WEIGHT:
                    weight_at = 16 * (begins - begin)
                    valid, value = number(token_at, length)
                    weight = value if valid else -1.0
                elif make == DENSE:
                    valid, value = number(token_at, length)
                    if not valid and reason == 0:
                        reason, bad_field, arg = _R_NUMBER, op, 16 * (begins - begin)
                    store32(dense_at + 4 * field, value)
                elif nnz + (make == TIME) >= last:
                    crowded = True
                elif make == CATEGORY:
                    key = token_key(token_at, length, seed)
                    keys[nnz] = key
                    if has_values:
                        values[nnz] = float32(1)
                    if ids_at != 0:
                        store32(ids_at + 4 * nnz, uint32(field))
                    if has_slots and op >= 0:
                        slots[2 * op] = key
                    if telling:
                        tell(CATEGORY, int64(0), field, path_at, path_length, token_at, length, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters)  # fmt: skip  # noqa: E501
                    nnz += 1
                elif make in (NUMBER, RAW):
                    valid, value = number(token_at, length)
                    if not valid and reason == 0:
                        reason, bad_field, arg = _R_NUMBER, op, 16 * (begins - begin)
                    bucket = uint64(0)
                    if make == NUMBER:
                        bucket = log_bucket(value)
                        value = float32(1)
                    key = mix(bucket, seed)
                    keys[nnz] = key
                    if has_values:
                        values[nnz] = value
                    if ids_at != 0:
                        store32(ids_at + 4 * nnz, uint32(field))
                    if has_slots and op >= 0:
                        slots[2 * op] = key
                    if telling:
                        tell(make, int64(bucket), field, path_at, path_length, token_at, length, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters)  # fmt: skip  # noqa: E501
                    nnz += 1
                else:
                    when = parse_time(token_at, length)
                    if when < 0:
                        if reason == 0:
                            reason, bad_field, arg = _R_TIME, op, 16 * (begins - begin)
                        when = 0
                    hour = when & 31
                    if make != WEEKDAY and hour != NO_HOUR:
                        key = mix(uint64(hour), seed)
                        keys[nnz] = key
                        if has_values:
                            values[nnz] = float32(1)
                        if ids_at != 0:
                            store32(ids_at + 4 * nnz, uint32(field))
                        if has_slots:
                            slots[2 * op] = key
                        if telling:
                            tell(HOUR, hour, field, path_at, path_length, token_at, length, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters)  # fmt: skip  # noqa: E501
                        nnz += 1
                    if make != HOUR:
                        key, field = mix(uint64(when >> 5), seeds[op, 1]), int64(ids[op, 1])
                        keys[nnz] = key
                        if has_values:
                            values[nnz] = float32(1)
                        if ids_at != 0:
                            store32(ids_at + 4 * nnz, uint32(field))
                        if has_slots:
                            slots[2 * op + 1] = key
                        if telling:
                            tell(WEEKDAY, when >> 5, field, path_at, path_length, token_at, length, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters)  # fmt: skip  # noqa: E501
                        nnz += 1

        # behind a value: a comma, or the end of one level or several
        while True:
            if not closing:
                byte = load8(at)
                if byte <= _SPACE:
                    at = blank(at)
                    byte = load8(at)
                if byte == uint64(44):
                    at += 1
                    break
                if byte != (uint64(125) if in_object else uint64(93)):
                    code = EXPECT_COMMA if in_object else EXPECT_ARRAY_COMMA
                    return nnz, _R_SYNTAX, -1, 16 * (at - begin) + code, label, weight
            closing = False
            opened = False
            at += 1
            depth -= 1
            if depth < 0:
                break
            in_object = (objects >> uint64(depth)) & uint64(1) != uint64(0)
        if depth < 0:
            break

    at = blank(at)
    if load8(at) != _NEWLINE:
        return nnz, _R_SYNTAX, -1, 16 * (at - begin) + EXPECT_END, label, weight
    if crowded:
        return nnz, _R_FEATURES, -1, settings[S_FEATURES_MAX], label, weight
    if np.isnan(label):
        return nnz, _R_LABEL, -1, label_at, label, weight
    if settings[S_WEIGHT] == 0:
        weight = 1.0
    elif not weight >= 0:
        return nnz, _R_WEIGHT, -1, weight_at, label, weight
    return nnz, reason, bad_field, arg, label, weight


@njit(nogil=True, cache=True)
def _cross(
    slots, cross_ends, cross_slots, cross_seeds, cross_ids, has_values, telling, keys, values,
    ids_at, nnz, fields, text_ends, text, counters
):  # fmt: skip
    """Append the crosses of a record whose features end at ``nnz``; return where they end.

    When telling, a part's text is that of the record's last feature with its key.
    """
    begin = 0
    plain = nnz
    for cross in range(cross_ends.size):
        end = cross_ends[cross]
        key = slots[cross_slots[begin]]
        missing = key == uint64(0)
        for part in range(begin + 1, end):
            other = slots[cross_slots[part]]
            missing |= other == uint64(0)
            key = cross_key(key, other, cross_seeds[cross])
        if not missing:
            keys[nnz] = key
            if has_values:
                values[nnz] = float32(1)
            if ids_at != 0:
                store32(ids_at + 4 * nnz, uint32(cross_ids[cross]))
            if telling:
                to = counters[C_TEXT]
                for part in range(begin, end):
                    if part > begin:
                        text[to] = 42
                        to += 1
                    feature = plain - 1
                    while keys[feature] != slots[cross_slots[part]]:
                        feature -= 1
                    for i in range(
                        text_ends[feature - 1] if feature > 0 else 0, text_ends[feature]
                    ):
                        text[to] = text[i]
                        to += 1
                fields[nnz] = cross_ids[cross]
                text_ends[nnz] = to
                counters[C_TEXT] = to
            nnz += 1
        begin = end
    return nnz


@njit(nogil=True, cache=True)
def parse_records(
    buffer,
    start,
    end,
    settings,
    kinds,
    seeds,
    ids,
    table,
    table_ops,
    table_seeds,
    cross_ends,
    cross_slots,
    cross_seeds,
    cross_ids,
    threshold,
    label_tokens,
    label_ends,
    label_values,
    path,
    token,
    levels,
    level_ops,
    level_seeds,
    slots,
    counters,
    bucket_text,
    bucket_ends,
    weekday_text,
    fields,
    text_ends,
    text,
    keys,
    values,
    field_ids,
    dense,
    indptr,
    labels,
    weights,
    lines,
    bad_start,
    bad_reason,
    bad_field,
    bad_arg,
    state,
    nnz_last,
):
    """Append the records of ``buffer[start:end]`` to a minibatch; return the first byte not parsed.

    Parameters
    ----------
    buffer : uint8[n]
        ``buffer[end - 1]`` is a newline; at least 64 bytes may be read past ``end``.
    start, end : int
        Stops early once the minibatch is full, so always between two records.
    settings : int64[N_SETTINGS]
        Whether paths that are not in the table give features, too; how a label is made (0 or a
        value of ``COMPARE``); whether there is a weight; bytes and features that a record may have;
        whether to write names.
    kinds, seeds, ids : int8[ops], uint64[ops, 2], int32[ops, 2]
        What each op makes of a value, and the seeds and numbers of its fields (of a dense op the
        column); ``[op, 1]`` is the weekday's.
    table, table_ops, table_seeds : uint64[t], int32[t], uint64[t]
        Open addressing by :func:`path_hash`, 0 is empty, t a power of two and at most
        half full. The op of each path, or -2 and its seed where it is AUTO without a number.
        Paths met on the way are added, up to a bound: with more, their seeds are computed anew.
    cross_ends, cross_slots, cross_seeds, cross_ids
        The parts of cross ``i`` are ``cross_slots[cross_ends[i - 1]:cross_ends[i]]``: ``2 op``, or
        ``2 op + 1`` for a weekday.
    threshold, label_tokens, label_ends, label_values
        As for delimited records.
    path, token : uint8[record bytes + 128]
        Working space: a path, a string without its escapes.
    levels, level_ops, level_seeds : int64[DEPTH_MAX], int64[DEPTH_MAX], uint64[DEPTH_MAX]
        Working space: by level, bytes of its path, and what its elements are if it is an array.
    slots : uint64[2 ops] or uint64[0]
        Working space: the last key of each op, where there are crosses.
    counters : int64[N_COUNTERS]
        Paths in the table, how many may be, bytes of text. Updated.
    bucket_text, bucket_ends, weekday_text
        The texts of all buckets, where each ends; three letters a weekday, Monday first.
    fields, text_ends, text : int32[nnz_max], int64[nnz_max], uint8[...]
        Receive names where the settings say so, with room for two names and three bytes a feature
        and those of the parts of each cross.
    keys, values, field_ids, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place; values and field_ids only
        where they have length.
    nnz_last : int
        Stops once there are more features than this: the next record might not fit.

    Notes
    -----
    The first of these makes a bad record: its length, its UTF-8, its grammar, the number of its
    features, its label, its weight, its values from the left, its crosses. O(bytes).
    """
    base = int64(buffer.ctypes.data)
    rows_max = labels.size
    has_values, telling = values.size > 0, settings[S_TELL] != 0
    dense_base, width = int64(dense.ctypes.data), dense.shape[1]
    ids_at = int64(field_ids.ctypes.data) if field_ids.size > 0 else int64(0)
    rows, nnz, bad, records = state[0], state[1], state[2], state[3]
    begin, final = base + start, base + end
    while begin < final and rows < rows_max and bad < rows_max and nnz <= nnz_last:
        window = begin
        high = uint64(0)
        mask = mask_eq2(window, _NEWLINE, _NEWLINE)
        while mask == uint64(0):
            high |= mask_high(window)
            window += 64
            mask = mask_eq2(window, _NEWLINE, _NEWLINE)
        high |= mask_high(window) & (mask - uint64(1))
        line, stop = begin, window + int64(ctz(mask))
        begin = stop + 1
        if load8(line) <= _SPACE and blank(line) == stop:
            continue
        records += 1
        field, arg = -1, 0
        after, label, weight = nnz, 0.0, 1.0
        if stop - line > settings[S_RECORD_MAX]:
            reason, arg = _R_TOO_LONG, stop - line
        elif high != uint64(0) and not utf8_valid(line, stop - line):
            reason = _R_UTF8
        else:
            slots[:] = uint64(0)
            dense_at = dense_base + 4 * rows * width
            for i in range(width):
                store32(dense_at + 4 * i, float32(np.nan))
            counters_before = counters[C_TEXT]
            after, reason, field, arg, label, weight = _record(line, settings, kinds, seeds, ids, table, table_ops, table_seeds, threshold, label_tokens, label_ends, label_values, path, token, levels, level_ops, level_seeds, slots, keys, values, ids_at, dense_at, nnz, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters)  # fmt: skip  # noqa: E501
            if reason != 0:
                counters[C_TEXT] = counters_before
        if reason == 0 and cross_ends.size > 0:
            if after - nnz + cross_ends.size > settings[S_FEATURES_MAX]:
                reason, arg = _R_FEATURES, settings[S_FEATURES_MAX]
            else:
                after = _cross(
                    slots, cross_ends, cross_slots, cross_seeds, cross_ids, has_values, telling,
                    keys, values, ids_at, after, fields, text_ends, text, counters
                )  # fmt: skip
        if reason == 0:
            labels[rows] = label
            weights[rows] = weight
            lines[rows] = line - base
            rows += 1
            indptr[rows] = after
            nnz = after
        else:
            bad_start[bad] = line - base
            bad_reason[bad] = reason
            bad_field[bad] = field
            bad_arg[bad] = arg
            bad += 1
    state[0], state[1], state[2], state[3] = rows, nnz, bad, records
    return begin - base
