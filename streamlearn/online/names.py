"""Names: which field and token made a key, for as many keys as there is room for.

Keys are hashes, so a model by itself says nothing that a person can read. While records are
learned, a few of each minibatch are parsed once more by their parser's slow sibling ``describe``,
and keys seen for the first time are kept with their text. Which records: all of the first few
thousand, then some of those that made a weight leave zero, and an even spread. So features that
matter get their names soon, for a share of the time that does not matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.compute.kernels import names as kernels
from streamlearn.errors import SnapshotError
from streamlearn.messages import (
    BLOCK_TAILROOM_BYTES,
    I32,
    I64,
    RECORD_BYTES_MAX,
    U8,
    U32,
    U64,
)
from streamlearn.online.formats import Described, Parser

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Names", "Sampler"]

# Of the first records every one is described, then ever fewer (of the n-th this many / n), down to
# one in 256 where rows that made a weight leave zero are to be had, and a quarter of that anyway.
# Measured inside a run over two million records like Criteo's, 39 features each: 13 to 20 us a
# minibatch of 1,024, 2.8 % of the lane's time, and some 45 ms once in the first seconds; then all
# of the 100, 96 % of the 1,000 and 70 % of the 10,000 largest weights have names. One in 128 would
# be 99 and 86 %, for 4.5 % of the time.
ROWS_AT_FIRST: Final = 2048
ROWS_PER_PICK: Final = 256
ROWS_PER_OTHER: Final = 4
# Rows are chosen so many at a time, so most minibatches are left alone.
PICKS_AT_ONCE: Final = 8
# Records wait until there are so many: a call of ``describe`` costs as much as ten rows.
ROWS_WAITING_MAX: Final = 64
# Room for text, an entry: tokens of logs are 5 to 20 bytes, a few are much longer.
BYTES_PER_NAME: Final = 40
# A longer token is cut: a URL of a kilobyte would tell no more.
TOKEN_BYTES_MAX: Final = 200
# Where pruning has left less than this share free, it waits for as many refusals as there are
# names: it asks for every weight, which takes some 30 ms for a million.
FREE_SHARE_MIN: Final = 0.125


class Sampler:
    """Chooses the rows of each minibatch that are described.

    Parameters
    ----------
    seen : int
        Records learned before (a resumed run goes on with the same choice).
    every : bool
        Whether each row that is fresh is wanted, and no other: of ratings, whose users and items
        are asked for by name.
    """

    def __init__(self, seen: int = 0, *, every: bool = False) -> None:
        self._seen = seen
        self.every = every
        self._picked: I64 = np.zeros(0, np.int64)

    def pick(self, fresh: U8, rows: int) -> I64:
        """Return different rows of the next minibatch, in no order, valid until the next call.

        Parameters
        ----------
        fresh : uint8[>= rows]
            How many weights of each row have just left zero, as the learning kernel counts them.
        rows : int
            Rows of the minibatch.

        Returns
        -------
        int64[k]
            All rows while few were seen, later none of most minibatches.
        """
        assert 0 <= rows <= fresh.size, f"{rows} rows, but fresh has {fresh.size}"
        if self.every:
            return np.flatnonzero(fresh[:rows])
        fresh_max = self._fresh_max(rows)
        others_max = rows if self._seen < ROWS_AT_FIRST else -(-fresh_max // ROWS_PER_OTHER)
        if self._picked.size < rows:
            self._picked = np.zeros(rows, np.int64)
        # multiples of the golden ratio spread evenly over any range
        phase = (self._seen // max(rows, 1) * 0x9E3779B1) & 0x7FFFFFFF
        self._seen += rows
        count = 0
        if fresh_max:
            count = kernels.pick_rows(fresh, rows, fresh_max, others_max, phase, self._picked)
        return self._picked[:count]

    def due(self, rows: int) -> bool:
        """Return whether the next :meth:`pick`, of so many rows, will look at ``fresh``."""
        return self.every or self._fresh_max(rows) > 0

    def _fresh_max(self, rows: int) -> int:
        before, after = _picks(self._seen), _picks(self._seen + rows)
        step = max(1, min(PICKS_AT_ONCE, rows))
        return int(after // step - before // step) * step


def _picks(seen: int) -> float:
    """Return how many of the first ``seen`` rows are to be picked where enough are fresh."""
    if seen <= ROWS_AT_FIRST:
        return seen
    knee = ROWS_AT_FIRST * ROWS_PER_PICK
    thinning = ROWS_AT_FIRST * (1 + math.log(min(seen, knee) / ROWS_AT_FIRST))
    return thinning + max(0, seen - knee) / ROWS_PER_PICK


class Names:
    """Texts by key, bounded in number and in bytes, in the order in which they were first seen.

    Parameters
    ----------
    fields : sequence of str
        The format's fields, see :meth:`use_fields`.
    names_max : int
        Entries, at least 1. An entry takes up to 48 bytes and its text; memory is taken as it
        fills.
    bytes_max : int, optional
        Bytes of text; by default 40 an entry.

    Attributes
    ----------
    fields : tuple of str
        All fields that were ever used; only grows.
    refused : int
        Features that came when it was full, counted each time they came.
    """

    def __init__(self, fields: Sequence[str], names_max: int, bytes_max: int | None = None) -> None:
        assert names_max > 0, f"names_max is {names_max}, expected at least 1"
        self.fields: tuple[str, ...] = ()
        self.names_max = names_max
        self.bytes_max = BYTES_PER_NAME * names_max if bytes_max is None else bytes_max
        self.refused = 0
        self._refused_until_prune = 0
        bits = max(2, (names_max + names_max // 2).bit_length())
        self._shift = np.uint64(64 - bits)
        self._forget()
        # Records waiting to be described: any one record fits.
        self._parser: Parser | None = None
        self._waiting: U8 = np.zeros(RECORD_BYTES_MAX + 1 + BLOCK_TAILROOM_BYTES, np.uint8)
        self._room: U8 = self._waiting[:-BLOCK_TAILROOM_BYTES]
        self._starts: I64 = np.zeros(ROWS_WAITING_MAX, np.int64)
        self._stops: I64 = np.zeros(ROWS_WAITING_MAX, np.int64)
        self._rows = 0
        self._used_fields: tuple[str, ...] = ()
        self._field_of: I32 = np.zeros(0, np.int32)
        self.use_fields(fields)

    def _forget(self) -> None:
        """Take new, empty arrays; who holds views of the old ones keeps them."""
        places = 1 << (64 - int(self._shift))
        self._index_keys: U64 = np.zeros(places, np.uint64)
        self._index_entries: U32 = np.zeros(places, np.uint32)
        self._keys: U64 = np.zeros(self.names_max, np.uint64)
        self._fields: I32 = np.zeros(self.names_max, np.int32)
        self._ends: I64 = np.zeros(self.names_max, np.int64)
        self._text: U8 = np.zeros(self.bytes_max, np.uint8)
        self._count = 0

    def __len__(self) -> int:
        """Return the number of names, without those of records that wait."""
        return self._count

    @property
    def bytes(self) -> int:
        """Bytes of text."""
        return int(self._ends[self._count - 1]) if self._count else 0

    @property
    def keys(self) -> U64:
        """Keys of all names, in the order of their first appearance (a view)."""
        return self._keys[: self._count]

    def use_fields(self, fields: Sequence[str]) -> None:
        """Say which fields ``Described.fields`` index from now on: the format's, as they stand.

        Where they are others, or in another order, than before a restart, or have grown with the
        header of another object, names keep their fields.
        """
        fields = tuple(fields)
        if fields != self._used_fields:
            self.flush()
            self._used_fields = fields
            self._number_fields()

    def _number_fields(self) -> None:
        number = {field: i for i, field in enumerate(self.fields)}
        places = [number.setdefault(field, len(number)) for field in self._used_fields]
        self._field_of = np.array(places, np.int32)
        self.fields = tuple(number)

    def note(self, parser: Parser, buffer: U8, lines: I64, picked: I64) -> None:
        """Copy some records, to keep the names of the keys in them that were not seen before.

        They are described a few hundred at a time, at the latest when something is asked.

        Parameters
        ----------
        parser : Parser
            What parsed them.
        buffer : uint8[n]
            The block's buffer; not kept.
        lines : int64[rows]
            Where each record of the minibatch starts in it.
        picked : int64[k]
            The rows to describe.
        """
        if not picked.size:
            return
        if parser is not self._parser:
            self.flush()
            self._parser = parser
        while True:
            self._rows, taken = kernels.gather_lines(
                buffer, lines, picked, self._room, self._starts, self._stops, self._rows
            )
            if taken == picked.size:
                return
            assert self._rows, "a record is longer than RECORD_BYTES_MAX"
            self.flush()
            picked = picked[taken:]

    def flush(self) -> None:
        """Describe the records that wait."""
        if self._rows:
            assert self._parser is not None
            rows, self._rows = self._rows, 0
            self.insert(
                self._parser.describe(self._waiting, self._starts[:rows], self._stops[:rows])
            )

    def insert(self, described: Described) -> None:
        """Keep the names of keys not seen before."""
        assert described.fields.max(initial=-1) < self._field_of.size, "a field without a name"
        self._count, refused = kernels.insert_names(
            self._index_keys,
            self._index_entries,
            self._shift,
            self._keys,
            self._fields,
            self._ends,
            self._text,
            self._count,
            described.keys,
            described.fields,
            described.ends,
            described.text,
            self._field_of,
            TOKEN_BYTES_MAX,
        )
        self.refused += refused

    @property
    def prune_due(self) -> bool:
        """Whether features were refused, and pruning may be worth its time."""
        return self.refused > self._refused_until_prune

    def prune(self, keep: Callable[[U64], NDArray[np.bool_]]) -> int:
        """Drop names that are no longer wanted.

        Parameters
        ----------
        keep : callable
            Takes keys (uint64[n]), returns which to keep (bool[n]): those whose weight is not 0.

        Returns
        -------
        int
            Names dropped.
        """
        self.flush()
        kept = np.ascontiguousarray(keep(self.keys), np.bool_)
        assert kept.size == self._count, f"keep gave {kept.size} answers for {self._count} keys"
        keys, fields, ends, text = self._keys, self._fields, self._ends, self._text
        before = self._count
        self._forget()
        self._count = kernels.compact_names(
            kept, keys, fields, ends, text, self._keys, self._fields, self._ends, self._text
        )
        self._index()
        free = min(1 - self._count / self.names_max, 1 - self.bytes / max(self.bytes_max, 1))
        wait = 0 if free >= FREE_SHARE_MIN else self.names_max
        self._refused_until_prune = self.refused + wait
        return before - self._count

    def sort(self) -> None:
        """Forget in which order names came: it is that of their keys from now on."""
        self.flush()
        keys, fields, ends, text = self._keys, self._fields, self._ends, self._text
        count = self._count
        order = np.argsort(keys[:count])
        lengths = np.diff(ends[:count], prepend=0)
        self._forget()
        self._count = count
        self._keys[:count], self._fields[:count] = keys[order], fields[order]
        self._ends[:count] = np.cumsum(lengths[order])
        starts = np.repeat(ends[order] - self._ends[:count], lengths[order])
        self._text[: self.bytes] = text[starts + np.arange(self.bytes)]
        self._index()

    def _index(self) -> int:
        return int(
            kernels.index_names(self._index_keys, self._index_entries, self._shift, self.keys)
        )

    def unnamed(self, keys: U64) -> I64:
        """Return where in ``keys`` (uint64[m]) those stand first that have no name yet.

        None where there is no room for more names; records that wait are not looked at.
        """
        if self._count == self.names_max:
            return np.zeros(0, np.int64)
        entries = np.empty(keys.size, np.int64)
        kernels.find_entries(self._index_keys, self._index_entries, self._shift, keys, entries)
        missing = np.flatnonzero(entries < 0)
        return missing[np.unique(keys[missing], return_index=True)[1]]

    def lookup(self, keys: U64) -> list[str | None]:
        """Return ``field=token`` of each key (uint64[m]), None where there is no name."""
        self.flush()
        keys = np.ascontiguousarray(keys, np.uint64)
        entries = np.empty(keys.size, np.int64)
        kernels.find_entries(self._index_keys, self._index_entries, self._shift, keys, entries)
        return [self._name(entry) if entry >= 0 else None for entry in entries.tolist()]

    def _name(self, entry: int) -> str:
        start = int(self._ends[entry - 1]) if entry else 0
        token = self._text[start : int(self._ends[entry])].tobytes().decode(errors="replace")
        field = int(self._fields[entry])
        return token if field < 0 else f"{self.fields[field]}={token}"

    def find(self, name: str) -> int | None:
        """Return the key of a name as ``lookup`` gives it, None if it is not there. O(names)."""
        self.flush()
        wanted = [(-1, name)]
        wanted += [
            (index, name[len(field) + 1 :])
            for index, field in enumerate(self.fields)
            if name.startswith(f"{field}=")
        ]
        for field, token in wanted:
            data = np.frombuffer(token.encode(), np.uint8)
            entry = kernels.find_text(
                self._fields, self._ends, self._text, self._count, field, data
            )
            if entry >= 0:
                return int(self._keys[entry])
        return None

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return all names as flat arrays.

        The arrays are views, and stay as they are whatever comes later: entries are only appended,
        and pruning takes new arrays. So a snapshot may write them while learning goes on.
        """
        self.flush()
        views: dict[str, np.ndarray[Any, Any]] = {
            "keys": self._keys[: self._count],
            "fields": self._fields[: self._count],
            "ends": self._ends[: self._count],
            "text": self._text[: self.bytes],
            "field_names": np.frombuffer(json.dumps(self.fields).encode(), np.uint8),
        }
        for view in views.values():
            view.flags.writeable = False
        return views

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take the names of ``state()``, as many as there is room for, and forget those here.

        Raises
        ------
        SnapshotError
            An array is missing or of another type, or they contradict one another.
        """
        keys, fields, ends, text, names = _checked(state)
        count = min(keys.size, self.names_max)
        count = int(np.searchsorted(ends[:count], self.bytes_max, side="right"))
        self._rows = 0
        self._forget()
        self._keys[:count] = keys[:count]
        self._fields[:count] = fields[:count]
        self._ends[:count] = ends[:count]
        self._count = count
        self._text[: self.bytes] = text[: self.bytes]
        duplicate = self._index()
        if duplicate >= 0:
            self._forget()
            raise SnapshotError(f"name {duplicate} of {count} has the key of another, or none")
        self.fields = tuple(names)
        self._number_fields()


def _checked(
    state: Mapping[str, np.ndarray[Any, Any]],
) -> tuple[U64, I32, I64, U8, list[str]]:
    """Check what ``state()`` promises, but for keys being unique."""
    dtypes = {"keys": "u8", "fields": "i4", "ends": "i8", "text": "u1", "field_names": "u1"}
    for name, dtype in dtypes.items():
        array = state.get(name)
        if array is None:
            raise SnapshotError(f"names have no array {name!r}")
        if array.dtype != np.dtype(dtype) or array.ndim != 1:
            raise SnapshotError(f"names' {name!r} is {array.dtype}, expected {np.dtype(dtype)}")
    keys, fields, ends, text = (state[name] for name in ("keys", "fields", "ends", "text"))
    try:
        names = json.loads(state["field_names"].tobytes())
    except ValueError as error:
        raise SnapshotError("names' fields cannot be read", cause=str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SnapshotError("names' fields are not a list of texts")
    if len(set(names)) < len(names):
        raise SnapshotError("names' fields are not all different")
    if not keys.size == fields.size == ends.size:
        raise SnapshotError(
            f"names are {keys.size} keys, {fields.size} fields and {ends.size} texts"
        )
    if keys.size:
        if ends[0] < 0 or ends[-1] > text.size or np.any(ends[1:] < ends[:-1]):
            raise SnapshotError(f"names' texts reach outside their {text.size} bytes")
        if fields.min() < -1 or fields.max() >= len(names):
            raise SnapshotError(f"names' fields reach outside the {len(names)} there are")
    return keys, fields, ends, text, names
