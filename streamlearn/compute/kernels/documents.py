"""Documents straight to keys, a row each: lines of text, or columns of delimited text or JSON.

    keys of row r = key_words(texts of record r), in their order

A document of more words than a row may have goes on in the next row, which begins at the same line.

Addresses are int64; loads may go 65 bytes past the end of the data.
"""

from __future__ import annotations

from numba import float32, int64, njit, uint64

from streamlearn.compute.kernels.bits import ctz, load8, mask_eq2
from streamlearn.compute.kernels.delimited import unquote
from streamlearn.compute.kernels.json_documents import ABSENT, gather_texts
from streamlearn.compute.kernels.text import line_end
from streamlearn.compute.kernels.tokens import R_STRICT, key_words, spell_words

__all__ = ["FIELDS", "JSON", "LINES", "N_SETTINGS", "add_rows", "describe_records", "parse_records"]

# What a record is: a text, fields between delimiters, an object of JSON.
LINES, FIELDS, JSON = 0, 1, 2

# Indices into ``settings`` (int64[N_SETTINGS]); the first four as ``delimited.unquote`` has them.
S_DELIMITER, S_QUOTE, S_TRIM, S_COLUMNS, S_LEAST, S_MOST, S_RECORD_MAX = 0, 1, 2, 3, 4, 5, 6
S_ROW_MAX, S_LAYOUT = 7, 8
N_SETTINGS = 9

# Counters of the minibatch: rows, features, bad records, records; further rows of documents that
# were split, documents with bytes that are no text.
_ROWS, _NNZ, _BAD, _RECORDS, _SPLIT, _REPLACED = 0, 1, 2, 3, 5, 6

# Reason codes of the minibatch.
_COUNT, _UTF8, _TOO_LONG, _QUOTED, _SYNTAX = 1, 4, 5, 6, 7

_NEWLINE, _RETURN = uint64(10), uint64(13)


@njit(nogil=True, cache=True)
def add_rows(first, nnz, row_max, line, labels, weights, lines, indptr, rows):
    """Append the rows of a document whose keys are ``[first, nnz)``; return how many there are."""
    while True:
        first = min(first + row_max, nnz)
        labels[rows] = float32(0)
        weights[rows] = float32(1)
        lines[rows] = line
        rows += 1
        indptr[rows] = first
        if first == nnz:
            return rows


@njit(nogil=True, cache=True)
def _split(line, stop, settings, bounds):
    """Fill ``bounds`` for a record without quotes; return how many fields it has.

    Field ``i`` stands from ``bounds[i] + 1`` to ``bounds[i + 1]``. Where any number of fields will
    do, those that do not matter are not counted.
    """
    delimiter, columns, most = uint64(settings[S_DELIMITER]), settings[S_COLUMNS], settings[S_MOST]
    bounds[0] = line - 1
    found = 0
    window = line
    while window < stop and (most > 0 or found < columns):
        mask = mask_eq2(window, delimiter, delimiter)
        if stop - window < 64:
            mask &= (uint64(1) << uint64(stop - window)) - uint64(1)
        while mask != uint64(0):
            found += 1
            if found <= columns:
                bounds[found] = window + int64(ctz(mask))
            mask &= mask - uint64(1)
        window += 64
    if found < columns:
        bounds[found + 1] = stop
    return found + 1


@njit(nogil=True, cache=True)
def _has(line, stop, byte):
    window = line
    while window < stop:
        mask = mask_eq2(window, byte, byte)
        if stop - window < 64:
            mask &= (uint64(1) << uint64(stop - window)) - uint64(1)
        if mask != uint64(0):
            return True
        window += 64
    return False


@njit(nogil=True, cache=True)
def _find_texts(line, stop, settings, columns, paths, bounds, path, levels, spare, texts):
    """Find the texts of a record: fill ``texts`` with where each begins and ends.

    Returns
    -------
    count : int64
        Texts found.
    reason, arg : int64
        What is wrong with the record, 0 if nothing is.
    """
    layout = settings[S_LAYOUT]
    if stop - line > settings[S_RECORD_MAX]:
        return 0, _TOO_LONG, stop - line
    if layout == LINES:
        texts[0], texts[1] = line, stop
        return 1, 0, int64(0)
    if layout == JSON:
        length, at, code = gather_texts(line, paths, path, levels, spare)
        if code == ABSENT:
            return 0, _COUNT, int64(-1)
        if code != 0:
            return 0, _SYNTAX, 16 * (at - line) + code
        texts[0] = int64(spare.ctypes.data)
        texts[1] = texts[0] + length
        return 1, 0, int64(0)
    quote = uint64(settings[S_QUOTE])
    if quote != _NEWLINE and _has(line, stop, quote):
        found = unquote(line, stop, settings, bounds, spare)
        if found < 0:
            return 0, _QUOTED, int64(0)
    else:
        found = _split(line, stop, settings, bounds)
    if found < settings[S_LEAST] or 0 < settings[S_MOST] < found:
        wanted = (int64(settings[S_MOST] > 0) << 21 | settings[S_LEAST]) << 21
        return 0, _COUNT, wanted | found
    for i in range(columns.size):
        texts[2 * i], texts[2 * i + 1] = bounds[columns[i]] + 1, bounds[columns[i] + 1]
    return columns.size, 0, int64(0)


@njit(nogil=True, cache=True)
def parse_records(
    buffer,
    start,
    end,
    settings,
    columns,
    paths,
    rules,
    seed,
    pages,
    cells,
    stops,
    tags,
    scratch,
    barren,
    bounds,
    path,
    levels,
    spare,
    texts,
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
        Delimiter and quote (bytes; quote is a newline where quotes mean nothing), trim, how many
        fields matter, the least and the most fields of a record (0: any), bytes a record may have,
        words of a row, and what a record is.
    columns, paths : int64[k], uint64[j]
        Which fields are text: their places; ``jsonl.path_hash`` of their names.
    rules, seed, pages, cells, stops, tags, scratch, barren
        See ``tokens.key_words``.
    bounds, path, levels, spare, texts
        Working space: int64[fields + 1], uint8[record bytes + 128], int64[64], as path, and
        int64[2 k], at least 2.
    keys, indptr, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place.
    rows_last, nnz_last : int
        Stops once there are more rows, or more keys, than this: what is left is room for a record.

    Notes
    -----
    ``bad_arg`` is the number of fields found, in 21 bits, and above these the number expected, and
    whether exactly (-1: an object has none of the fields); the length of a record that is too long;
    the place of the first byte that is no text (-1: it is not known); or 16 times the place where
    it is no JSON and what was expected there. O(bytes).
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
        first, wrong = nnz, int64(0)
        count, reason, arg = _find_texts(
            line, stop, settings, columns, paths, bounds, path, levels, spare, texts
        )
        for i in range(count):
            nnz, astray = key_words(
                texts[2 * i], texts[2 * i + 1], rules, seed, pages, cells, stops, tags, scratch,
                barren, keys, nnz,
            )  # fmt: skip
            wrong = wrong if wrong != 0 else astray
        if wrong != 0 and rules[R_STRICT] != 0:
            # of a copy nothing tells where the byte stood
            reason, arg = _UTF8, wrong - line if line <= wrong < stop else int64(-1)
        if reason != 0:
            nnz = first
            bad_start[bad] = line - base
            bad_reason[bad] = reason
            bad_field[bad] = -1
            bad_arg[bad] = arg
            bad += 1
            continue
        state[_REPLACED] += wrong != 0
        before = rows + 1
        rows = add_rows(first, nnz, row_max, line - base, labels, weights, lines, indptr, rows)
        state[_SPLIT] += rows - before
    state[_ROWS], state[_NNZ], state[_BAD], state[_RECORDS] = rows, nnz, bad, records
    return begin - base


@njit(nogil=True, cache=True)
def describe_records(
    buffer,
    starts,
    ends,
    settings,
    columns,
    paths,
    rules,
    seed,
    pages,
    cells,
    stops,
    tags,
    barren,
    bounds,
    path,
    levels,
    spare,
    texts,
    keys,
    word_ends,
    text,
):
    """Spell the words of good records, in their order.

    Parameters
    ----------
    buffer : uint8[n]
    starts, ends : int64[r]
        The records in it, without newline; one follows each.
    keys, word_ends, text
        Written, see ``tokens.spell_words``; the others are as for :func:`parse_records`.

    Returns
    -------
    count, to : int64
        Words, and bytes of their text.
    """
    base = int64(buffer.ctypes.data)
    count, to = int64(0), int64(0)
    for record in range(starts.size):
        line, stop = base + starts[record], base + ends[record]
        if stop > line and load8(stop - 1) == _RETURN:
            stop -= 1
        found, _, _ = _find_texts(
            line, stop, settings, columns, paths, bounds, path, levels, spare, texts
        )
        for i in range(found):
            count, to = spell_words(
                texts[2 * i], texts[2 * i + 1], rules, seed, pages, cells, stops, tags, barren,
                keys, word_ends, text, count, to,
            )  # fmt: skip
    return count, to
