"""Documents as counts of words by number: Blei's ``ldac``, and UCI's ``docword`` (``bow``).

* ``ldac``: a document a line, ``M word:count word:count ...`` with M pairs, words from 0.
* ``bow``: three lines with the numbers of documents, words and entries, then an entry a line,
  ``document word count``, all from 1, documents in order. The source makes one record a document of
  it (:mod:`streamlearn.net.sources.unpacking`), which begins with the document's number.

Word i is line i of the file that ``source.vocabulary`` names; its key is that of the word, so that
models of text and of counts agree. Without one a word is its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import bags as kernels
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import (
    DOCUMENT_ROWS_MAX,
    FEATURES_PER_RECORD_MAX,
    ROW_WORDS_MAX,
    Minibatch,
)
from streamlearn.online.quoting import quoted
from streamlearn.online.tokens import WORD, digest_of, read_words, word_keys

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.messages import I64, U8, U64

__all__ = ["DOCUMENT_WORDS_MAX", "BagsParser", "BowFormat", "LdacFormat", "Vocabulary"]

# Words of a record, counts summed: as many as a text of its size could have.
DOCUMENT_WORDS_MAX: Final = RECORD_BYTES_MAX // 2
_LOW: Final = (1 << 21) - 1


class Vocabulary:
    """Words by number.

    Parameters
    ----------
    path : str
        File with a word a line; empty: there is none.

    Attributes
    ----------
    keys : uint64[v]
    text, ends : uint8[t], int64[v]
        Word i is ``text[ends[i - 1]:ends[i]]``.

    Raises
    ------
    ConfigError
        The file cannot be read, or has an empty line or a word twice.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        words = read_words("source.vocabulary", path) if path else []
        if path and not words:
            raise ConfigError(f"source.vocabulary: {path} has no words")
        seen: dict[str, int] = {}
        for number, word in enumerate(words, 1):
            if not word:
                raise ConfigError(f"source.vocabulary: line {number} of {path} is empty")
            if seen.setdefault(word, number) != number:
                raise ConfigError(
                    f"source.vocabulary: line {number} of {path} is {word!r}, as line {seen[word]} "
                    "is already"
                )
        encoded = [word.encode() for word in words]
        self.keys: U64 = word_keys(words)
        self.ends: I64 = np.cumsum([len(word) for word in encoded], dtype=np.int64)
        self.text: U8 = np.frombuffer(bytearray(b"".join(encoded)), np.uint8)

    def __len__(self) -> int:
        """Return the number of words, 0 where there is no vocabulary."""
        return len(self.keys)


class _BagsFormat:
    """What both formats have in common."""

    name = ""
    fields: tuple[str, ...] = ()
    has_values = False
    record_rows = DOCUMENT_ROWS_MAX
    has_fields = False
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()
    first = 0  # number of the first word
    has_header = first_line = False

    def __init__(self, config: SourceConfig) -> None:
        for setting in ("header", "columns", "label", "cross", "fields"):
            if value := getattr(config, setting):
                raise ConfigError(
                    f"source.{setting}: expected nothing, since {self.name} has words and counts "
                    f"alone, got {value!r}"
                )
        if config.documents == "files":
            raise ConfigError(f'source.documents: expected lines for {self.name}, got "files"')
        self.vocabulary = Vocabulary(config.vocabulary)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        match reason:
            case 1:
                return f"expected {arg >> 21} pairs of word:count, found {arg & _LOW}"
            case 3:
                return f"count {_token(record, arg)} at byte {arg} is not a whole number above 0"
            case 5:
                return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
            case 7:
                what = "a whole number first" if arg & 1 else f"word:count at byte {arg >> 1}"
                return f"expected {what}, found {_token(record, arg >> 1)}"
            case 8:
                return (
                    f"document of {arg:,} words is longer than the {DOCUMENT_WORDS_MAX:,} allowed"
                )
            case 11:
                word = record[arg:].partition(b":")[0].decode()
                return f"word {word} at byte {arg} is not one of {self._range}"
            case _:
                raise AssertionError(reason)

    @property
    def digest(self) -> str:
        """What its numbers mean: a digest of the vocabulary, empty where there is none."""
        return digest_of(self.vocabulary.keys)

    @property
    def _words(self) -> int:
        """How many words there are; -1: any number of them."""
        return len(self.vocabulary) or -1

    @property
    def _range(self) -> str:
        words = self._words
        last = f"{self.first + words - 1:,}" if words >= 0 else "…"
        of = f" (source.vocabulary has {words:,})" if len(self.vocabulary) else ""
        return f"{self.first} to {last}{of}"


class LdacFormat(_BagsFormat):
    """Records ``M word:count ...``.

    Parameters
    ----------
    config : SourceConfig
        ``vocabulary`` matters.

    Raises
    ------
    ConfigError
        The vocabulary cannot be used, or a setting is of no use for counts.
    """

    name = "ldac"

    def parser(self, header: bytes | None) -> BagsParser:
        """Return a parser; see ``Format``."""
        return BagsParser(self.vocabulary, self.first, numbered=False, words=self._words)


class BowFormat(_BagsFormat):
    """Records of UCI's docword files, a document each.

    Parameters
    ----------
    config : SourceConfig
        ``vocabulary`` matters.

    Raises
    ------
    ConfigError
        The vocabulary cannot be used, or a setting is of no use for counts.
    """

    name = "bow"
    first = 1
    has_header = first_line = True

    def __init__(self, config: SourceConfig) -> None:
        super().__init__(config)
        self._header_words = -1

    def parser(self, header: bytes | None) -> BagsParser:
        """Return a parser for an object whose first record says how many words there are."""
        assert header is not None, "a format with a header needs one"
        self._header_words = int(header.split()[1])
        known = len(self.vocabulary)
        if known and known != self._header_words:
            raise DataError(
                f"source.vocabulary: {self.vocabulary.path} has {known:,} words, but the second "
                f"line of the source says {self._header_words:,}"
            )
        return BagsParser(self.vocabulary, self.first, numbered=True, words=self._words)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        if not record.startswith(b"!"):
            return super().complaint(reason, field, arg, record)
        before, _, line = record[1:].partition(b" ")
        numbers = line.split()
        if len(numbers) != 3 or not all(one.isdigit() for one in numbers):
            return f"expected document, word and count, found {quoted(line)}"
        if int(numbers[0]) < int(before):
            return (
                f"document {int(numbers[0])} comes after {int(before)}: documents must be in order"
            )
        return f"document {int(numbers[0])} is beyond the number of documents in the first line"

    @property
    def _words(self) -> int:
        return self._header_words


class BagsParser:
    """Parses blocks of one object.

    Parameters
    ----------
    vocabulary : Vocabulary
    first : int
        Number of the first word.
    numbered : bool
        Whether a record begins with the number of its document.
    words : int
        How many there are; -1: any number of them.
    """

    def __init__(self, vocabulary: Vocabulary, first: int, *, numbered: bool, words: int) -> None:
        self._settings = np.array(
            [first, numbered, words, RECORD_BYTES_MAX, ROW_WORDS_MAX, DOCUMENT_WORDS_MAX], np.int64
        )
        self._vocabulary = vocabulary
        self._longest = int(np.diff(vocabulary.ends, prepend=0).max(initial=20))

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        assert out.record_rows >= DOCUMENT_ROWS_MAX, "there may be no room for one record"
        return int(
            kernels.parse_records(
                buffer,
                start,
                end,
                self._settings,
                self._vocabulary.keys,
                WORD,
                out.keys,
                *out.row_arrays,
                out.rows_max - out.record_rows,
                out.nnz_max - out.record_rows * FEATURES_PER_RECORD_MAX,
            )
        )

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Say which word made which key in good records; see ``Parser``."""
        pairs = int((ends - starts).sum()) // 4 + len(starts)
        keys, text_ends = np.empty(pairs, np.uint64), np.empty(pairs, np.int64)
        text = np.empty(pairs * self._longest, np.uint8)
        known = self._vocabulary
        count, used = kernels.describe_records(
            buffer, starts, ends, self._settings, known.keys, WORD, known.text, known.ends,
            keys, text_ends, text,
        )  # fmt: skip
        return Described(keys[:count], np.full(count, -1, np.int32), text_ends[:count], text[:used])


def _token(record: bytes, at: int) -> str:
    """Quote what stands there, up to a blank."""
    found = record[at:].split(maxsplit=1)
    return quoted(found[0]) if found else "the record's end"
