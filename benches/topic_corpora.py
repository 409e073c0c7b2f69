"""Corpora for topic models: IMDB and 20news, prepared once, the same tokens for all.

    python benches/topic_corpora.py ../shared/data --out .bench

What every contender learns is the same tokens. A corpus is prepared once: its text is cut into
words of 2 to LETTERS_MAX letters ``a-z`` in lower case, and documents are shuffled (IMDB's are
sorted by label). HELD_OUT of them are set apart: the last of IMDB, and of 20news those of its test
part, which shares no thread with the rest. Of the others, words that stand in a quarter or more of
the documents, or in fewer than ten (IMDB) or five (20news), are left out, and then documents
without a word. Held-out documents have no other words than the others and two at least.

Two files come of it, NAME.txt (a document a line, for ours, which must leave nothing more out) and
NAME.npz (for peers and the evaluator): ``lens`` (int32[D]: tokens of each document), ``w``
(int32[N]: numbers of words, in order of the text), ``tlens`` and ``tw`` (held out), ``words``
(unicode[V]), ``V``, and of a generated corpus (``topic_truth.py``) ``phi`` (float64[K, V]) and
``alpha`` (float64[K]).
"""

from __future__ import annotations

import argparse
import gzip
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DOCUMENTS_MIN", "HELD_OUT", "Corpus", "corpus", "prepare", "read", "write"]

HELD_OUT = 1000
SEED = 1
# Words of more documents than this share are left out.
SHARE_MAX = 0.25
IMDB = ("imdb_train_labelled.tsv.gz", "imdb_train_unsup.tsv.gz")
NEWS = "20news-bydate.tar.gz"
DOCUMENTS_MIN = {"imdb": 10, "news": 5}
# Longer words are noise, and tokenisers leave them out.
LETTERS_MAX = 40
_WORD = re.compile(r"[a-z]{2,}")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents as each contender reads them.

    Attributes
    ----------
    name : str
    path : Path
        The arrays. The text stands beside it.
    words : unicode[V]
    lens, w : int32[D], int32[N]
        Tokens of each document, and their words in order of the text.
    held_lens, held_w : int32
        The same of what is held out.
    phi, alpha : float64[K, V] and float64[K], or None
        The truth, where it is known.
    """

    name: str
    path: Path
    words: np.ndarray
    lens: np.ndarray
    w: np.ndarray
    held_lens: np.ndarray
    held_w: np.ndarray
    phi: np.ndarray | None = None
    alpha: np.ndarray | None = None

    @property
    def text(self) -> Path:
        """A document a line."""
        return self.path.with_suffix(".txt")

    @property
    def size(self) -> str:
        """How large it is, in words."""
        return (
            f"{len(self.lens):,} documents, {len(self.w):,} tokens, {len(self.words):,} words; "
            f"held out: {len(self.held_lens):,} documents, {len(self.held_w):,} tokens"
        )


def read(path: Path) -> Corpus:
    """Read the arrays of a prepared corpus."""
    with np.load(path) as kept:
        truth = (kept["phi"], kept["alpha"]) if "phi" in kept else (None, None)
        named = [kept[key] for key in ("words", "lens", "w", "tlens", "tw")]
    return Corpus(path.stem, path, *named, *truth)


def corpus(name: str, data: Path, folder: Path) -> Corpus:
    """Return a real corpus, prepared if it is not there.

    Parameters
    ----------
    name : {'imdb', 'news'}
    data : Path
        Folder of the files IMDB or NEWS.
    folder : Path
        Where what is prepared is kept.

    Raises
    ------
    FileNotFoundError
        A file is not in ``data``.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        parts = [imdb(data)] if name == "imdb" else [news(data, "train"), news(data, "test")]
        prepare(*parts, path=path, documents_min=DOCUMENTS_MIN[name])
    return read(path)


def imdb(data: Path) -> Iterator[str]:
    """Yield the text column of both files, without the breaks of lines."""
    for name in IMDB:
        with gzip.open(data / name, "rt", encoding="utf8") as lines:
            for line in lines:
                yield line.split("\t", 3)[3].replace("<br />", " ")


def news(data: Path, part: str) -> Iterator[str]:
    """Yield the documents of a part, train or test, headers and all."""
    with tarfile.open(data / NEWS) as archive:
        for member in archive:
            if member.isfile() and f"-{part}/" in member.name:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read().decode("latin-1")


def prepare(
    texts: Iterable[str],
    others: Iterable[str] | None = None,
    *,
    path: Path,
    documents_min: int = 1,
    share_max: float = SHARE_MAX,
    held_out: int = HELD_OUT,
    seed: int = SEED,
) -> None:
    """Cut texts into words, choose words, set documents apart; write both files.

    Parameters
    ----------
    texts, others : iterable of str
        What is set apart is of the others, where there are any.
    path : Path
        Of the arrays.
    documents_min : int
        Words of fewer documents are left out.
    share_max : float
        And words of this share of the documents, or of more.
    held_out : int
        Documents set apart, at most.
    seed : int
        Of the order.
    """
    numbers: dict[str, int] = {}
    learned = _shuffled(texts, numbers, seed)
    if others is None:
        learned, held = learned[: len(learned) - held_out], learned[len(learned) - held_out :]
    else:
        held = _shuffled(others, numbers, seed)[:held_out]
    counts: Counter[int] = Counter()
    for document in learned:
        counts.update(set(document.tolist()))
    most = share_max * len(learned)
    chosen = sorted(
        word for word, number in numbers.items() if documents_min <= counts[number] < most
    )
    place = np.full(len(numbers) + 1, -1, np.int32)
    place[[numbers[word] for word in chosen]] = np.arange(len(chosen))
    write(path, chosen, *(_numbered(part, place) for part in (learned, held)))


def _shuffled(texts: Iterable[str], numbers: dict[str, int], seed: int) -> list[np.ndarray]:
    """Cut texts into words, by numbers that are given to new ones; return them in another order."""
    documents = []
    for text in texts:
        found = [word for word in _WORD.findall(text.lower()) if len(word) <= LETTERS_MAX]
        documents.append(np.array([numbers.setdefault(w, len(numbers)) for w in found], np.int32))
    return [documents[i] for i in np.random.default_rng(seed).permutation(len(documents))]


def _numbered(documents: list[np.ndarray], place: np.ndarray) -> list[np.ndarray]:
    """Return documents with the numbers of chosen words, without those of others."""
    numbered = (place[document] for document in documents)
    return [document[document >= 0] for document in numbered]


def write(
    path: Path,
    words: list[str],
    learned: list[np.ndarray],
    held: list[np.ndarray],
    **truth: np.ndarray,
) -> None:
    """Write both files of a corpus, the arrays last: where they are, all is.

    Parameters
    ----------
    path : Path
        Of the arrays.
    words : list of str
    learned, held : list of int32
        Documents, as numbers of words.
    **truth : float64
        ``phi`` and ``alpha``, if known.

    Raises
    ------
    ValueError
        No document to learn has a word.
    """
    learned = [document for document in learned if len(document)]
    held = [document for document in held if len(document) > 1]
    if not learned:
        raise ValueError(f"{path}: no document has a word that is left in")
    with path.with_suffix(".txt").open("w") as out:
        for document in learned:
            out.write(" ".join([words[number] for number in document.tolist()]) + "\n")
    nothing = np.empty(0, np.int32)
    arrays: dict[str, Any] = {
        "words": np.array(words),
        "V": np.int64(len(words)),
        "lens": np.array([len(document) for document in learned], np.int32),
        "w": np.concatenate(learned),
        "tlens": np.array([len(document) for document in held], np.int32),
        "tw": np.concatenate([nothing, *held]),
        **truth,
    }
    scratch = path.with_suffix(".part.npz")
    np.savez(scratch, **arrays)
    scratch.replace(path)


def main() -> None:
    """Prepare the corpora, say what is in them."""
    parser = argparse.ArgumentParser(description="Prepare corpora for topic models.")
    parser.add_argument("data", type=Path, help="folder of the files of IMDB and 20news")
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    for name in DOCUMENTS_MIN:
        one = corpus(name, args.data, args.out)
        print(f"{one.path}: {one.size}")


if __name__ == "__main__":
    main()
