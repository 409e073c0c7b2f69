"""tomotopy, gensim and scikit-learn on a prepared corpus, each in a process of its own.

    python benches/topic_peers.py tomotopy .bench/imdb.npz --topics 100 --alpha 0.02 --out out
    python benches/topic_peers.py gensim .bench/news.npz --topics 100 --sweeps 1,3 --out out

* tomotopy: collapsed Gibbs sampling, one worker, priors that stay as they are. A sweep is an
  iteration.
* gensim: online variational Bayes, chunks of its own size (2,000). A sweep is one of its passes.
* scikit-learn: the same, chunks of CHUNK documents; a sweep is a ``partial_fit`` of all documents.

Whatever is made of the documents before the first sweep (lists of words, a sparse matrix, topics
drawn at random) is ``prepare_seconds``, and in no sweep. Nor is the taking of topics after those
sweeps that are asked for. The peak of memory is that before topics are first taken: it has the
arrays of the corpus and what the peer makes of them.

A peer is imported by its own function alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import process
import topic_corpora
from topic_corpora import Corpus

__all__ = [
    "PEERS",
    "Setting",
    "installed",
    "learn",
    "run",
    "setting_arguments",
    "setting_of",
    "sweeps",
]

# Of scikit-learn's minibatches: as gensim's chunks, about.
CHUNK = 2048
MODULES = {"tomotopy": "tomotopy", "gensim": "gensim", "scikit-learn": "sklearn"}
# A single thread, also of what multiplies matrices.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Setting:
    """What every contender is told.

    Attributes
    ----------
    topics : int
    alpha, beta : float
        Symmetric priors, which stay.
    sweeps : tuple of int
        After which topics are judged, rising; the last is the end.
    seconds_max : float
        CPU seconds of sweeps after which no more is begun; topics are taken then.
    seed : int
    """

    topics: int
    alpha: float
    beta: float = 0.01
    sweeps: tuple[int, ...] = (10, 30, 100)
    seconds_max: float = float("inf")
    seed: int = 1


# Called after each sweep with what returns the topics then; says whether to go on.
After = Callable[[Callable[[], np.ndarray]], bool]


def _tomotopy(corpus: Corpus, setting: Setting, begin: Callable[[], None], after: After) -> None:
    import tomotopy  # type: ignore[import-untyped]

    model = tomotopy.LDAModel(
        k=setting.topics, alpha=setting.alpha, eta=setting.beta, seed=setting.seed
    )
    # neither the optimising of priors, which stay, nor the removal of any word
    model.optim_interval = 0
    names = corpus.words.tolist()
    for document in _documents(corpus):
        model.add_doc([names[number] for number in document.tolist()])
    model.train(0, workers=1)
    if model.num_words != len(corpus.w):
        raise RuntimeError(f"tomotopy has {model.num_words} tokens of {len(corpus.w)}")
    numbers = {name: number for number, name in enumerate(names)}
    columns = [numbers[name] for name in model.used_vocabs]

    def topics() -> np.ndarray:
        phi = np.empty((setting.topics, len(names)), np.float32)
        for k in range(setting.topics):
            phi[k, columns] = model.get_topic_word_dist(k)
        return phi

    begin()
    more = True
    while more:
        model.train(1, workers=1)
        more = after(topics)


def _gensim(corpus: Corpus, setting: Setting, begin: Callable[[], None], after: After) -> None:
    from gensim.models import LdaModel  # type: ignore[import-untyped]

    bags = [
        list(zip(*(side.tolist() for side in np.unique(document, return_counts=True)), strict=True))
        for document in _documents(corpus)
    ]

    class EnoughError(Exception):
        """Raised out of its loop over passes."""

    class Watched(LdaModel):  # type: ignore[misc]
        """Tells of the end of a pass: its last step."""

        steps = 0

        def do_mstep(self, *args: Any, **kinds: Any) -> None:
            super().do_mstep(*args, **kinds)
            self.steps += 1
            if self.steps % -(-len(bags) // self.chunksize) == 0 and not after(self.get_topics):
                raise EnoughError

    model = Watched(
        id2word=dict(enumerate(corpus.words.tolist())),
        num_topics=setting.topics,
        alpha=np.full(setting.topics, setting.alpha, np.float32),
        eta=setting.beta,
        passes=setting.sweeps[-1],
        eval_every=None,
        random_state=setting.seed,
    )
    begin()
    try:
        model.update(bags)
    except EnoughError:
        return


def _scikit_learn(
    corpus: Corpus, setting: Setting, begin: Callable[[], None], after: After
) -> None:
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import LatentDirichletAllocation

    ends = np.append(0, np.cumsum(corpus.lens))
    shape = (len(corpus.lens), len(corpus.words))
    counts = csr_matrix((np.ones(len(corpus.w)), corpus.w, ends), shape=shape)
    counts.sum_duplicates()
    model = LatentDirichletAllocation(
        n_components=setting.topics,
        doc_topic_prior=setting.alpha,
        topic_word_prior=setting.beta,
        learning_method="online",
        batch_size=CHUNK,
        total_samples=shape[0],
        random_state=setting.seed,
        n_jobs=1,
    )

    def topics() -> np.ndarray:
        found: np.ndarray = model.components_ / model.components_.sum(1, keepdims=True)
        return found

    begin()
    more = True
    while more:
        model.partial_fit(counts)
        more = after(topics)


PEERS = {"tomotopy": _tomotopy, "gensim": _gensim, "scikit-learn": _scikit_learn}


def installed(name: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(MODULES[name]) is not None


def missing(name: str) -> str:
    """Say that a peer is not installed, and what to do."""
    return f"{name} is not installed: pip install {name}, or `make .venv/bench`"


def learn(name: str, corpus: Corpus, setting: Setting, out: Path) -> dict[str, Any]:
    """Let a peer learn in this process.

    Parameters
    ----------
    name : str
        Of PEERS.
    corpus : Corpus
    setting : Setting
    out : Path
        Folder of the topics: ``NAME-SWEEP.npy``, float32[K, V].

    Returns
    -------
    dict
        ``prepare_seconds`` and ``prepare_cpu_seconds``, lists of ``sweep_seconds`` and
        ``sweep_cpu_seconds``, ``peak_rss_bytes``, ``topics`` (sweep: path).

    Raises
    ------
    ModuleNotFoundError
        It is not installed; what to install.
    """
    if not installed(name):
        raise ModuleNotFoundError(missing(name))
    watch = _Watch(name, setting, out)
    PEERS[name](corpus, setting, watch.begin, watch.after)
    return watch.told


class _Watch:
    """Takes the time of each sweep, and topics after those that are asked for."""

    def __init__(self, name: str, setting: Setting, out: Path) -> None:
        self._path = str(out / f"{name}-{{}}.npy")
        self._setting = setting
        self._last = _clocks()
        self.told: dict[str, Any] = {
            "sweep_seconds": [],
            "sweep_cpu_seconds": [],
            "peak_rss_bytes": 0,
            "topics": {},
        }

    def begin(self) -> None:
        """Say that all is prepared."""
        now = _clocks()
        self.told["prepare_seconds"] = now[0] - self._last[0]
        self.told["prepare_cpu_seconds"] = now[1] - self._last[1]
        self._last = _clocks()

    def after(self, topics: Callable[[], np.ndarray]) -> bool:
        """Count a sweep; say whether to go on."""
        now, told = _clocks(), self.told
        told["sweep_seconds"].append(now[0] - self._last[0])
        told["sweep_cpu_seconds"].append(now[1] - self._last[1])
        sweep = len(told["sweep_seconds"])
        if not told["topics"]:
            told["peak_rss_bytes"] = process.peak_rss_bytes()
        spent = sum(told["sweep_cpu_seconds"]) >= self._setting.seconds_max
        more = sweep < self._setting.sweeps[-1] and not spent
        if sweep in self._setting.sweeps or not more:
            path = self._path.format(sweep)
            np.save(path, topics().astype(np.float32))
            told["topics"][sweep] = path
        print(f"sweep {sweep}: {told['sweep_cpu_seconds'][-1]:.2f} CPU s", file=sys.stderr)
        self._last = _clocks()
        return more


def run(name: str, corpus: Path, setting: Setting, out: Path) -> dict[str, Any]:
    """Let a peer learn in a process of its own; see `learn`.

    Further keys: ``process_seconds`` and ``process_cpu_seconds``.
    """
    command = [sys.executable, str(Path(__file__)), name, str(corpus), "--out", str(out)]
    command += ["--topics", str(setting.topics), "--alpha", str(setting.alpha)]
    command += ["--beta", str(setting.beta), "--seed", str(setting.seed)]
    command += ["--sweeps", ",".join(map(str, setting.sweeps))]
    command += ["--seconds-max", str(setting.seconds_max)]
    used = process.run(command, ENVIRONMENT)
    told = json.loads(used.stdout)
    return {
        **told,
        "topics": {int(sweep): path for sweep, path in told["topics"].items()},
        "process_seconds": used.seconds,
        "process_cpu_seconds": used.cpu_seconds,
    }


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _documents(corpus: Corpus) -> list[np.ndarray]:
    return np.split(corpus.w, np.cumsum(corpus.lens)[:-1])


def sweeps(text: str) -> tuple[int, ...]:
    """Parse ``10,30,100`` of the command line."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or found[0] < 1 or list(found) != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected rising numbers, as 10,30,100")
    return found


def setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a setting is made of to a command line, and where topics go."""
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--sweeps", type=sweeps, default=(10, 30, 100), help="judged after these")
    parser.add_argument("--seconds-max", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the topics")


def setting_of(args: argparse.Namespace) -> Setting:
    """Return the setting of a command line."""
    return Setting(args.topics, args.alpha, args.beta, args.sweeps, args.seconds_max, args.seed)


def main() -> None:
    """Let one peer learn, print what came of it."""
    parser = argparse.ArgumentParser(description="A topic model's peer on a prepared corpus.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("corpus", type=Path, help="NAME.npz of topic_corpora.py")
    setting_arguments(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    corpus = topic_corpora.read(args.corpus)
    print(json.dumps(learn(args.peer, corpus, setting_of(args), args.out)))


if __name__ == "__main__":
    main()
