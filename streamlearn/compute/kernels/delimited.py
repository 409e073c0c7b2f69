"""Delimited text (CSV, TSV) straight to compressed sparse rows: split, type, check, hash, cross.

A record is a line: a quoted field may hold delimiters and doubled quotes (RFC 4180) but no newline.
Records are found by 64-byte masks of delimiter, newline and quote; a record without a quote is read
where it lies, one with quotes is first unquoted into a scratch buffer of the same layout. Typing is
one loop over *ops*, one for each column that gives features.

Addresses are int64; loads may go 64 bytes past the end of the data.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint64

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

__all__ = [
    "CATEGORY",
    "COMPARE",
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
    "parse_time",
]

# Kinds of ops. TIME gives both features of a time, HOUR and WEEKDAY one.
CATEGORY, NUMBER, RAW, TIME, HOUR, WEEKDAY = 1, 2, 3, 4, 5, 6

# How a label is made: 0 compares the token with a table, the others the number with a threshold.
COMPARE = {">": 1, ">=": 2, "<": 3, "<=": 4, "==": 5, "!=": 6}

# Indices into ``settings`` (int64[N_SETTINGS]).
S_DELIMITER, S_QUOTE, S_TRIM, S_COLUMNS, S_EXACT, S_VALUES = 0, 1, 2, 3, 4, 5
S_LABEL, S_LABEL_ID, S_LABEL_MODE, S_WEIGHT, S_WEIGHT_ID, S_RECORD_MAX = 6, 7, 8, 9, 10, 11
N_SETTINGS = 12

# Reason codes of the minibatch.
_COUNT, _LABEL, _NUMBER, _UTF8, _TOO_LONG, _QUOTE, _TIME, _WEIGHT = 1, 2, 3, 4, 5, 6, 9, 10

_NEWLINE, _RETURN, _SPACE = uint64(10), uint64(13), uint64(32)
_SIXES = uint64(0x7676767676767676)
_HIGHS = uint64(0x8080808080808080)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NO_HOUR = 31


@njit(nogil=True, cache=True)
def _two(at):
    """Return the number of two digits at ``at``; 100 or more where they are not digits."""
    high, low = load8(at) - uint64(48), load8(at + 1) - uint64(48)
    if high > uint64(9) or low > uint64(9):
        return 100
    return int64(high) * 10 + int64(low)


@njit(nogil=True, cache=True)
def _date(year, month, day):
    """Return the weekday of a date of the Gregorian calendar, Monday 0; -1 where there is none.

    Days before each month (March first, so that a leap day comes last) are ``(153 m + 2) // 5``.
    """
    if year < 1 or month < 1 or month > 12 or day < 1:
        return -1
    days = 30 + ((month + (month >> 3)) & 1)
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        days = 29 if leap else 28
    if day > days:
        return -1
    shifted = month + 9 if month < 3 else month - 3
    year -= 1 if month < 3 else 0
    count = 365 * year + year // 4 - year // 100 + year // 400 + (153 * shifted + 2) // 5 + day
    return (count + 1) % 7


@njit(nogil=True, cache=True)
def _clock_tail(at, end):
    """Whether ``at`` to ``end`` may follow ``HH:MM``: ``[:SS[.fraction]][Z | +HH[[:]MM]]``."""
    if at < end and load8(at) == uint64(58):
        if end - at < 3 or _two(at + 1) > 60:
            return False
        at += 3
        if at < end and (load8(at) == uint64(46) or load8(at) == uint64(44)):
            at += 1
            begin = at
            while at < end and load8(at) - uint64(48) <= uint64(9):
                at += 1
            if at == begin:
                return False
    if at == end:
        return True
    byte = load8(at)
    if byte == uint64(90):
        return at + 1 == end
    if byte != uint64(43) and byte != uint64(45):
        return False
    left = end - at - 1
    if left < 2 or _two(at + 1) > 23:
        return False
    if left == 2:
        return True
    if left == 4:
        return _two(at + 3) < 60
    return left == 5 and load8(at + 3) == uint64(58) and _two(at + 4) < 60


@njit(nogil=True, cache=True)
def _parse_slashed(at, end):
    """Parse ``M/D/YYYY`` with an optional `` H:MM[:SS]``; see :func:`parse_time`."""
    parts = np.zeros(4, np.int64)
    for part in range(4):
        if part == 3 and at == end:
            return 32 * _date(parts[2], parts[0], parts[1]) + _NO_HOUR
        if part == 3:
            if load8(at) != uint64(32):
                return -1
            at += 1
        begin = at
        while at < end and at < begin + 4 and load8(at) - uint64(48) <= uint64(9):
            parts[part] = parts[part] * 10 + int64(load8(at) - uint64(48))
            at += 1
        wide = at - begin
        if wide == 0 or (part == 2 and wide != 4) or (part != 2 and wide > 2):
            return -1
        if part < 2:
            if at >= end or load8(at) != uint64(47):
                return -1
            at += 1
        if part == 2 and _date(parts[2], parts[0], parts[1]) < 0:
            return -1
    if end - at < 3 or load8(at) != uint64(58) or _two(at + 1) > 59 or parts[3] > 23:
        return -1
    if not _clock_tail(at + 3, end):
        return -1
    return 32 * _date(parts[2], parts[0], parts[1]) + parts[3]


@njit(nogil=True, cache=True)
def parse_time(at, length):
    """Return ``32 * weekday + hour`` of a time (Monday 0; hour 31 where it has none), -1 if bad.

    Takes ``YYYY-MM-DD``, with ``T`` or a space ``HH:MM[:SS[.fraction]]`` and a zone; ``M/D/YYYY``
    with an optional `` H:MM[:SS]``; and by the number of digits: 8 ``YYMMDDHH`` of this century, 9
    or 10 (with an optional fraction) seconds and 12 or 13 milliseconds since 1970 UTC. Hour and
    weekday are those written: a zone is checked, not applied.
    """
    end = at + length
    if length >= 16:
        # "0000-00-" and "00T00:00" turned into digits 0..9, and zeros where the separators stand
        first = load64(at) ^ uint64(0x2D30302D30303030)
        second = load64(at + 8) ^ uint64(0x30303A3030543030)
        between = (second >> uint64(16)) & uint64(0xFF)
        second &= uint64(0xFFFFFFFFFF00FFFF)
        wrong = (first + _SIXES) | first | (second + _SIXES) | second
        wrong = (wrong & _HIGHS) | (first & uint64(0xFF0000FF00000000))
        wrong |= second & uint64(0x0000FF0000000000)
        if wrong == uint64(0) and (between == uint64(0) or between == uint64(0x54 ^ 0x20)):
            # each pair of digits in one multiplication: byte 2i + 1 holds ten times one plus other
            pairs = (first * uint64(2561)) >> uint64(8)
            year = int64(pairs & uint64(0xFF)) * 100 + int64((pairs >> uint64(16)) & uint64(0xFF))
            month = int64((pairs >> uint64(40)) & uint64(0xFF))
            pairs = (second * uint64(2561)) >> uint64(8)
            day = int64(pairs & uint64(0xFF))
            hour = int64((pairs >> uint64(24)) & uint64(0xFF))
            minute = int64((pairs >> uint64(48)) & uint64(0xFF))
            weekday = _date(year, month, day)
            if weekday < 0 or hour > 23 or minute > 59:
                return -1
            if length > 16 and not _clock_tail(at + 16, end):
                return -1
            return 32 * weekday + hour
    digits = 0
    value = 0
    while digits < length and digits < 14:
        digit = load8(at + digits) - uint64(48)
        if digit > uint64(9):
            break
        value = value * 10 + int64(digit)
        digits += 1
    if digits == length or (9 <= digits <= 10 and load8(at + digits) == uint64(46)):
        if digits == 8:
            date = _date(2000 + value // 1_000_000, value // 10_000 % 100, value // 100 % 100)
            hour = value % 100
            return -1 if date < 0 or hour > 23 else 32 * date + hour
        for i in range(digits + 1, length):
            if load8(at + i) - uint64(48) > uint64(9):
                return -1
        if 12 <= digits <= 13:
            value //= 1000
        elif digits < 9 or digits > 10:
            return -1
        return 32 * ((value // 86_400 + 3) % 7) + value // 3600 % 24
    if digits == 4 and length == 10 and load8(at + 4) == uint64(45) and load8(at + 7) == uint64(45):
        if _two(at + 5) > 12:
            return -1
        date = _date(value, _two(at + 5), _two(at + 8))
        return -1 if date < 0 else 32 * date + _NO_HOUR
    if 1 <= digits <= 2:
        return _parse_slashed(at, end)
    return -1


@njit(nogil=True, cache=True)
def _unquote(line, stop, settings, bounds, scratch):
    """Unquote a record into ``scratch``; return how many fields it has, -1 for a wrong quote.

    ``bounds`` is filled as for a record without quotes, with addresses in ``scratch``.
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
    """Return the label of a token by a table (given by addresses), -1 where it has none."""
    begin = 0
    for i in range(count):
        end = int64(load64(ends + 8 * i))
        if end - begin == length:
            same = 0
            while same < length and load8(at + same) == load8(tokens + begin + same):
                same += 1
            if same == length:
                return int64(load64(labels + 8 * i))
        begin = end
    return -1 if length == 0 else otherwise


@njit(nogil=True, cache=True)
def label_of_number(at, length, mode, threshold):
    """Return the label that comparing a number makes, -1 where the token is no number."""
    value = decimal(at, length)
    if np.isnan(value):
        return -1
    if mode == 1:
        return int64(value > threshold)
    if mode == 2:
        return int64(value >= threshold)
    if mode == 3:
        return int64(value < threshold)
    if mode == 4:
        return int64(value <= threshold)
    return int64(value == threshold) if mode == 5 else int64(value != threshold)


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
    slots,
    bounds,
    scratch,
    keys,
    values,
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
    slots, bounds, scratch : uint64[2 ops], int64[columns + 1], uint8[record bytes + 64]
        Working space.
    keys, values, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place.
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
            found = _unquote(line, at, settings, bounds, scratch)
            reason = _QUOTE if found < 0 else 0
        else:
            found += 1
            if found <= n_columns:
                bounds[found] = at
        if reason == 0 and (found < n_columns or (exact and found > n_columns)):
            reason, arg = _COUNT, found
        label, weight, after = 0, 1.0, nnz
        if reason == 0 and label_column >= 0:
            at, length = _token(bounds_at, label_column, trim)
            if label_mode == 0:
                label = label_of_token(at, length, tokens_at, ends_at, labels_at, tokens, otherwise)
            else:
                label = label_of_number(at, length, label_mode, threshold)
            if label < 0:
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
                pass
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
            else:
                when = parse_time(at, length)
                reason = 0 if when >= 0 else _TIME
                if kind != WEEKDAY and when & 31 != _NO_HOUR:
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
            after += 1 if key != uint64(0) else 0
            if second != uint64(0):
                keys[after] = second
                if has_values:
                    values[after] = float32(1)
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
    letters; that of a number with a value is empty; a cross's has ``*`` between its parts'.
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
        _unquote(base + starts[record], stop, settings, bounds, scratch)
        for slot in range(2 * kinds.size):
            kind = kinds[slot >> 1]
            at, length = _token(bounds_at, columns[slot >> 1], trim)
            begins[slot] = to
            stops[slot] = -1
            if length == 0 or (slot & 1 == 1 and kind != TIME and kind != WEEKDAY):
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
                elif kind == WEEKDAY or hour == _NO_HOUR:
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
