"""What a word is: the settings of the tokeniser, as its kernel takes them.

A word is a run of letters in lower case, with the combining marks among them, and with digits where
``source.digits`` says so. Apostrophes and hyphens end it, as gensim and scikit-learn have it: so
``film's`` counts for ``film`` (and ``s`` is too short), ``don't`` leaves ``don``, and
``well-known`` is two words that others use, too. MALLET keeps all punctuation inside a word, which
makes a word of its own of each possessive and each typing error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import tokens as kernels
from streamlearn.errors import ConfigError
from streamlearn.online.features import field_seed
from streamlearn.online.letters import letter_table
from streamlearn.online.stop_words import ELEMENTS, ENGLISH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.config import SourceConfig
    from streamlearn.messages import I32, I64, U8, U64

__all__ = ["WORD", "Tokeniser", "digest_of", "key_table", "read_words", "word_keys"]

# The field whose tokens words are: what is learned from text predicts a column of that name.
WORD: Final = field_seed("word")

# Bytes of a file of words at most: a hundred times the vocabulary of a large language.
_FILE_BYTES_MAX: Final = 1 << 30
_CHARACTER_BYTES: Final = 4


class Tokeniser:
    """The settings of words, and what the kernels need besides.

    Parameters
    ----------
    config : SourceConfig
        ``encoding``, ``undecodable``, ``digits``, ``markup``, ``word_length_min``,
        ``word_length_max`` and ``stop_words`` matter.

    Attributes
    ----------
    rules : int64[N_RULES]
    stops : uint64[k]
        Table of the keys of words that are left out.

    Raises
    ------
    ConfigError
        A length is wrong, or a file of stop words cannot be read.
    """

    def __init__(self, config: SourceConfig) -> None:
        if config.word_length_min > config.word_length_max:
            raise ConfigError(
                f"source.word_length_min: expected at most source.word_length_max, "
                f"{config.word_length_max}, got {config.word_length_min}"
            )
        self.latin_1 = config.encoding == "latin-1"
        self.rules: I64 = np.zeros(kernels.N_RULES, np.int64)
        self.rules[:] = (
            kernels.LATIN_1 if self.latin_1 else kernels.UTF_8,
            config.undecodable == "bad",
            config.digits,
            config.markup == "html",
            config.word_length_min,
            config.word_length_max,
        )
        self.stops = key_table(())
        self._pages, self._cells = letter_table()
        self._tags = key_table(word_keys(sorted(ELEMENTS)))
        self.stops = key_table(self._stop_keys(config.stop_words))

    @property
    def tables(
        self,
    ) -> tuple[I64, np.uint64, NDArray[np.uint16], I32, U64, U64]:
        """What every kernel takes first: rules, seed, pages, cells, stops, tags."""
        return self.rules, WORD, self._pages, self._cells, self.stops, self._tags

    def scratch(self) -> U8:
        """Return room for a word."""
        longest = int(self.rules[kernels.R_LONGEST])
        return np.zeros(_CHARACTER_BYTES * (longest + 4), np.uint8)

    def keys(self, text: str) -> U64:
        """Return the keys of a text's words, in their order."""
        return self._keys(text, self.rules)

    def _stop_keys(self, setting: str) -> U64:
        """Return the keys of stop words, which are split as texts are: don't is don and t."""
        if setting == "none":
            return np.zeros(0, np.uint64)
        words = (
            sorted(ENGLISH) if setting == "english" else read_words("source.stop_words", setting)
        )
        rules = self.rules.copy()
        rules[[kernels.R_MARKUP, kernels.R_SHORTEST]] = 0, 1
        return self._keys("\n".join(words), rules)

    def _keys(self, text: str, rules: I64) -> U64:
        data = text.encode("utf-8", "replace")
        rules = rules.copy()
        rules[kernels.R_ENCODING] = kernels.UTF_8
        buffer = np.frombuffer(data + bytes(128), np.uint8)
        keys = np.zeros(len(data) // 2 + 2, np.uint64)
        at = buffer.ctypes.data
        count, _ = kernels.key_words(
            at, at + len(data), rules, *self.tables[1:], self.scratch(), np.zeros(1, np.bool_),
            keys, 0,
        )  # fmt: skip
        return keys[:count]


def word_keys(words: Sequence[str]) -> U64:
    """Return the keys of words, each as it stands: what a text gives is in lower case.

    Parameters
    ----------
    words : sequence of n texts

    Returns
    -------
    uint64[n]
    """
    encoded = [word.encode() for word in words]
    ends = np.cumsum([len(word) for word in encoded], dtype=np.int64)
    text = np.frombuffer(b"".join(encoded) + bytes(8), np.uint8)
    keys = np.zeros(len(encoded), np.uint64)
    kernels.word_keys(text, ends, WORD, keys)
    return keys


def digest_of(keys: U64) -> str:
    """Return a digest of words by their keys, in order; empty where there are none.

    A file of words is known by its path alone in a job: this tells whether it has changed.
    """
    return hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest() if keys.size else ""


def read_words(setting: str, path: str) -> list[str]:
    """Return the words of a file, one a line, without the blanks around them.

    Parameters
    ----------
    setting : str
        What names the file, for the error.
    path : str

    Raises
    ------
    ConfigError
        It cannot be read, or is not UTF-8.
    """
    try:
        file = Path(path).expanduser()
        if (size := file.stat().st_size) > _FILE_BYTES_MAX:
            raise ConfigError(f"{setting}: {path} has {size:,} bytes, which is no list of words")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read", cause=error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{setting}: {path} is not UTF-8 at byte {error.start}",
            hint=f"iconv -f latin1 -t utf-8 {path}",
        ) from error
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def key_table(keys: Iterable[int]) -> U64:
    """Return an open-addressing table, an eighth full; of one place where there is nothing."""
    known = sorted({int(key) for key in keys})
    size = 1
    while size < 8 * len(known):
        size *= 2
    table: U64 = np.zeros(size, np.uint64)
    for key in known:
        place = (key >> 32) & (size - 1)
        while table[place]:
            place = (place + 1) & (size - 1)
        table[place] = key
    return table
