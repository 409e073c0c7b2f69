"""Delimited text (CSV, TSV) straight to compressed sparse rows: split, type, check, hash, cross.

A record is a line: a quoted field may hold delimiters and doubled quotes (RFC 4180) but no newline.
Records are found by 64-byte masks of delimiter, newline and quote; a record without a quote is read
where it lies, one with quotes is first unquoted into a scratch buffer of the same layout. Typing is
one loop over *ops*, one for each column that gives features.

Addresses are int64; loads may go 64 bytes past the end of the data.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint64

from streamlearn.compute.kernels.bits import (
    cross_key,
    ctz,
    load8,
    load64,
    log_bucket,
    mask_eq2,
    mask_high,
    mix,
    token_key,
)
from streamlearn.compute.kernels.text import decimal, number, utf8_valid
from streamlearn.compute.kernels.times import NO_HOUR, parse_time

__all__ = [
    "CATEGORY",
    "COMPARE",
    "DENSE",
    "HOUR",
    "NUMBER",
    "N_SETTINGS",
    "RAW",
    "TIME",
    "WEEKDAY",
    "describe_records",
    "label_of_number",
    "label_of_token",
    "parse_records",
    "unquote",
]

# Kinds of ops. TIME gives both features of a time, HOUR and WEEKDAY one; DENSE gives no feature but
# a number of the example's dense part. (0, 7 and 8 are ops of JSON.)
CATEGORY, NUMBER, RAW, TIME, HOUR, WEEKDAY, DENSE = 1, 2, 3, 4, 5, 6, 9

# How a label is made: 0 looks the token up in a table, 1 to 6 compare the number with a threshold;
# "class" takes whole numbers from 0 that are below the threshold, "value" any finite float32.
COMPARE = {">": 1, ">=": 2, "<": 3, "<=": 4, "==": 5, "!=": 6, "class": 7, "value": 8}

# Indices into ``settings`` (int64[N_SETTINGS]).
S_DELIMITER, S_QUOTE, S_TRIM, S_COLUMNS, S_EXACT, S_VALUES = 0, 1, 2, 3, 4, 5
S_LABEL, S_LABEL_ID, S_LABEL_MODE, S_WEIGHT, S_WEIGHT_ID, S_RECORD_MAX = 6, 7, 8, 9, 10, 11
N_SETTINGS = 12

# Reason codes of the minibatch.
_COUNT, _LABEL, _NUMBER, _UTF8, _TOO_LONG, _QUOTE, _TIME, _WEIGHT = 1, 2, 3, 4, 5, 6, 9, 10

_NEWLINE, _RETURN, _SPACE = uint64(10), uint64(13), uint64(32)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@njit(nogil=True, cache=True)
def unquote(line, stop, settings, bounds, scratch):
    """Unquote a record into ``scratch``; return how many fields it has, -1 for a wrong quote.

    ``bounds`` is filled as for a record without quotes, with addresses in ``scratch``: field ``i``
    stands from ``bounds[i] + 1`` to ``bounds[i + 1]``. Of ``settings`` the first four matter.
    """
    delimiter, quote = uint64(settings[S_DELIMITER]), uint64(settings[S_QUOTE])
    trim, columns = settings[S_TRIM] != 0, settings[S_COLUMNS]
    base = int64(scratch.ctypes.data)
    at, to, found = line, 1, 0
    bounds[0] = base
    while True:
        if trim:
            while at < stop and load8(at) == _SPACE:
                at += 1
        if at < stop and load8(at) == quote:
            at += 1
            while True:
                if at >= stop:
                    return -1
                byte = load8(at)
                at += 1
                if byte == quote:
                    if at >= stop or load8(at) != quote:
                        break
                    at += 1
                scratch[to] = byte
                to += 1
            if trim:
                while at < stop and load8(at) == _SPACE:
                    at += 1
            if at < stop and load8(at) != delimiter:
                return -1
        else:
            while at < stop and load8(at) != delimiter:
                byte = load8(at)
                if byte == quote:
                    return -1
                scratch[to] = byte
                to += 1
                at += 1
        found += 1
        if found <= columns:
            bounds[found] = base + to
        to += 1
        if at >= stop:
            return found
        at += 1


@njit(nogil=True, cache=True)
def _token(bounds, column, trim):
    """Return address and length of a column's token, given the address of the bounds."""
    at = int64(load64(bounds + 8 * column)) + 1
    end = int64(load64(bounds + 8 * column + 8))
    if trim:
        while at < end and load8(at) == _SPACE:
            at += 1
        while at < end and load8(end - 1) == _SPACE:
            end -= 1
    return at, end - at


@njit(nogil=True, cache=True)
def label_of_token(at, length, tokens, ends, labels, count, otherwise):
    """Return the label of a token by a table (given by addresses), NaN where it has none.

    ``otherwise`` is the label of tokens that are not in the table, negative where they have none.
    """
    begin = 0
    for i in range(count):
        end = int64(load64(ends + 8 * i))
        if end - begin == length:
            same = 0
            while same < length and load8(at + same) == load8(tokens + begin + same):
                same += 1
            if same == length:
                return float64(int64(load64(labels + 8 * i)))
        begin = end
    return np.nan if length == 0 or otherwise < 0 else float64(otherwise)


@njit(nogil=True, cache=True)
def label_of_number(at, length, mode, threshold):
    """Return the label that a number makes (see ``COMPARE``), NaN where the token makes none."""
    value = decimal(at, length)
    if np.isnan(value):
        return np.nan
    if mode == 1:
        return float64(value > threshold)
    if mode == 2:
        return float64(value >= threshold)
    if mode == 3:
        return float64(value < threshold)
    if mode == 4:
        return float64(value <= threshold)
    if mode == 7:
        return value if 0 <= value < threshold and value == np.floor(value) else np.nan
    if mode == 8:
        return value if abs(value) <= _FLOAT32_MAX else np.nan
    return float64(value == threshold) if mode == 5 else float64(value != threshold)


@njit(nogil=True, cache=True)
def parse_records(
    buffer,
    start,
    end,
    settings,
    kinds,
    columns,
    ids,
    seeds,
    cross_ends,
    cross_slots,
    cross_seeds,
    threshold,
    label_tokens,
    label_ends,
    label_values,
    slot_fields,
    cross_fields,
    slots,
    bounds,
    scratch,
    keys,
    values,
    fields,
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
        Delimiter and quote (bytes; quote is a newline where quotes mean nothing), trim (0/1),
        number of columns, whether a record has exactly as many (else at least), whether features
        carry values, label column (-1: every label is 0), its id, how a label is made (0 or a value
        of ``COMPARE``), weight column (-1: every weight is 1), its id, bytes a record may have.
    kinds, columns, ids : int8[ops], int32[ops], int32[ops]
        What each op makes of which column, and the number that names it in ``bad_arg``.
    seeds : uint64[ops, 2]
        Field seeds; ``seeds[op, 1]`` is the weekday's.
    cross_ends, cross_slots, cross_seeds : int64[crosses], int64[parts], uint64[crosses]
        The parts of cross ``i`` are ``cross_slots[cross_ends[i - 1]:cross_ends[i]]``: ``2 op``, or
        ``2 op + 1`` for a weekday.
    threshold : float
        What a label is compared with; where labels are tokens, the label of all other tokens.
    label_tokens, label_ends, label_values : uint8[k], int64[m], int64[m]
        Tokens that make a label: ``label_tokens[label_ends[i - 1]:label_ends[i]]``.
    slot_fields, cross_fields : int32[2 ops], int32[crosses]
        The fields' numbers, by slot and by cross; of a dense op's slot the column of ``dense``.
    slots, bounds, scratch : uint64[2 ops], int64[columns + 1], uint8[record bytes + 64]
        Working space.
    keys, values, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place. Of fields nothing is
        written where that has no length; a dense number that is missing is NaN.
    nnz_last : int
        Stops once there are more features than this: the next record might not fit.

    Notes
    -----
    A record's label is checked first, then its weight, then its columns from the left; the first
    that is wrong makes it a bad record. O(bytes).
    """
    base = int64(buffer.ctypes.data)
    delimiter, quote = uint64(settings[S_DELIMITER]), uint64(settings[S_QUOTE])
    trim = settings[S_TRIM] != 0
    n_columns = settings[S_COLUMNS]
    exact = settings[S_EXACT] != 0
    has_values = settings[S_VALUES] != 0
    has_fields = fields.size > 0
    label_column, label_mode = settings[S_LABEL], settings[S_LABEL_MODE]
    otherwise = int64(threshold)
    # Helpers get addresses: each array given to a function costs two atomic counts of references.
    bounds_at = int64(bounds.ctypes.data)
    tokens_at = int64(label_tokens.ctypes.data)
    ends_at = int64(label_ends.ctypes.data)
    labels_at = int64(label_values.ctypes.data)
    tokens = label_ends.size
    weight_column = settings[S_WEIGHT]
    rows_max = labels.size
    rows, nnz, bad, records = state[0], state[1], state[2], state[3]
    begin, last = base + start, base + end
    window = begin
    mask = mask_eq2(window, delimiter, _NEWLINE) | mask_eq2(window, quote, quote)
    wide = mask_high(window)
    while begin < last and rows < rows_max and bad < rows_max and nnz <= nnz_last:
        line = begin
        high = wide
        found = 0
        quoted = False
        bounds[0] = line - 1
        while True:
            while mask == uint64(0):
                window += 64
                mask = mask_eq2(window, delimiter, _NEWLINE) | mask_eq2(window, quote, quote)
                wide = mask_high(window)
                high |= wide
            at = window + int64(ctz(mask))
            mask &= mask - uint64(1)
            byte = load8(at)
            if byte == delimiter:
                found += 1
                if found <= n_columns:
                    bounds[found] = at
            elif byte == _NEWLINE:
                break
            else:
                quoted = True
        begin = at + 1
        if at > line and load8(at - 1) == _RETURN:
            at -= 1
        if at == line:
            continue
        records += 1
        reason, field, arg = 0, -1, 0
        if at - line > settings[S_RECORD_MAX]:
            reason, arg = _TOO_LONG, at - line
        elif quoted:
            found = unquote(line, at, settings, bounds, scratch)
            reason = _QUOTE if found < 0 else 0
        else:
            found += 1
            if found <= n_columns:
                bounds[found] = at
        if reason == 0 and (found < n_columns or (exact and found > n_columns)):
            reason, arg = _COUNT, found
        label, weight, after = 0.0, 1.0, nnz
        if reason == 0 and label_column >= 0:
            at, length = _token(bounds_at, label_column, trim)
            if label_mode == 0:
                label = label_of_token(at, length, tokens_at, ends_at, labels_at, tokens, otherwise)
            else:
                label = label_of_number(at, length, label_mode, threshold)
            if np.isnan(label):
                reason, field, arg = _LABEL, label_column, settings[S_LABEL_ID]
        if reason == 0 and weight_column >= 0:
            at, length = _token(bounds_at, weight_column, trim)
            weight = decimal(at, length)
            if not 0 <= weight <= _FLOAT32_MAX:
                reason, field, arg = _WEIGHT, weight_column, settings[S_WEIGHT_ID]
        op = 0
        while reason == 0 and op < kinds.size:
            kind = kinds[op]
            at, length = _token(bounds_at, columns[op], trim)
            key, second, value = uint64(0), uint64(0), float32(1)
            if length == 0:
                if kind == DENSE:
                    dense[rows, slot_fields[2 * op]] = np.nan
            elif kind == CATEGORY:
                if high != uint64(0) and not utf8_valid(at, length):
                    reason = _UTF8
                key = token_key(at, length, seeds[op, 0])
            elif kind <= RAW:
                valid, single = number(at, length)
                reason = 0 if valid else _NUMBER
                if kind == NUMBER:
                    key = mix(log_bucket(single), seeds[op, 0])
                else:
                    key, value = mix(uint64(0), seeds[op, 0]), single
            elif kind == DENSE:
                valid, single = number(at, length)
                reason = 0 if valid else _NUMBER
                dense[rows, slot_fields[2 * op]] = single
            else:
                when = parse_time(at, length)
                reason = 0 if when >= 0 else _TIME
                if kind != WEEKDAY and when & 31 != NO_HOUR:
                    key = mix(uint64(when & 31), seeds[op, 0])
                if kind != HOUR:
                    second = mix(uint64(when >> 5), seeds[op, 1])
            if reason != 0:
                field, arg = int64(columns[op]), int64(ids[op])
            # Written in any case, kept where there is one: a key is never 0.
            slots[2 * op] = key
            slots[2 * op + 1] = second
            keys[after] = key
            if has_values:
                values[after] = value
            if has_fields:
                fields[after] = slot_fields[2 * op]
            after += 1 if key != uint64(0) else 0
            if second != uint64(0):
                keys[after] = second
                if has_values:
                    values[after] = float32(1)
                if has_fields:
                    fields[after] = slot_fields[2 * op + 1]
                after += 1
            op += 1
        if reason != 0:
            bad_start[bad] = line - base
            bad_reason[bad] = reason
            bad_field[bad] = field
            bad_arg[bad] = arg
            bad += 1
            continue
        part = 0
        for cross in range(cross_ends.size):
            key = slots[cross_slots[part]]
            missing = key == uint64(0)
            part += 1
            while part < cross_ends[cross]:
                other = slots[cross_slots[part]]
                missing |= other == uint64(0)
                key = cross_key(key, other, cross_seeds[cross])
                part += 1
            keys[after] = key
            if has_values:
                values[after] = float32(1)
            if has_fields:
                fields[after] = cross_fields[cross]
            after += 0 if missing else 1
        labels[rows] = label
        weights[rows] = weight
        lines[rows] = line - base
        rows += 1
        indptr[rows] = after
        nnz = after
    state[0], state[1], state[2], state[3] = rows, nnz, bad, records
    return begin - base


@njit(nogil=True, cache=True)
def _append(text, to, begin, end, source):
    """Append ``source[begin:end]`` to ``text``; return where it ends."""
    for i in range(begin, end):
        text[to] = source[i]
        to += 1
    return to


@njit(nogil=True, cache=True)
def describe_records(
    buffer,
    starts,
    ends,
    settings,
    kinds,
    columns,
    cross_ends,
    cross_slots,
    bounds,
    scratch,
    bucket_text,
    bucket_ends,
    weekday_text,
    slot_fields,
    cross_fields,
    fields,
    text_ends,
    text,
):
    """Write the texts of the features of good records, in the order in which they are parsed.

    Parameters
    ----------
    buffer, settings, kinds, columns, cross_ends, cross_slots, bounds, scratch
        As for :func:`parse_records`.
    starts, ends : int64[r]
        The records in ``buffer``, without newline.
    bucket_text, bucket_ends : uint8[k], int64[2048]
        The texts of all buckets, one after the other, and where each ends.
    weekday_text : uint8[21]
        Three letters a weekday, Monday first.
    slot_fields, cross_fields : int32[2 ops], int32[crosses]
        The fields' numbers, by slot and by cross.
    fields, text_ends, text : int32[m], int64[m], uint8[t]
        Written: for each feature its field and where its text ends; room for all.

    Returns
    -------
    int
        How many features there are: as many as :func:`parse_records` makes of these records.

    Notes
    -----
    A category's text is its token, a bucket's the range, an hour's its number, a weekday's three
    letters; that of a number with a value is empty; a cross's has ``*`` between its parts'. Dense
    numbers are no features.
    """
    base = int64(buffer.ctypes.data)
    bounds_at = int64(bounds.ctypes.data)
    trim = settings[S_TRIM] != 0
    # where each slot's text is; -1: the slot has no feature
    begins = np.zeros(2 * kinds.size, np.int64)
    stops = np.zeros(2 * kinds.size, np.int64)
    count, to = 0, 0
    for record in range(starts.size):
        stop = base + ends[record]
        if ends[record] > starts[record] and load8(stop - 1) == _RETURN:
            stop -= 1
        unquote(base + starts[record], stop, settings, bounds, scratch)
        for slot in range(2 * kinds.size):
            kind = kinds[slot >> 1]
            at, length = _token(bounds_at, columns[slot >> 1], trim)
            begins[slot] = to
            stops[slot] = -1
            if length == 0 or kind == DENSE:
                continue
            if slot & 1 == 1 and kind != TIME and kind != WEEKDAY:
                continue
            if kind == CATEGORY:
                for i in range(length):
                    text[to] = load8(at + i)
                    to += 1
            elif kind == NUMBER:
                code = int64(log_bucket(number(at, length)[1]))
                begin = bucket_ends[code - 1] if code > 0 else 0
                to = _append(text, to, begin, bucket_ends[code], bucket_text)
            elif kind != RAW:
                when = parse_time(at, length)
                hour = when & 31
                if slot & 1 == 1:
                    to = _append(text, to, 3 * (when >> 5), 3 * (when >> 5) + 3, weekday_text)
                elif kind == WEEKDAY or hour == NO_HOUR:
                    continue
                else:
                    if hour >= 10:
                        text[to] = 48 + hour // 10
                        to += 1
                    text[to] = 48 + hour % 10
                    to += 1
            stops[slot] = to
            fields[count] = slot_fields[slot]
            text_ends[count] = to
            count += 1
        part = 0
        for cross in range(cross_ends.size):
            first = part
            begin = to
            while part < cross_ends[cross]:
                slot = cross_slots[part]
                if stops[slot] < 0:
                    to = -1
                    break
                if part > first:
                    text[to] = 42
                    to += 1
                to = _append(text, to, begins[slot], stops[slot], text)
                part += 1
            part = cross_ends[cross]
            if to < 0:
                to = begin
                continue
            fields[count] = cross_fields[cross]
            text_ends[count] = to
            count += 1
    return count
