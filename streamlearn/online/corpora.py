"""Documents that are in memory: texts, lists of words, or matrices of counts; as keys of words.

* A *text* is split as documents of a source are (:mod:`streamlearn.online.tokens`).
* A list of *words* is taken as it is: nothing is split, put in lower case or left out.
* Of a *matrix* rows are documents and columns words; a number says how often the word is there. A
  column's word is its name, where columns have names or a vocabulary says; else its number, from 0,
  as in ``ldac``. How words were ordered in a document is not known: by column.

Everything is checked before the first piece is cut, so bad documents teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from streamlearn.compute.kernels import tokens as kernels
from streamlearn.messages import I64, U8, U64
from streamlearn.online.formats import Described
from streamlearn.online.matrices import column_names
from streamlearn.online.tokens import Tokeniser, word_keys

__all__ = [
    "Corpus",
    "Counts",
    "Piece",
    "Texts",
    "WordLists",
    "column_keys",
    "column_words",
    "read_corpus",
]

# Of a piece: documents, and tokens before it is full.
_DOCUMENTS: Final = 4096
_TOKENS: Final = 1 << 18
_COUNT_MAX: Final = (1 << 31) - 1
_TAIL_BYTES: Final = 128


class Piece(NamedTuple):
    """Some documents.

    Attributes
    ----------
    keys : uint64[tokens]
    bounds : int64[documents + 1]
    spell : callable
        Given keys, ascending and all different, returns names of those that are in the piece.
    """

    keys: U64
    bounds: I64
    spell: Callable[[U64], Described]


class Corpus(Protocol):
    """Documents in memory."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Cut them: yield pieces in order."""
        ...


class Texts:
    """Texts, to be split into words.

    Parameters
    ----------
    texts : sequence of str
    tokeniser : Tokeniser
    """

    def __init__(self, texts: Sequence[str], tokeniser: Tokeniser) -> None:
        self._texts = texts
        rules = tokeniser.rules.copy()
        rules[kernels.R_ENCODING] = kernels.UTF_8
        self._fixed = (rules, *tokeniser.tables[1:])
        self._scratch = tokeniser.scratch()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._texts)

    def pieces(self) -> Iterator[Piece]:
        """Cut them: yield pieces in order."""
        for first, last in _cut([len(text) // 6 for text in self._texts]):
            yield self._piece(self._texts[first:last])

    def _piece(self, texts: Sequence[str]) -> Piece:
        data = [text.encode("utf-8", "replace") for text in texts]
        ends = np.cumsum([0, *map(len, data)]).tolist()
        buffer = np.frombuffer(b"".join(data) + bytes(_TAIL_BYTES), np.uint8)
        keys: U64 = np.empty(ends[-1] // 2 + 2 + len(data), np.uint64)
        bounds: I64 = np.zeros(len(data) + 1, np.int64)
        at, count, barren = buffer.ctypes.data, 0, np.zeros(1, np.bool_)
        split: Any = kernels.key_words  # numba's stubs count the arguments of another function
        for i in range(len(data)):
            count, _ = split(
                at + ends[i], at + ends[i + 1], *self._fixed, self._scratch, barren, keys, count
            )
            bounds[i + 1] = count

        def spell(wanted: U64) -> Described:
            found = np.flatnonzero(_among(keys[:count], wanted))
            _, first = np.unique(keys[found], return_index=True)
            rows = np.unique(np.searchsorted(bounds, found[first], side="right") - 1)
            return self._spell(buffer, [(ends[i], ends[i + 1]) for i in rows.tolist()])

        return Piece(keys[:count], bounds, spell)

    def _spell(self, buffer: U8, spans: list[tuple[int, int]]) -> Described:
        """Spell the words of some texts."""
        size = sum(end - start for start, end in spans)
        keys, word_ends = np.empty(size // 2 + len(spans) + 1, np.uint64), np.empty(0, np.int64)
        word_ends = np.empty(len(keys), np.int64)
        text: U8 = np.empty(2 * size + len(self._scratch), np.uint8)
        count = used = 0
        at, barren = buffer.ctypes.data, np.zeros(1, np.bool_)
        for start, end in spans:
            count, used = kernels.spell_words(
                at + start, at + end, *self._fixed, barren, keys, word_ends, text, count, used
            )
        return Described(keys[:count], np.full(count, -1, np.int32), word_ends[:count], text[:used])


class WordLists:
    """Lists of words.

    Parameters
    ----------
    documents : sequence of sequences of str

    Raises
    ------
    TypeError
        One is no list, or a word is no text.
    ValueError
        A word is empty.
    """

    def __init__(self, documents: Sequence[Any]) -> None:
        self._documents = documents
        for i, document in enumerate(documents):
            if isinstance(document, str | bytes) or not isinstance(document, Iterable):
                raise TypeError(
                    f"document {i} is {type(document).__name__}, expected a list of words like the "
                    "first one"
                )
            for word in document:
                if not isinstance(word, str):
                    raise TypeError(f"document {i} has the word {word!r}, expected a text")
                if not word:
                    raise ValueError(f"document {i} has a word that is empty")

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._documents)

    def pieces(self) -> Iterator[Piece]:
        """Cut them: yield pieces in order."""
        for first, last in _cut([len(document) for document in self._documents]):
            yield _of_lists(self._documents[first:last])


def _of_lists(documents: Sequence[Any]) -> Piece:
    places: dict[str, int] = {}
    numbers = [places.setdefault(word, len(places)) for document in documents for word in document]
    words = list(places)
    keys = word_keys(words) if words else np.zeros(0, np.uint64)
    bounds = np.cumsum([0, *map(len, documents)]).astype(np.int64)

    def spell(wanted: U64) -> Described:
        some = np.flatnonzero(_among(keys, wanted)).tolist()
        return _named([words[i] for i in some], keys[some])

    return Piece(keys[np.array(numbers, np.int64)], bounds, spell)


class Counts:
    """A matrix of how often words are in documents.

    Parameters
    ----------
    x : array, sparse matrix or frame
    words : sequence of str or None
        Of the columns; None: their numbers.

    Attributes
    ----------
    shape : tuple of int, int

    Raises
    ------
    ValueError
        Numbers are negative, not finite or not whole, or there are no rows or columns, or not as
        many columns as words.
    TypeError
        They are no numbers.
    """

    def __init__(self, x: Any, words: Sequence[str] | None) -> None:
        self._indptr, self._columns, self._counts, self.shape = _entries(x)
        self._keys: U64 | None = None
        self.name(words)

    def name(self, words: Sequence[str] | None) -> None:
        """Say what columns stand for: words, or (None) their numbers.

        Raises
        ------
        ValueError
            There are not as many.
        """
        self._words = words
        if words is not None and len(words) != self.shape[1]:
            raise ValueError(
                f"X has {self.shape[1]} columns, but the vocabulary has {len(words)} words"
            )
        self._keys = None

    def __len__(self) -> int:
        """Return how many there are."""
        return self.shape[0]

    def pieces(self) -> Iterator[Piece]:
        """Cut them: yield pieces in order."""
        if self._keys is None:
            self._keys = column_keys(self._words, self.shape[1])
        totals = np.concatenate([[0], np.cumsum(self._counts)])[self._indptr]
        for first, last in _cut(np.diff(totals).tolist()):
            part = slice(self._indptr[first], self._indptr[last])
            keys = np.repeat(self._keys[self._columns[part]], self._counts[part])
            yield Piece(keys, totals[first : last + 1] - totals[first], self._spell)

    def _spell(self, wanted: U64) -> Described:
        assert self._keys is not None
        some = np.flatnonzero(_among(self._keys, wanted)).tolist()
        words = [str(i) if self._words is None else self._words[i] for i in some]
        return _named(words, self._keys[some])


def column_keys(words: Sequence[str] | None, count: int) -> U64:
    """Return the keys of a matrix's columns, uint64[count]."""
    return word_keys([str(i) for i in range(count)] if words is None else list(words))


def column_words(x: Any) -> tuple[str, ...] | None:
    """Return the words that a frame's columns are named by; None where they have no names."""
    return column_names(x)


def read_corpus(x: Any, tokeniser: Tokeniser, words: Sequence[str] | None) -> Corpus:
    """Return what was handed in as documents, checked.

    Parameters
    ----------
    x : iterable of str, iterable of iterables of str, array, sparse matrix or frame
    tokeniser : Tokeniser
        Splits texts.
    words : sequence of str or None
        What a matrix's columns stand for, where their names do not say.

    Raises
    ------
    ValueError, TypeError
        It is none of these, or some of it is wrong: the message says which.
    """
    if isinstance(x, str | bytes):
        raise ValueError(
            f"X is one {type(x).__name__}, expected documents: a list of texts, say, or a matrix"
        )
    if hasattr(x, "tocsr") or (hasattr(x, "columns") and hasattr(x, "__getitem__")):
        names = column_words(x)
        return Counts(x, words if names is None else names)
    if not hasattr(x, "__len__"):
        if isinstance(x, Iterable):
            x = list(x)
        elif hasattr(x, "__array__"):
            x = np.asarray(x)
        else:
            raise TypeError(f"X is {type(x).__name__}, expected documents")
    first = next(iter(x), None)
    if isinstance(first, str):
        return Texts(_all_texts(x), tokeniser)
    if _of_words(x, first):
        return WordLists(list(x))
    return Counts(x, words)


def _of_words(x: Any, first: Any) -> bool:
    """Say whether documents are lists of words: by the first word that there is."""
    if not isinstance(first, list | tuple | np.ndarray) or np.ndim(first) > 1:
        return False
    if isinstance(x, np.ndarray) and x.dtype != object:
        return bool(x.dtype.kind == "U")
    for document in x:
        for word in document if isinstance(document, Iterable) else ():
            return bool(isinstance(word, str))
    return False


def _all_texts(x: Any) -> list[str]:
    texts = list(x)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"document {i} is {text!r}, expected a text like the first one")
    return texts


def _entries(x: Any) -> tuple[I64, I64, I64, tuple[int, int]]:
    """Return a matrix by its rows: where each begins, columns, counts; and its shape."""
    if hasattr(x, "tocsr"):
        x = x.tocsr(copy=True)
        x.sum_duplicates()
        values, columns = x.data, x.indices.astype(np.int64)
        indptr, shape = x.indptr.astype(np.int64), x.shape
        _need_shape(shape)
        counts = _whole(values)
        if not counts.all():  # zeros that are written down
            kept = counts > 0
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr].astype(np.int64)
            columns, counts = columns[kept], counts[kept]
        return indptr, columns, counts, (int(shape[0]), int(shape[1]))
    dense = np.asarray(x)
    if dense.ndim != 2:
        hint = " Reshape your data: a document is a row." if dense.ndim == 1 else ""
        raise ValueError(f"Expected 2D array, got {_of_dimensions(dense)} instead.{hint}")
    _need_shape(dense.shape)
    if np.iscomplexobj(dense):
        raise ValueError("Complex data not supported")
    if dense.dtype == object or dense.dtype.kind in "US":
        try:
            dense = dense.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"X has values that are no numbers: {error}") from error
    counts = _whole(dense)
    rows, columns = np.nonzero(counts)
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1)).astype(np.int64)
    return indptr, columns.astype(np.int64), counts[rows, columns], dense.shape


def _of_dimensions(dense: np.ndarray[Any, Any]) -> str:
    return "scalar array" if dense.ndim == 0 else f"{dense.ndim}D array"


def _need_shape(shape: tuple[int, ...]) -> None:
    for count, what in zip(shape, ("sample", "feature"), strict=True):
        if count < 1:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={tuple(shape)}) while a minimum of 1 is "
                "required."
            )


def _whole(values: np.ndarray[Any, Any]) -> I64:
    """Return counts as int64."""
    if values.dtype.kind not in "biuf":
        if values.dtype.kind == "c":
            raise ValueError("Complex data not supported")
        raise TypeError(f"X has values of type {values.dtype}, expected numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("Input X contains NaN or infinity.")
    if (values < 0).any():
        raise ValueError("Negative values in data passed to LDA: X has how often words are there.")
    if (values > _COUNT_MAX).any():
        raise ValueError(f"X has a count of {values.max()}, at most {_COUNT_MAX:,} allowed")
    counts: I64 = values.astype(np.int64)
    wrong = counts != values
    if wrong.any():
        raise ValueError(
            f"X has {float(values[wrong][0]):g}, expected whole numbers: how often each word is "
            "there"
        )
    return counts


def _cut(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the end of pieces of documents."""
    first = tokens = 0
    for i, size in enumerate(sizes):
        if i > first and (tokens + size > _TOKENS or i - first >= _DOCUMENTS):
            yield first, i
            first, tokens = i, 0
        tokens += size
    if len(sizes) > first:
        yield first, len(sizes)


def _among(keys: U64, wanted: U64) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not len(wanted):
        return np.zeros(len(keys), np.bool_)
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    found: np.ndarray[Any, np.dtype[np.bool_]] = wanted[at] == keys
    return found


def _named(words: Sequence[str], keys: U64) -> Described:
    data = [word.encode("utf-8", "replace") for word in words]
    ends = np.cumsum(list(map(len, data)), dtype=np.int64)
    text = np.frombuffer(b"".join(data), np.uint8)
    return Described(keys, np.full(len(words), -1, np.int32), ends, text)
