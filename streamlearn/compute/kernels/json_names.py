"""Names of the features that a JSON record makes: which text made which key.

The parser calls this feature by feature where it is asked for names.
"""

from __future__ import annotations

from numba import njit, uint64

from streamlearn.compute.kernels.bits import load8
from streamlearn.compute.kernels.delimited import CATEGORY, HOUR, NUMBER, WEEKDAY

__all__ = ["C_TEXT", "NAME_BYTES_MAX", "tell"]

# Names are cut at this many bytes a path and a token (at the end of a character).
NAME_BYTES_MAX = 256

# Index into the parser's counters: bytes of text written.
C_TEXT = 2


@njit(nogil=True, cache=True)
def _tell_text(at, length, text, to):
    """Append a name's bytes, cut at NAME_BYTES_MAX or a little before; return the new end."""
    if length > NAME_BYTES_MAX:
        length = NAME_BYTES_MAX
        while length > 0 and load8(at + length) & uint64(0xC0) == uint64(0x80):
            length -= 1
    for i in range(length):
        text[to + i] = load8(at + i)
    return to + length


@njit(nogil=True, cache=True)
def tell(kind, code, field, path_at, path_length, at, length, feature, bucket_text, bucket_ends, weekday_text, fields, text_ends, text, counters):  # fmt: skip  # noqa: E501
    """Append the name of one feature: ``path=`` where it has no number, and its token.

    ``code`` is the bucket, hour or weekday where ``kind`` is NUMBER, HOUR or WEEKDAY.
    """
    to = counters[C_TEXT]
    if field < 0:
        to = _tell_text(path_at, path_length, text, to)
        text[to] = 61
        to += 1
    if kind == CATEGORY:
        to = _tell_text(at, length, text, to)
    elif kind == NUMBER:
        for i in range(bucket_ends[code - 1] if code > 0 else 0, bucket_ends[code]):
            text[to] = bucket_text[i]
            to += 1
    elif kind == HOUR:
        if code >= 10:
            text[to] = 48 + code // 10
            to += 1
        text[to] = 48 + code % 10
        to += 1
    elif kind == WEEKDAY:
        for i in range(3):
            text[to + i] = weekday_text[3 * code + i]
        to += 3
    fields[feature] = field
    text_ends[feature] = to
    counters[C_TEXT] = to
