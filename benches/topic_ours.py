"""Our own topic model on a prepared corpus: its command line, in a process of its own.

The first pass reads the text and is no sweep. The time of a sweep is that between two lines of the
log, one a pass (see ``process.run_stamped``). Nothing is left out of what is given.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import process
from topic_corpora import Corpus
from topic_peers import Setting

__all__ = ["Model", "read", "train"]

# What the log says after a pass.
_PASS = re.compile(r"\bpass (\d+): ")


@dataclass(frozen=True, slots=True)
class Model:
    """What ours exports.

    Attributes
    ----------
    phi : float32[K, V]
        In the order of the corpus's words.
    alpha : float64[K]
    sizes : int64[K]
        Tokens of each topic.
    """

    phi: np.ndarray
    alpha: np.ndarray
    sizes: np.ndarray


def read(path: Path, corpus: Corpus) -> Model:
    """Read what ours exports.

    Raises
    ------
    RuntimeError
        Its words are not the corpus's, or counts do not add up to the tokens.
    """
    with np.load(path) as kept:
        words, counts, totals = kept["words"], kept["counts"].astype(np.int64), kept["totals"]
        alpha, beta = kept["alpha"], float(kept["beta"])
    order = np.argsort(words)
    if not np.array_equal(words[order], corpus.words):
        raise RuntimeError(f"{path}: {len(words)} words that are not the {len(corpus.words)} given")
    if counts.sum() != len(corpus.w) or not np.array_equal(counts.sum(0), totals):
        raise RuntimeError(
            f"{path}: counts add up to {counts.sum()}, totals to {totals.sum()}; expected "
            f"{len(corpus.w)}"
        )
    phi = ((counts[order] + beta) / (totals + len(words) * beta)).T.astype(np.float32)
    return Model(phi, alpha, totals)


def train(
    corpus: Corpus, setting: Setting, out: Path, *, lanes: int = 1, optimize: str = "none"
) -> dict[str, Any]:
    """Train ours in a process of its own, for all sweeps of a setting; return what it used.

    Parameters
    ----------
    corpus : Corpus
    setting : Setting
    out : Path
        Folder of the model; ``model.npz`` in it is what is exported.
    lanes : int
    optimize : str
        Which priors are fitted.

    Returns
    -------
    dict
        As `topic_peers.run`, without topics.

    Raises
    ------
    RuntimeError
        It failed, or said another number of passes.
    """
    sweeps = setting.sweeps[-1]
    streamlearn = [sys.executable, "-m", "streamlearn"]
    command = [*streamlearn, "train", str(corpus.text), "--model", "lda", "--format", "documents"]
    command += ["--out", str(out), "--lanes", str(lanes)]
    # the first pass reads, and is no sweep; what is given is to be learned, all of it
    chosen = {
        "topics": setting.topics,
        "epochs": sweeps + 1,
        "doc_topic_prior": setting.alpha,
        "topic_word_prior": setting.beta,
        "optimize": optimize,
        "min_df": 1,
        "max_df": 1.0,
    }
    for name, value in chosen.items():
        command += ["--set", f"model.{name}={value}"]
    used, lines = process.run_stamped(command, stderr=True)
    said = [line for line in lines if _PASS.search(line.text)]
    if len(said) != sweeps + 1:
        raise RuntimeError(f"{len(said)} of {sweeps + 1} passes: {used.stderr[-400:]}")
    process.run([*streamlearn, "export", str(out), str(out / "model.npz")])
    pairs = list(pairwise(said))
    return {
        "sweep_seconds": [b.seconds - a.seconds for a, b in pairs],
        "sweep_cpu_seconds": [b.cpu_seconds - a.cpu_seconds for a, b in pairs],
        "prepare_seconds": said[0].seconds,
        "prepare_cpu_seconds": said[0].cpu_seconds,
        "peak_rss_bytes": used.peak_rss_bytes,
    }
