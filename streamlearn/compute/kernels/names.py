"""The name store's kernels: which rows to name, where records end, and a table of texts by key.

The texts lie one after another in the order they came (entry ``i`` is ``text[ends[i - 1]:ends[i]]``
from 0 for the first), so what is there never moves while more comes. An index finds entries by
key: ``index_keys`` (0: empty) and ``index_entries``, both of ``2**n`` places, a key's first place
its top ``n`` bits, the next ones after it; at most two thirds of the places are ever taken.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from streamlearn.compute.kernels.bits import ctz, mask_eq2, prefetch

__all__ = [
    "compact_names",
    "find_entries",
    "find_text",
    "gather_lines",
    "index_names",
    "insert_names",
    "pick_rows",
]


@njit(nogil=True, cache=True)
def pick_rows(fresh, rows, fresh_max, others_max, phase, picked):
    """Choose rows: some of those with fresh weights, and some of all, each evenly spread.

    Parameters
    ----------
    fresh : uint8[>= rows]
        How many of a row's weights have just left zero.
    rows, fresh_max, others_max : int
        At least 0; how many rows with fresh weights are wanted, and how many of all.
    phase : int
        At least 0; moves the grid of the spread, so that no place in a minibatch is always missed.
    picked : int64[>= min(rows, fresh_max + others_max)]
        Written: different rows.

    Returns
    -------
    count : int
        Rows picked. A row of the second kind is left out where it is fresh: it was picked, or
        others like it were. O(rows).
    """
    fresh_rows = 0
    for row in range(rows):
        fresh_rows += fresh[row] != 0
    count = 0
    share = min(fresh_max, fresh_rows)
    if share > 0:
        # the j-th of k picks among f is number (j f + phase mod f) // k, all different for k <= f
        place = phase % fresh_rows
        seen = 0
        row = 0
        while count < share:
            if fresh[row] != 0:
                if seen == (count * fresh_rows + place) // share:
                    picked[count] = row
                    count += 1
                seen += 1
            row += 1
    others = min(others_max, rows)
    for j in range(others):
        row = (j * rows + phase % rows) // others
        if fresh[row] == 0:
            picked[count] = row
            count += 1
    return count


@njit(nogil=True, cache=True, inline="always")
def _line_end(buffer, start):
    """Return the index of the first newline at or after ``start``, or the buffer's size."""
    at = start
    while at + 64 <= buffer.size:
        newlines = mask_eq2(buffer.ctypes.data + at, uint64(10), uint64(10))
        if newlines != 0:
            return at + np.int64(ctz(newlines))
        at += 64
    while at < buffer.size and buffer[at] != 10:
        at += 1
    return at


@njit(nogil=True, cache=True)
def gather_lines(buffer, lines, picked, kept, starts, ends, count):
    """Copy picked records, without their newlines, behind those kept before.

    Parameters
    ----------
    buffer : uint8[n]
        Where the records are.
    lines : int64[rows]
        First byte of each record; it goes to the first newline from there on.
    picked : int64[k]
        Which rows.
    kept : uint8[bytes_max]
        Copies, one after another with a newline in between. Written.
    starts, ends : int64[records_max]
        Where the copies are. Written.
    count : int
        Copies there before.

    Returns
    -------
    count : int
        Copies there now.
    taken : int
        Picked rows that were copied: fewer than k where the next one does not fit.

    Notes
    -----
    O(bytes of the records): the newline is looked for 64 bytes at a time.
    """
    used = ends[count - 1] + 1 if count > 0 else 0
    # the block has left the nearer caches since it was parsed: ask for 320 bytes of each at once
    for i in range(picked.size):
        for line in range(0, 320, 64):
            prefetch(buffer.ctypes.data + lines[picked[i]] + line)
    for i in range(picked.size):
        start = lines[picked[i]]
        size = _line_end(buffer, start) - start
        if count >= starts.size or used + size + 1 > kept.size:
            return count, i
        for b in range(size):
            kept[used + b] = buffer[start + b]
        kept[used + size] = 10
        starts[count] = used
        ends[count] = used + size
        used += size + 1
        count += 1
    return count, picked.size


@njit(nogil=True, cache=True, inline="always")
def _place(index_keys, shift, key):
    """Return where a key is in the index, or the empty place where it would go."""
    mask = index_keys.size - 1
    at = np.int64(key >> shift)
    while index_keys[at] != 0 and index_keys[at] != key:
        at = (at + 1) & mask
    return at


@njit(nogil=True, cache=True)
def insert_names(
    index_keys,
    index_entries,
    shift,
    keys,
    fields,
    ends,
    text,
    count,
    new_keys,
    new_fields,
    new_ends,
    new_text,
    field_of,
    token_bytes_max,
):
    """Append the features that are not there yet, in place.

    Parameters
    ----------
    index_keys : uint64[2**n]
    index_entries : uint32[2**n]
    shift : uint64
        64 - n.
    keys, fields, ends : uint64[entries_max], int32[entries_max], int64[entries_max]
    text : uint8[bytes_max]
    count : int
        Entries there before.
    new_keys, new_fields, new_ends, new_text : uint64[m], int32[m], int64[m], uint8[...]
        Features with their texts, as ``Described`` has them; keys not 0, need not be unique.
    field_of : int32[f]
        The store's number of each field; a negative field stays -1.
    token_bytes_max : int
        A longer text is cut before a UTF-8 character and gets an ellipsis (3 bytes); at least 8.

    Returns
    -------
    count : int
        Entries there now.
    refused : int
        Features that are not there for lack of an entry or of bytes, counted at each occurrence.
    """
    m = new_keys.size
    base = index_keys.ctypes.data
    for i in range(m):
        prefetch(base + 8 * np.int64(new_keys[i] >> shift))
    used = ends[count - 1] if count > 0 else 0
    refused = 0
    for i in range(m):
        at = _place(index_keys, shift, new_keys[i])
        if index_keys[at] != 0:
            continue
        start = new_ends[i - 1] if i > 0 else 0
        size = new_ends[i] - start
        cut = size > token_bytes_max
        if cut:
            size = token_bytes_max - 3
            # a byte 10xxxxxx goes on with the character before it
            while size > 0 and new_text[start + size] & 0xC0 == 0x80:
                size -= 1
        room = size + 3 if cut else size
        if count >= keys.size or used + room > text.size:
            refused += 1
            continue
        for b in range(size):
            text[used + b] = new_text[start + b]
        if cut:
            text[used + size] = 0xE2
            text[used + size + 1] = 0x80
            text[used + size + 2] = 0xA6
        used += room
        index_keys[at] = new_keys[i]
        index_entries[at] = count
        keys[count] = new_keys[i]
        fields[count] = field_of[new_fields[i]] if new_fields[i] >= 0 else -1
        ends[count] = used
        count += 1
    return count, refused


@njit(nogil=True, cache=True)
def index_names(index_keys, index_entries, shift, keys):
    """Fill an empty index (zeroed ``index_keys``) with entries 0 to n - 1 of keys.

    Returns
    -------
    duplicate : int
        The first entry whose key is 0 or was there before, -1 if none; the index ends before it.
    """
    for entry in range(keys.size):
        at = _place(index_keys, shift, keys[entry])
        if keys[entry] == 0 or index_keys[at] != 0:
            return entry
        index_keys[at] = keys[entry]
        index_entries[at] = entry
    return -1


@njit(nogil=True, cache=True)
def find_entries(index_keys, index_entries, shift, wanted, entries):
    """Write the entry of each wanted key (uint64[k], not 0) to ``entries`` (int64[k]); -1: none."""
    for i in range(wanted.size):
        at = _place(index_keys, shift, wanted[i])
        entries[i] = np.int64(index_entries[at]) if index_keys[at] != 0 else -1


@njit(nogil=True, cache=True)
def compact_names(keep, keys, fields, ends, text, kept_keys, kept_fields, kept_ends, kept_text):
    """Copy the entries to keep (bool[n]) to other arrays, in order; return how many they are.

    The other arrays do not overlap the first and are at least as long as what is kept.
    """
    count = 0
    used = 0
    for entry in range(keep.size):
        if not keep[entry]:
            continue
        start = ends[entry - 1] if entry > 0 else 0
        for b in range(start, ends[entry]):
            kept_text[used + b - start] = text[b]
        used += ends[entry] - start
        kept_keys[count] = keys[entry]
        kept_fields[count] = fields[entry]
        kept_ends[count] = used
        count += 1
    return count


@njit(nogil=True, cache=True)
def find_text(fields, ends, text, count, field, token):
    """Return the first entry of a field (int) whose text is ``token`` (uint8[k]); -1 if none."""
    for entry in range(count):
        if fields[entry] != field:
            continue
        start = ends[entry - 1] if entry > 0 else 0
        if ends[entry] - start != token.size:
            continue
        same = True
        for b in range(token.size):
            if text[start + b] != token[b]:
                same = False
                break
        if same:
            return entry
    return -1
