"""Documents as counts of words: ``count word:n word:n ...``, or ``document word n`` a line.

A word is a number, whose key is that of the word it stands for, or of its own digits:

    keys of row r = for each word:n of record r, the word's key n times

Addresses are int64; loads may go 64 bytes past the end of the data.
"""

from __future__ import annotations

from numba import int64, njit, uint64

from streamlearn.compute.kernels.bits import load8, token_key
from streamlearn.compute.kernels.documents import add_rows
from streamlearn.compute.kernels.text import line_end

__all__ = [
    "N_SETTINGS",
    "N_STATE",
    "describe_records",
    "parse_records",
    "regroup",
]

# Indices into ``settings`` (int64[N_SETTINGS]): the number of the first word; whether a record
# begins with its document's number (else with how many pairs follow); how many words there are
# (-1: any number of them); bytes of a record, words of a row, words of a record, at most.
S_FIRST, S_NUMBERED, S_WORDS, S_RECORD_MAX, S_ROW_MAX, S_WORDS_MAX = 0, 1, 2, 3, 4, 5
N_SETTINGS = 6

# Indices into ``state`` (int64[N_STATE]) of ``regroup``: the document that lines are of now, and
# whether its record has begun; bytes and words of that; documents there should be; entries so far;
# whether it stopped since it split a document; bytes written.
R_DOCUMENT, R_OPEN, R_BYTES, R_WORDS, R_DOCUMENTS, R_ENTRIES, R_SPLIT, R_TO = 0, 1, 2, 3, 4, 5, 6, 7
N_STATE = 8

# Counters of the minibatch.
_ROWS, _NNZ, _BAD, _RECORDS, _SPLIT = 0, 1, 2, 3, 5

# Reason codes of the minibatch.
_COUNT, _NUMBER, _TOO_LONG, _SYNTAX, _FEATURES, _WORD = 1, 3, 5, 7, 8, 11

_SPACE, _COLON, _RETURN, _TAB = uint64(32), uint64(58), uint64(13), uint64(9)
_ZERO, _NINE, _MARK = uint64(48), uint64(9), 33
_DIGITS_MAX = 18
_LOW = (1 << 21) - 1


@njit(nogil=True, cache=True, inline="always")
def _blank(at, stop):
    while at < stop and (load8(at) == _SPACE or load8(at) == _TAB or load8(at) == _RETURN):
        at += 1
    return at


@njit(nogil=True, cache=True, inline="always")
def _whole(at, stop):
    """Return the whole number at ``at`` and what follows it; -1 where there is none."""
    value, first = int64(0), at
    while at < stop and load8(at) - _ZERO <= _NINE:
        value = value * 10 + int64(load8(at) - _ZERO)
        at += 1
        if at - first > _DIGITS_MAX:
            return int64(-1), at
    return (int64(-1), at) if at == first else (value, at)


@njit(nogil=True, cache=True)
def _word_key(at, end, number, settings, vocabulary, seed):
    """Return the key of a word that is the number at ``at``."""
    if vocabulary.size > 0:
        return vocabulary[number - settings[S_FIRST]]
    while at < end - 1 and load8(at) == _ZERO:
        at += 1
    return token_key(at, end - at, seed)


@njit(nogil=True, cache=True)
def _pairs(line, stop, settings, vocabulary, seed, keys, nnz):
    """Append the words of a record; return where they end, what is wrong, and its ``bad_arg``."""
    first, words = settings[S_FIRST], settings[S_WORDS]
    last = nnz + settings[S_WORDS_MAX]
    at = _blank(line, stop)
    said, at = _whole(at, stop)
    if said < 0 or (at < stop and load8(at) > _SPACE):
        return nnz, _SYNTAX, (_blank(line, stop) - line) << 1 | 1
    found = 0
    crowded = int64(0)  # words, where they are too many
    while True:
        at = _blank(at, stop)
        if at >= stop:
            break
        begin = at
        number, at = _whole(at, stop)
        if number < 0 or at >= stop or load8(at) != _COLON:
            return nnz, _SYNTAX, (begin - line) << 1
        end = at
        count, at = _whole(at + 1, stop)
        if count < 1 or (at < stop and load8(at) > _SPACE):
            return nnz, _NUMBER, end + 1 - line
        if number < first or (words >= 0 and number - first >= words):
            return nnz, _WORD, begin - line
        found += 1
        if crowded != 0 or count > last - nnz:
            crowded = min(max(crowded, nnz - last + settings[S_WORDS_MAX]) + count, int64(1) << 50)
            continue
        key = _word_key(begin, end, number, settings, vocabulary, seed)
        for i in range(nnz, nnz + count):
            keys[i] = key
        nnz += count
    if settings[S_NUMBERED] == 0 and said != found:
        return nnz, _COUNT, min(said, int64(_LOW)) << 21 | found
    if crowded != 0:
        return nnz, _FEATURES, crowded
    return nnz, 0, int64(0)


@njit(nogil=True, cache=True)
def parse_records(
    buffer,
    start,
    end,
    settings,
    vocabulary,
    seed,
    keys,
    indptr,
    labels,
    weights,
    lines,
    bad_start,
    bad_reason,
    bad_field,
    bad_arg,
    state,
    rows_last,
    nnz_last,
):
    """Append the documents of ``buffer[start:end]``; return the first byte not parsed.

    Parameters
    ----------
    buffer : uint8[n]
        ``buffer[end - 1]`` is a newline; at least 65 bytes may be read past ``end``.
    start, end : int
        Stops early once the minibatch is full, so always between two records.
    settings : int64[N_SETTINGS]
    vocabulary : uint64[v]
        Keys of the words, in the order of their numbers; empty: a word's key is that of its digits.
    seed : uint64
    keys, indptr, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place.
    rows_last, nnz_last : int
        Stops once there are more rows, or more keys, than this: what is left is room for a record.

    Notes
    -----
    ``bad_arg`` is where in the record it is wrong, of ``syntax`` twice that, and one more where it
    should be the record's first number; of ``field_count`` the pairs found, in 21 bits,
    and those promised above; of ``feature_count`` the words; of ``too_long`` the bytes. O(bytes +
    words).
    """
    base = int64(buffer.ctypes.data)
    row_max, bad_max = settings[S_ROW_MAX], bad_start.size
    rows, nnz, bad, records = state[_ROWS], state[_NNZ], state[_BAD], state[_RECORDS]
    begin, last = base + start, base + end
    while begin < last and rows <= rows_last and bad < bad_max and nnz <= nnz_last:
        line = begin
        stop = line_end(line)
        begin = stop + 1
        if stop > line and load8(stop - 1) == _RETURN:
            stop -= 1
        if stop == line:
            continue
        records += 1
        first = nnz
        if stop - line > settings[S_RECORD_MAX]:
            reason, arg = _TOO_LONG, stop - line
        else:
            nnz, reason, arg = _pairs(line, stop, settings, vocabulary, seed, keys, nnz)
        if reason != 0:
            nnz = first
            bad_start[bad] = line - base
            bad_reason[bad] = reason
            bad_field[bad] = -1
            bad_arg[bad] = arg
            bad += 1
            continue
        before = rows + 1
        rows = add_rows(first, nnz, row_max, line - base, labels, weights, lines, indptr, rows)
        state[_SPLIT] += rows - before
    state[_ROWS], state[_NNZ], state[_BAD], state[_RECORDS] = rows, nnz, bad, records
    return begin - base


@njit(nogil=True, cache=True)
def describe_records(
    buffer, starts, ends, settings, vocabulary, seed, words, word_ends, keys, text_ends, text
):
    """Say which word made which key in good records, once for each pair.

    Parameters
    ----------
    starts, ends : int64[r]
        The records in ``buffer``, without newline.
    words, word_ends : uint8[t], int64[v]
        The vocabulary, as texts.
    keys, text_ends, text : uint64[n], int64[n], uint8[u]
        Written.

    Returns
    -------
    count, to : int64
        Keys, and bytes of text.
    """
    base = int64(buffer.ctypes.data)
    count, to = int64(0), int64(0)
    for record in range(starts.size):
        at, stop = base + starts[record], base + ends[record]
        _, at = _whole(_blank(at, stop), stop)
        while True:
            at = _blank(at, stop)
            if at >= stop:
                break
            begin = at
            number, end = _whole(at, stop)
            _, at = _whole(end + 1, stop)
            key = _word_key(begin, end, number, settings, vocabulary, seed)
            if vocabulary.size > 0:
                place = number - settings[S_FIRST]
                low = word_ends[place - 1] if place > 0 else 0
                length = word_ends[place] - low
                for i in range(length):
                    text[to + i] = words[low + i]
            else:
                while begin < end - 1 and load8(begin) == _ZERO:
                    begin += 1
                length = end - begin
                for i in range(length):
                    text[to + i] = load8(begin + i)
            to += length
            keys[count] = key
            text_ends[count] = to
            count += 1
    return count, to


@njit(nogil=True, cache=True)
def _write_number(value, out, to):
    power = int64(1)
    while value // power >= 10:
        power *= 10
    while power > 0:
        out[to] = 48 + value // power % 10
        to += 1
        power //= 10
    return to


@njit(nogil=True, cache=True)
def _write(begin, end, out, to):
    for at in range(begin, end):
        out[to] = load8(at)
        to += 1
    return to


@njit(nogil=True, cache=True)
def _close(state, out):
    if state[R_OPEN] != 0:
        out[state[R_TO]] = 10
        state[R_TO] += 1
        state[R_OPEN] = 0


@njit(nogil=True, cache=True)
def _begin(document, state, out):
    to = state[R_TO]
    state[R_TO] = _write_number(document, out, to)
    state[R_OPEN], state[R_DOCUMENT] = 1, document
    state[R_BYTES], state[R_WORDS] = state[R_TO] - to, 0


@njit(nogil=True, cache=True)
def _reach(document, state, out, room):
    """Write empty documents up to the one before ``document``; say whether there was room."""
    while state[R_DOCUMENT] < document - 1:
        if state[R_TO] + room > out.size:
            return False
        _close(state, out)
        _begin(state[R_DOCUMENT] + 1, state, out)
    _close(state, out)
    return True


@njit(nogil=True, cache=True)
def regroup(data, at, stop, final, state, out, room, record_max, words_max):
    """Turn lines of ``document word count`` into records ``document word:count word:count ...``.

    Parameters
    ----------
    data : uint8[n]
        Whole lines in ``data[at:stop]``, each shorter than half of ``room``; 64 bytes more.
    final : bool
        Whether the documents that have no lines are to be written at the end.
    state : int64[N_STATE]
        Updated.
    out : uint8[m]
        Written from ``state[R_TO]`` on.
    room : int
        Stops where less than this is left of ``out``, and where it has split a document.
    record_max, words_max : int
        Bytes and words of a record; a document of more has several.

    Returns
    -------
    int
        Where in ``data`` it stopped; -1 where it is final and all is written.

    Notes
    -----
    A line that is none, or out of order, or of a document beyond the last, becomes a record of its
    own: ``!``, the document that lines were of, a blank, and the line as it stands. Documents
    without lines become records of their number alone.
    """
    base = int64(data.ctypes.data)
    while at < stop:
        if state[R_TO] + room > out.size:
            return at
        begin = base + at
        end = line_end(begin)
        after = end + 1 - base
        first = _blank(begin, end)
        if first == end:
            at = after
            continue
        document, i = _whole(first, end)
        word_at = _blank(i, end)
        _, word_end = _whole(word_at, end)
        count_at = _blank(word_end, end)
        count, count_end = _whole(count_at, end)
        good = document > 0 and word_at > i and count_at > word_end and word_end > word_at
        good = good and count_end > count_at and _blank(count_end, end) == end
        good = good and state[R_DOCUMENT] <= document <= state[R_DOCUMENTS]
        if not good:
            _close(state, out)
            to = state[R_TO]
            out[to] = _MARK
            to = _write_number(state[R_DOCUMENT], out, to + 1)
            out[to] = 32
            to = _write(begin, end - (load8(end - 1) == _RETURN), out, to + 1)
            out[to] = 10
            state[R_TO] = to + 1
            state[R_ENTRIES] += 1
            at = after
            continue
        if document > state[R_DOCUMENT]:
            if not _reach(document, state, out, room):
                return at
            _begin(document, state, out)
        else:
            size = count_end - word_at + 2
            full = state[R_BYTES] + size > record_max
            full |= state[R_WORDS] > 0 and count > words_max - state[R_WORDS]
            if state[R_OPEN] == 0 or full:
                state[R_SPLIT] = state[R_OPEN]
                _close(state, out)
                _begin(document, state, out)
                if state[R_SPLIT] != 0:
                    return at
        to = state[R_TO]
        out[to] = 32
        to = _write(word_at, word_end, out, to + 1)
        out[to] = 58
        to = _write(count_at, count_end, out, to + 1)
        state[R_BYTES] += to - state[R_TO]
        state[R_WORDS] += max(count, int64(0))
        state[R_TO] = to
        state[R_ENTRIES] += 1
        at = after
    if final:
        return -1 if _reach(state[R_DOCUMENTS] + 1, state, out, room) else at
    return at
