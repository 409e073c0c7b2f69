"""Topics of documents in memory, as scikit-learn calls it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np

from streamlearn.kept_estimator import KeptEstimator, threads_of
from streamlearn.learned import SETTINGS
from streamlearn.learned_topics import LearnedTopics
from streamlearn.messages import F32, F64, U64
from streamlearn.model import Model
from streamlearn.online.corpora import Corpus, Counts, column_keys, column_words, read_corpus
from streamlearn.online.tokens import read_words
from streamlearn.topic_inference import METHODS, PARTICLES, Judging
from streamlearn.topic_model import Topics, TopWords, words_of

try:
    from sklearn.base import TransformerMixin
except ImportError:
    from streamlearn.parameters import TransformerMixin

__all__ = ["LDA"]

# What may change once something is learned: how documents teach from now on.
_RATES: Final = ("epochs", "optimize", "patience", "draws", "half_life", "min_df", "max_df",
                 "vocabulary_max", "tokens_bytes_max")  # fmt: skip


class LDA(TransformerMixin, KeptEstimator[LearnedTopics]):  # type: ignore[misc]
    """Latent Dirichlet allocation: the topics that documents are made of.

    Parameters
    ----------
    topics : int, default 100
        Topics, 1 to 65535.
    epochs : int, default 100
        Passes over the tokens in ``fit``: the first reads them, each further one draws the topic of
        every token anew. 1: each document is learned as it comes, as ``partial_fit`` does.
    doc_topic_prior : float, default 0.0
        Prior of a topic in a document (alpha), which the first passes begin with; 0: ``5 /
        topics``.
    topic_word_prior : float, default 0.01
        Prior of a word in a topic (beta), which the first passes begin with.
    optimize : {"none", "alpha", "beta", "both"}, default "both"
        Which priors ``fit`` fits to what is learned.
    min_df : int, default 5
        Words that stand in fewer documents are left out.
    max_df : float, default 0.25
        Words that stand in a larger share of the documents are left out.
    vocabulary_max : int, default 0
        The most words with topics: those that stand in the most documents; 0: no limit.
    held_out : float, default 0.0
        Share of the documents that are never learned, but judged by (``passes_``).
    patience : int, default 0
        End ``fit`` after so many looks in a row at which held-out documents were predicted no
        better; 0: do not.
    draws : int, default 10
        ``partial_fit``: how often topics are drawn for the tokens of a document.
    half_life : float, default 0.0
        ``partial_fit``: documents after which half of what was learned is forgotten; 0: none is.
    stop_words : str, default "none"
        Words of texts that are left out: none, english, or a file with one a line.
    digits : bool, default False
        Digits are parts of words of texts.
    markup : {"html", "none"}, default "html"
        html: tags, comments and entities of HTML are no words of texts.
    word_length_min, word_length_max : int, default 2, 64
        Shorter and longer words of texts are left out.
    features_max : int, default 0
        Words at most, those left out as well; 0: as many as fit this machine's memory.
    embeddings_bytes_max : int, default 0
        Memory of counts at most, 4 bytes for each word and topic; 0: what ``features_max`` leaves
        of four fifths of this machine's memory.
    tokens_bytes_max : int, default 0
        Memory of the tokens that ``fit`` keeps for its further passes, 4 bytes each; beyond it they
        are kept in a temporary file. 0: a quarter of this machine's memory.
    when_full : {"error", "evict"}, default "error"
        What a full table does: stop, or forget the words least seen.
    names_max : int, default 1_000_000
        Words whose text is kept.
    vocabulary : sequence of str, or str, optional
        The words that columns of a matrix stand for, or a file with one a line. Without it they are
        the names of a frame's columns, else numbers.
    n_jobs : int, optional
        Threads; None: one, -1: one for each core. What is learned does not depend on it.

    Attributes
    ----------
    components_ : float64[topics, words]
        How many tokens of each word have each topic, plus the prior of a word; divided by its sum,
        a row is a topic's distribution. Of a matrix that was learned the words are its columns, in
        their order, else they are ``words_``.
    words_ : array of str
        The words that have topics, in the order in which they were met.
    alpha_, beta_ : float64[topics], float
        The priors.
    n_features_in_, feature_names_in_ : int, array of str
        Columns of X, where that was a matrix, and their names if it was a frame with names.
    passes_ : list of dict
        Of the last ``fit``: figures of each pass.
    documents_ : int
        Documents learned, each once.

    Notes
    -----
    X is a list (or other iterable) of texts, of lists of words, or a matrix (dense, sparse or a
    frame) that says how often each word is in each document. Texts are split as the command line
    splits documents; lists of words are taken as they are. With the same texts in the same order
    ``fit`` learns what ``train --model lda`` learns, draw by draw.

    Topics are drawn by a stochastic automaton: Zaheer, Wick, Tristan, Smola and Steele,
    "Exponential Stochastic Cellular Automata for Massively Parallel Inference", AISTATS 2016.

    Examples
    --------
    >>> from streamlearn import LDA
    >>> texts = ["tea and cake", "cake with tea", "a bus, then a train", "train or bus"] * 20
    >>> model = LDA(topics=2, doc_topic_prior=0.1, max_df=1.0, stop_words="english").fit(texts)
    >>> sorted(sorted(words) for words in model.top_words(2))
    [['bus', 'train'], ['cake', 'tea']]
    >>> mixture = model.transform(["more tea"])
    >>> bool(mixture.shape == (1, 2) and mixture.max() > 0.8)
    True
    """

    _kind: ClassVar = "lda"
    _binding: ClassVar = tuple(name for name in SETTINGS["lda"] if name not in _RATES)

    # Of a matrix that was learned: what its columns stand for; None: their numbers.
    _words: tuple[str, ...] | None = None

    def __init__(
        self,
        *,
        topics: int = 100,
        epochs: int = 100,
        doc_topic_prior: float = 0.0,
        topic_word_prior: float = 0.01,
        optimize: str = "both",
        min_df: int = 5,
        max_df: float = 0.25,
        vocabulary_max: int = 0,
        held_out: float = 0.0,
        patience: int = 0,
        draws: int = 10,
        half_life: float = 0.0,
        stop_words: str = "none",
        digits: bool = False,
        markup: str = "html",
        word_length_min: int = 2,
        word_length_max: int = 64,
        features_max: int = 0,
        embeddings_bytes_max: int = 0,
        tokens_bytes_max: int = 0,
        when_full: str = "error",
        names_max: int = 1_000_000,
        vocabulary: Sequence[str] | str | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.topics = topics
        self.epochs = epochs
        self.doc_topic_prior = doc_topic_prior
        self.topic_word_prior = topic_word_prior
        self.optimize = optimize
        self.min_df = min_df
        self.max_df = max_df
        self.vocabulary_max = vocabulary_max
        self.held_out = held_out
        self.patience = patience
        self.draws = draws
        self.half_life = half_life
        self.stop_words = stop_words
        self.digits = digits
        self.markup = markup
        self.word_length_min = word_length_min
        self.word_length_max = word_length_max
        self.features_max = features_max
        self.embeddings_bytes_max = embeddings_bytes_max
        self.tokens_bytes_max = tokens_bytes_max
        self.when_full = when_full
        self.names_max = names_max
        self.vocabulary = vocabulary
        self.n_jobs = n_jobs

    # --- as scikit-learn has it

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Learn documents from scratch, in ``epochs`` passes.

        Parameters
        ----------
        X : documents
            Texts, lists of words, or a matrix [n, d] of counts.
        y : ignored

        Raises
        ------
        ValueError, TypeError
            Data or settings are wrong, or no word is left that may have topics: the message says
            which.
        TableFullError, ResourceError
            There are more words than ``features_max``, or counts than ``embeddings_bytes_max``.
        """
        lanes, learned = threads_of(self.n_jobs), self._new()
        given = self._vocabulary()
        corpus = read_corpus(X, learned.tokeniser, given)
        if not len(corpus):
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        self._forget("_words")
        self._adopt(learned)
        self._begin(X, corpus, given)
        learned.fit(corpus, lanes)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Learn documents in one pass, going on from where the model is.

        Each call is a minibatch: its documents are judged first (:meth:`progressive`), and their
        topics are then drawn together. Words become part of the vocabulary as they come.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.

        Raises
        ------
        ValueError, TypeError, TableFullError
            As in :meth:`fit`.
        """
        learned = self._ready()
        fresh = not learned.model.counts.examples
        if fresh:
            given = self._vocabulary()
            corpus = read_corpus(X, learned.tokeniser, given)
            self._begin(X, corpus, given)
        else:
            corpus = self._asked(X, learned)
        learned.learn(corpus)
        return self

    def transform(self, X: Any) -> F32:  # noqa: N803
        """Return what share each topic has in documents, float32[n, topics]; rows sum to 1.

        Of a document without words that have topics they are those of the prior.

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong.
        """
        learned = self._fitted()
        return learned.mixtures(self._asked(X, learned), threads_of(self.n_jobs))

    def score(
        self,
        X: Any,  # noqa: N803
        y: Any = None,
        *,
        method: str = METHODS[0],
        particles: int = PARTICLES,
    ) -> float:
        """Return the mean log-likelihood of a token of documents that were not learned.

        Tokens whose words have no topics are left out.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        method : {"completion", "left-to-right"}
            Every other token of a document is predicted from the rest; or all of them, each from
            those before, by particles (slower).
        particles : int
            left-to-right: how many read each document.

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong, or there is no such method.
        """
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
        if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
            raise ValueError(f"particles is {particles!r}, expected a whole number of at least 1")
        learned, judging = self._fitted(), Judging(method, particles)
        return learned.log_likelihood(self._asked(X, learned), threads_of(self.n_jobs), judging)

    def perplexity(self, X: Any, **how: Any) -> float:  # noqa: N803
        """Return ``exp(-score(X))``: lower is better. Takes what :meth:`score` takes."""
        return math.exp(-self.score(X, **how))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Return names of the topics: ``lda0``, ``lda1``, ..."""
        self._fitted()
        return np.array([f"lda{k}" for k in range(self.topics)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        """Say whether something was learned."""
        return self._learned is not None and self._learned.model.counts.examples > 0

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.string = True
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    # --- what was learned

    def top_words(self, n: int = 10) -> list[list[str]]:
        """Return the words that are most probable in each topic, the most probable first.

        Parameters
        ----------
        n : int
            Words of each topic, as far as it has so many.
        """
        learned = self._fitted()
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n is {n!r}, expected a whole number of at least 1")
        topics = Topics.of(learned.model)
        found = TopWords.of(topics, int(n)).places
        used = np.unique(found[found >= 0])
        words = dict(zip(used.tolist(), words_of(learned.model, topics.keys[used]), strict=True))
        return [[words[place] for place in row if place >= 0] for row in found.tolist()]

    @property
    def components_(self) -> F64:
        """Tokens of each word by topic, plus the prior of a word; float64[topics, words]."""
        learned = self._fitted()
        counts = learned.solver.counts_at(self._word_keys(learned))
        return counts.T.astype(np.float64, order="C") + learned.solver.priors.beta

    @property
    def words_(self) -> np.ndarray[Any, Any]:
        """The words that have topics, in the order in which they were met."""
        learned = self._fitted()
        return np.array(words_of(learned.model, Topics.of(learned.model).keys), dtype=object)

    @property
    def alpha_(self) -> F64:
        """Prior of each topic in a document, float64[topics]."""
        return self._fitted().solver.priors.alpha.copy()

    @property
    def beta_(self) -> float:
        """Prior of a word in a topic."""
        return self._fitted().solver.priors.beta

    @property
    def passes_(self) -> list[dict[str, Any]]:
        """Figures of each pass of the last ``fit``."""
        return self._fitted().passes

    @property
    def documents_(self) -> int:
        """Documents learned, each once."""
        return 0 if self._learned is None else self._learned.solver.documents

    def progressive(self) -> dict[str, float]:
        """Return the validation of the last pass.

        Returns
        -------
        dict
            ``log_likelihood_per_token``, ``perplexity`` and more, over all documents and
            (``_window``) the last ones. Of ``partial_fit`` each was judged before it was learned.
        """
        return self._ready().model.validation.summary()

    # --- as the command line has it

    def save(self, path: str | Path) -> None:
        """Write a snapshot, as ``streamlearn train --out PATH`` does.

        Raises
        ------
        SnapshotError
            It cannot be written.
        """
        words = None if self._words is None else list(self._words)
        state = self._columns_state() | {"words": words}
        self._ready().save(Path(path), state, time.time())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open the newest snapshot of a directory, written from Python or by the command line.

        Raises
        ------
        ConfigError
            There is no model, or one of another kind, which another class opens.
        SnapshotError
            No snapshot is whole, or it is of another format version.
        """
        learned, state = LearnedTopics.load(Path(path))
        self = cls._opened(learned, state)
        if state["words"] is not None:
            self._words = tuple(state["words"])
        return self

    # --- state

    def _new(self) -> LearnedTopics:
        return LearnedTopics(Model.new(self._job(), ()))

    def _vocabulary(self) -> Sequence[str] | None:
        """Return the words that ``vocabulary`` says.

        Raises
        ------
        ValueError
            There are none, or one twice.
        ConfigError
            It names a file that cannot be read.
        """
        if self.vocabulary is None:
            return None
        words = self.vocabulary
        words = read_words("vocabulary", words) if isinstance(words, str) else list(words)
        if not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError("vocabulary: expected words, none of them empty")
        if len(set(words)) < len(words):
            twice = next(word for i, word in enumerate(words) if word in words[:i])
            raise ValueError(f"vocabulary has {twice!r} twice")
        return words

    def _begin(self, x: Any, corpus: Corpus, given: Sequence[str] | None) -> None:
        """Take note of what a matrix that is learned looks like."""
        if not isinstance(corpus, Counts):
            return
        names = column_words(x)
        self._set_columns(corpus.shape[1], names)
        words = given if names is None else names
        self._words = None if words is None else tuple(words)

    def _asked(self, x: Any, learned: LearnedTopics) -> Corpus:
        """Read documents, of which matrices have to be like the one that was learned."""
        corpus = read_corpus(x, learned.tokeniser, None)
        if isinstance(corpus, Counts):
            self._check_columns(x, corpus)
            known = hasattr(self, "n_features_in_")
            corpus.name(self._words if known else column_words(x) or self._vocabulary())
        return corpus

    def _check_columns(self, x: Any, corpus: Counts) -> None:
        """Refuse a matrix that is none of the same words as the one that was learned."""
        names = column_words(x)
        self._check_names(names)
        if hasattr(self, "n_features_in_"):
            self._check_count(corpus.shape[1])
        elif names is None and self.vocabulary is None and not self._numbered():
            raise ValueError(
                "X is a matrix, but texts or words were learned: say what its columns stand for, "
                "by a frame with names or by vocabulary"
            )

    def _numbered(self) -> bool:
        """Whether the words of the model are numbers of columns."""
        assert self._learned is not None
        source = self._learned.model.job.source
        return source.format in ("ldac", "bow") and not source.vocabulary

    def _word_keys(self, learned: LearnedTopics) -> U64:
        """Return the keys of the words that the columns of ``components_`` are of."""
        count = self.__dict__.get("n_features_in_")
        if count is not None:
            return column_keys(self._words, count)
        return Topics.of(learned.model).keys
