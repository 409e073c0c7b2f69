"""Corpora for topic models: IMDB, 20news, and a generated one whose topics are known.

    python benches/topic_corpora.py --data ../shared/data --out .bench           # imdb and news
    python benches/topic_corpora.py --generated 100000 --words 30000 --topics 100 --out .bench

What every contender learns is the same tokens. A corpus is prepared once: its text is cut into
words of two letters ``a-z`` or more in lower case, documents are shuffled (IMDB's are sorted by
label), the last HELD_OUT of them are set apart, and of the others words that stand in a quarter or
more of the documents, or in fewer than ten (IMDB) or five (20news), are left out, and then
documents without a word. Held-out documents have no other words than the others and two at least.

Two files come of it, NAME.txt (a document a line, for ours, which must leave nothing more out) and
NAME.npz (for peers and the evaluator): ``lens`` (int32[D]: tokens of each document), ``w``
(int32[N]: numbers of words, in order of the text), ``tlens`` and ``tw`` (held out), ``words``
(unicode[V]), ``V``, and of a generated corpus ``phi`` (float64[K, V]) and ``alpha`` (float64[K]).
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

import numpy as np
from numba import njit

__all__ = ["HELD_OUT", "Corpus", "corpus", "draw", "generated", "prepare", "read"]

HELD_OUT = 1000
SEED = 1
# Words of more documents than this share are left out.
SHARE_MAX = 0.25
IMDB = ("imdb_train_labelled.tsv.gz", "imdb_train_unsup.tsv.gz")
NEWS = "20news-bydate.tar.gz"
DOCUMENTS_MIN = {"imdb": 10, "news": 5}
_WORD = re.compile(r"[a-z]{2,}")
# Of a generated corpus: the power law of words, and what a topic's words are drawn by.
EXPONENT = 1.05
OFFSET = 5.0
TOPIC_WORD = 0.05


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
        texts = imdb(data) if name == "imdb" else news(data)
        prepare(texts, path, documents_min=DOCUMENTS_MIN[name])
    return read(path)


def imdb(data: Path) -> Iterator[str]:
    """Yield the text column of both files, without the breaks of lines."""
    for name in IMDB:
        with gzip.open(data / name, "rt", encoding="utf8") as lines:
            for line in lines:
                yield line.split("\t", 3)[3].replace("<br />", " ")


def news(data: Path) -> Iterator[str]:
    """Yield the documents of the train part, headers and all."""
    with tarfile.open(data / NEWS) as archive:
        for member in archive:
            if member.isfile() and "-train/" in member.name:
                file = archive.extractfile(member)
                assert file is not None
                yield file.read().decode("latin-1")


def prepare(
    texts: Iterable[str],
    path: Path,
    *,
    documents_min: int = 1,
    share_max: float = SHARE_MAX,
    held_out: int = HELD_OUT,
    seed: int = SEED,
) -> None:
    """Cut texts into words, choose words, set documents apart; write both files.

    Parameters
    ----------
    texts : iterable of str
    path : Path
        Of the arrays.
    documents_min : int
        Words of fewer documents are left out.
    share_max : float
        And words of this share of the documents, or of more.
    held_out : int
        Documents set apart.
    seed : int
        Of the order.
    """
    numbers: dict[str, int] = {}
    documents = []
    for text in texts:
        found = _WORD.findall(text.lower())
        documents.append(np.array([numbers.setdefault(w, len(numbers)) for w in found], np.int32))
    order = np.random.default_rng(seed).permutation(len(documents))
    documents = [documents[i] for i in order]
    learned, held = documents[: len(documents) - held_out], documents[len(documents) - held_out :]
    counts: Counter[int] = Counter()
    for document in learned:
        counts.update(set(document.tolist()))
    most = share_max * len(learned)
    chosen = sorted(
        word for word, number in numbers.items() if documents_min <= counts[number] < most
    )
    place = np.full(len(numbers) + 1, -1, np.int32)
    place[[numbers[word] for word in chosen]] = np.arange(len(chosen))
    _write(path, chosen, *(_numbered(part, place) for part in (learned, held)))


def generated(
    documents: int,
    words: int,
    topics: int,
    folder: Path,
    *,
    alpha: float = 0.1,
    length: float = 100.0,
    seed: int = SEED,
) -> Corpus:
    """Make a corpus of known topics, or find the one that was made; see `draw`."""
    path = folder / f"topics-{documents}-{words}-{topics}-{alpha:g}-{length:g}-{seed}.npz"
    if not path.exists():
        phi, drawn = draw(documents + HELD_OUT, words, topics, alpha, length, seed)
        learned, held = drawn[:documents], drawn[documents:]
        seen = np.unique(np.concatenate(learned))
        place = np.full(words, -1, np.int32)
        place[seen] = np.arange(len(seen))
        kept = phi[:, seen]
        _write(
            path,
            [_name(int(number)) for number in seen],
            *(_numbered(part, place) for part in (learned, held)),
            phi=kept / kept.sum(1, keepdims=True),
            alpha=np.full(topics, alpha),
        )
    return read(path)


def draw(
    documents: int, words: int, topics: int, alpha: float, length: float, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw documents by the model of LDA.

    Topics are drawn by a Dirichlet whose mean is a power law, so that words that are frequent
    stand in most of the topics:

        m_w ~ (w + OFFSET)^-EXPONENT,  phi_k ~ Dirichlet(TOPIC_WORD V m),
        theta_d ~ Dirichlet(alpha),  n_d ~ lognormal of mean ``length``,  z ~ theta_d,  w ~ phi_z

    Returns
    -------
    phi : float64[K, V]
    documents : list of int32[n_d]
    """
    rng = np.random.default_rng(seed)
    mean = (np.arange(words) + OFFSET) ** -EXPONENT
    mean /= mean.sum()
    phi = rng.standard_gamma(TOPIC_WORD * words * mean, (topics, words))
    phi /= phi.sum(1, keepdims=True)
    deviation = 0.6
    lens = rng.lognormal(np.log(length) - deviation**2 / 2, deviation, documents)
    lens = np.maximum(lens, 2).astype(np.int32)
    drawn = np.empty(lens.sum(), np.int32)
    _draw(np.cumsum(phi, 1), lens, alpha, seed, drawn)
    return phi, np.split(drawn, np.cumsum(lens)[:-1])


@njit
def _draw(ends, lens, alpha, seed, drawn):
    """Draw the words of documents, into ``drawn``; ``ends`` are sums of each topic's words."""
    np.random.seed(seed)  # noqa: NPY002 (what Numba has)
    topics, words = ends.shape
    until = np.empty(topics)
    at = 0
    for n in lens:
        total = 0.0
        for k in range(topics):
            total += np.random.gamma(alpha)  # noqa: NPY002
            until[k] = total
        for _ in range(n):
            chosen = np.searchsorted(until, np.random.random() * total)  # noqa: NPY002
            k = min(chosen, topics - 1)
            word = np.searchsorted(ends[k], np.random.random() * ends[k, -1])  # noqa: NPY002
            drawn[at] = min(word, words - 1)
            at += 1


def _name(number: int) -> str:
    """Return the text of a generated word: letters alone, as any tokeniser keeps them."""
    letters = "w"
    for _ in range(5):
        number, letter = divmod(number, 26)
        letters += chr(ord("a") + letter)
    return letters


def _numbered(documents: list[np.ndarray], place: np.ndarray) -> list[np.ndarray]:
    """Return documents with the numbers of chosen words, without those of others."""
    numbered = (place[document] for document in documents)
    return [document[document >= 0] for document in numbered]


def _write(
    path: Path,
    words: list[str],
    learned: list[np.ndarray],
    held: list[np.ndarray],
    **truth: np.ndarray,
) -> None:
    """Write both files of a corpus, the arrays last: where they are, all is."""
    learned = [document for document in learned if len(document)]
    held = [document for document in held if len(document) > 1]
    if not learned:
        raise ValueError(f"{path}: no document has a word that is left in")
    with path.with_suffix(".txt").open("w") as out:
        for document in learned:
            out.write(" ".join([words[number] for number in document.tolist()]) + "\n")
    nothing = np.empty(0, np.int32)
    arrays = {
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
    """Prepare corpora, say what is in them."""
    parser = argparse.ArgumentParser(
        description="Prepare corpora for topic models.",
        epilog=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of the files of IMDB and 20news")
    parser.add_argument("--generated", type=int, default=0, help="documents to make")
    parser.add_argument("--words", type=int, default=30_000)
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--length", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    found = [corpus(name, args.data, args.out) for name in DOCUMENTS_MIN] if args.data else []
    if args.generated:
        sizes = (args.generated, args.words, args.topics)
        found.append(generated(*sizes, args.out, alpha=args.alpha, length=args.length))
    for one in found:
        print(
            f"{one.path}: {len(one.lens):,} documents, {len(one.w):,} tokens, "
            f"{len(one.words):,} words; held out: {len(one.held_lens):,} documents, "
            f"{len(one.held_w):,} tokens"
        )


if __name__ == "__main__":
    main()
