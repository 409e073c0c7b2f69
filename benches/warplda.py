"""WarpLDA on a prepared corpus: a runner of its programs ``format`` and ``warplda``.

    python benches/warplda.py PROGRAM .bench/imdb.npz --topics 100 --alpha 0.02 --sweeps 10,30

WarpLDA (Chen et al., VLDB 2016) is built elsewhere; ``warplda`` is named by its path, or by its
folder's, and ``format`` stands beside it. Its input is the text that ours reads, cut at blanks. Its
``--alpha`` is the sum over topics.

It writes its counts at the end alone, so for each number of sweeps it is run anew. Its lines, one a
sweep and flushed, are stamped as they come (see ``process.run_stamped``); the first sweep, after
the reading of the corpus, is as long as the program says. What ``format`` takes is in no time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import process
import topic_corpora
import topic_peers
from topic_corpora import Corpus
from topic_peers import Setting

__all__ = ["program", "run"]


def program(path: Path) -> Path:
    """Return ``warplda``, given it or its folder.

    Raises
    ------
    FileNotFoundError
        It is not there, or ``format`` is not beside it.
    """
    found = path / "warplda" if path.is_dir() else path
    for wanted in (found, found.with_name("format")):
        if not wanted.is_file():
            raise FileNotFoundError(f"{wanted}: no such program; expected WarpLDA's")
    return found


def run(warplda: Path, corpus: Corpus, setting: Setting, out: Path) -> dict[str, Any]:
    """Let WarpLDA learn, once for each number of sweeps.

    Parameters
    ----------
    warplda : Path
        See `program`.
    corpus : Corpus
    setting : Setting
        Its seed is not heeded: WarpLDA has its own.
    out : Path
        Folder of the topics: ``WarpLDA-SWEEP.npy``, float32[K, V].

    Returns
    -------
    dict
        As `topic_peers.run`, of the longest run.

    Raises
    ------
    RuntimeError
        WarpLDA failed, or said another number of sweeps, or has other tokens.
    """
    told: dict[str, Any] = {}
    topics = {}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        prefix = Path(scratch) / "corpus"
        command = [str(warplda.with_name("format")), "-input", str(corpus.text)]
        process.run([*command, "-prefix", str(prefix), "-skip", "0"])
        for count in setting.sweeps:
            told = _learn(warplda, prefix, setting, count)
            path = out / f"WarpLDA-{count}.npy"
            np.save(path, _topics(prefix, corpus, setting))
            topics[count] = str(path)
            if sum(told["sweep_cpu_seconds"]) >= setting.seconds_max:
                break
    return {**told, "topics": topics}


def _learn(warplda: Path, prefix: Path, setting: Setting, count: int) -> dict[str, Any]:
    """Run it for so many sweeps; return what it used. Its model stands beside the corpus."""
    command = ["env", "OMP_NUM_THREADS=1", str(warplda), "--prefix", str(prefix)]
    command += ["--k", str(setting.topics), "--alpha", str(setting.alpha * setting.topics)]
    command += ["--beta", str(setting.beta), "--niter", str(count)]
    used, lines = process.run_stamped([*command, "--nodumpz", "--nowriteinfo"])
    said = [line for line in lines if line.text.startswith("Iteration ")]
    if len(said) != count:
        raise RuntimeError(f"warplda said {len(said)} of {count} sweeps: {used.stdout[-400:]}")
    # "Iteration 0, 0.512 s, ..."
    first = float(said[0].text.split()[2])
    return {
        "sweep_seconds": [first, *np.diff([line.seconds for line in said]).tolist()],
        "sweep_cpu_seconds": [first, *np.diff([line.cpu_seconds for line in said]).tolist()],
        "prepare_seconds": said[0].seconds - first,
        "prepare_cpu_seconds": said[0].cpu_seconds - first,
        "peak_rss_bytes": used.peak_rss_bytes,
        "process_seconds": used.seconds,
        "process_cpu_seconds": used.cpu_seconds,
    }


def _topics(prefix: Path, corpus: Corpus, setting: Setting) -> np.ndarray:
    """Read its counts; return topics, float32[K, V], in the order of the corpus's words."""
    numbers = {word: number for number, word in enumerate(corpus.words.tolist())}
    vocabulary = prefix.with_suffix(".vocab").read_text().split()
    counts = np.zeros((len(numbers), setting.topics))
    with prefix.with_suffix(".model").open() as lines:
        next(lines)
        for word, line in zip(vocabulary, lines, strict=True):
            row = counts[numbers[word]]
            for pair in line.split()[1:]:
                topic, _, count = pair.partition(":")
                row[int(topic)] = int(count)
    if counts.sum() != len(corpus.w):
        raise RuntimeError(f"warplda has {counts.sum():.0f} tokens of {len(corpus.w)}")
    smooth = counts.T + setting.beta
    found: np.ndarray = (smooth / smooth.sum(1, keepdims=True)).astype(np.float32)
    return found


def main() -> None:
    """Let WarpLDA learn, print what came of it."""
    parser = argparse.ArgumentParser(description="Run WarpLDA on a prepared corpus.")
    parser.add_argument("program", type=Path, help="warplda, or its folder")
    parser.add_argument("corpus", type=Path, help="NAME.npz of topic_corpora.py")
    topic_peers.setting_arguments(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    setting = topic_peers.setting_of(args)
    corpus = topic_corpora.read(args.corpus)
    print(json.dumps(run(program(args.program), corpus, setting, args.out)))


if __name__ == "__main__":
    main()
