"""From the bytes of documents to the keys of their words, beside what users of Python have.

    python benches/bench_documents.py ../shared/data

Question: what does a text cost from its bytes to the keys of its words, on one core, beside
``re.findall`` and ``lower``, scikit-learn's and tomotopy's analysers, and
gensim's ``simple_preprocess``.
Method: the 50,000 reviews of IMDB (66 MB, some 11 M words) in memory, parsed into minibatches of
4,096 documents; the best of five runs. Peers get a fifth of them, as texts already decoded, and
make lists of words of the same kind. Then 20news as sources read it, an archive and a directory of
18,846 files, by wall time.
Unit: MB of text and millions of words for each second of CPU of one thread.
Budget: plain ASCII text at 250 MB/s and 40 M words/s or more.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from streamlearn.config import SourceConfig
from streamlearn.errors import StreamlearnError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, Position
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import open_format
from streamlearn.online.minibatch import Minibatch, room_of

RUNS = 5
DOCUMENTS = 4096
PEERS_SHARE = 5
NEWS = "20news-bydate.tar.gz"


def ours(name: str, data: bytes, **settings: object) -> None:
    """Parse records, and print how fast."""
    format = open_format(SourceConfig(format="documents", **settings))  # type: ignore[arg-type]
    parser = format.parser(data.partition(b"\n")[0])
    buffer = np.frombuffer(bytearray(data + bytes(BLOCK_TAILROOM_BYTES)), np.uint8)
    rows, words = room_of(DOCUMENTS, 48 * DOCUMENTS, format.record_rows)
    out = Minibatch(rows, words, has_values=False, record_rows=format.record_rows)
    times, found = [], 0
    for _ in range(RUNS + 1):  # the first compiles
        at = found = 0
        started = time.thread_time()
        while at < len(data):
            out.clear()
            at = parser.parse(buffer, at, len(data), out)
            found += out.nnz
        times.append(time.thread_time() - started)
    show(name, len(data), found, min(times))


def peer(name: str, texts: list[str], size: int, words_of: Callable[[str], Iterable[str]]) -> None:
    """Cut texts into words, and print how fast."""
    started = time.thread_time()
    found = sum(len(list(words_of(text))) for text in texts)
    show(name, size, found, time.thread_time() - started)


def peers(texts: list[str], size: int) -> None:
    """Let those who are installed cut the texts into words."""
    pattern = r"[^\W\d_]{2,}"
    compiled = re.compile(pattern)
    peer("re.findall, lower", texts, size, lambda text: compiled.findall(text.lower()))
    try:
        from sklearn.feature_extraction.text import CountVectorizer

        peer("scikit-learn", texts, size, CountVectorizer().build_analyzer())
    except ImportError as error:
        print(f"scikit-learn: {error}")
    try:
        from tomotopy.utils import SimpleTokenizer

        peer("tomotopy", texts, size, SimpleTokenizer(pattern=pattern))
    except ImportError as error:
        print(f"tomotopy: {error}")
    try:
        from gensim.utils import simple_preprocess

        peer("gensim", texts, size, lambda text: simple_preprocess(text, min_len=2, max_len=64))
    except ImportError as error:
        print(f"gensim: {error}")


def show(name: str, size: int, words: int, seconds: float) -> None:
    """Print a line of figures."""
    print(
        f"{name:28} {size / seconds / 1e6:6.0f} MB/s  {words / seconds / 1e6:6.1f} M words/s  "
        f"{seconds / words * 1e9:6.1f} ns a word",
        flush=True,
    )


async def sourced(name: str, uri: Path, documents: str) -> None:
    """Read a source to its end, and print how fast files come of it."""
    source = open_source(SourceConfig(uri=(str(uri),), documents=documents))
    started = time.perf_counter()
    todo = [(partition, Position()) for partition in await source.partitions()]
    records = size = 0
    async for _, item in source.read_many(todo):
        if isinstance(item, StreamlearnError):
            raise item
        piece = item.buffer[item.start : item.end]
        records += int(np.count_nonzero(piece == ord("\n")))
        size += piece.size
        item.release()
    seconds = time.perf_counter() - started
    await source.aclose()
    print(
        f"{name:28} {size / seconds / 1e6:6.0f} MB/s  {records / seconds:8.0f} files/s", flush=True
    )


def main() -> None:
    """Measure, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("data", type=Path, help="where IMDB and 20news are")
    folder = arguments.parse_args().data
    lines = gzip.decompress((folder / "imdb_train_unsup.tsv.gz").read_bytes())
    texts = [line.split(b"\t")[3] for line in lines.splitlines()]
    plain = b"\n".join(texts) + b"\n"
    fields = b"".join(
        json.dumps({"id": i, "text": text.decode()}).encode() + b"\n"
        for i, text in enumerate(texts)
    )
    ours("lines", plain)
    ours("lines, stop words", plain, stop_words="english")
    ours("lines, all of it text", plain, markup="none")
    ours("a column of four", lines, columns={"3": "text"})
    ours("a field of JSON", fields, columns={"text": "text"})
    some = texts[: len(texts) // PEERS_SHARE]
    peers([text.decode() for text in some], sum(map(len, some)))
    asyncio.run(sourced("20news, tar.gz", folder / NEWS, "auto"))
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(folder / NEWS) as tar:
            tar.extractall(scratch, filter="data")
        asyncio.run(sourced("20news, a directory", Path(scratch), "files"))


if __name__ == "__main__":
    main()
