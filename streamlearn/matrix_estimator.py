"""Matrix factorization of ratings in memory, as scikit-learn, river and recommenders call it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np

from streamlearn.kept_estimator import KeptEstimator, threads_of
from streamlearn.learned_ratings import LearnedRatings
from streamlearn.messages import F32, F64
from streamlearn.model import Model
from streamlearn.online.ids import KINDS, Pairs, read_column, read_pairs, read_rating, read_ratings
from streamlearn.online.labels import read_weights

try:
    from sklearn.base import RegressorMixin
except ImportError:
    from streamlearn.parameters import RegressorMixin

__all__ = ["MatrixFactorization"]

_NOTHING: Final = object()


class MatrixFactorization(RegressorMixin, KeptEstimator[LearnedRatings]):  # type: ignore[misc]
    """Biased matrix factorization: who will like what, learned from ratings of items by users.

    Parameters
    ----------
    dim : int, default 32
        Factors of a user, and of an item, 1 to 4096.
    loss : {"squared", "logistic"}, default "squared"
        squared: of ratings; logistic: of feedback that is 0 or 1.
    negatives : int, default 0
        logistic: items drawn by chance for each record whose rating is 1, taken for 0.
    alpha : float, default 0.05
        Step scale (learning rate), > 0.
    decay : float, default 0.7
        The step of pass t is ``alpha / t ** decay``; 0: constant.
    l2 : float, default 0.05
        L2 penalty of biases and factors, >= 0.
    init_scale : float, default 0.0
        Standard deviation of new factors; 0: ``0.12 / sqrt(dim)``.
    intercept : bool, default True
        Learn the mean.
    epochs : int, default 20
        Passes over the data in ``fit``.
    held_out : float, default 0.0
        Share of the ratings that are scored after each pass of ``fit``, and never learned.
    patience : int, default 0
        End ``fit`` after so many passes in a row in which held-out ratings were predicted no
        better, and keep the best; 0: do not.
    features_max : int, default 0
        Users and items at most; 0: as many as fit this machine's memory.
    embeddings_bytes_max : int, default 0
        Memory of factors at most; beyond it new users and items have biases alone. 0: what
        ``features_max`` leaves of four fifths of this machine's memory.
    ratings_bytes_max : int, default 0
        Memory of the ratings that ``fit`` keeps for its further passes, 8 bytes each; beyond it
        they are kept in a temporary file. 0: a quarter of this machine's memory.
    when_full : {"error", "evict"}, default "error"
        What a full table does: stop, or forget the users and items least seen.
    names_max : int, default 1_000_000
        Ids of users and items kept.
    n_jobs : int, optional
        Threads of the further passes of ``fit``; None: one, -1: one for each core. What is learned
        depends on their number, not on their speed.
    remember_seen : bool, default True
        Remember who has rated what, 4 bytes a rating, for ``recommend`` to leave it out.

    Attributes
    ----------
    n_features_in_, feature_names_in_ : int, array of str
        Columns of X: 2, and their names if it was a frame with names.
    users_, items_ : array
        Ids, in the order in which they were met.
    user_biases_, item_biases_ : float32[n]
    user_factors_, item_factors_ : float32[n, dim]
    intercept_ : float
        The mean rating; of logistic loss, its logit.
    passes_ : list of dict
        Of the last ``fit``: step and figures of each pass, and those of held-out ratings.
    examples_ : int
        Ratings learned, those of each pass counted.

    Notes
    -----
    A rating is predicted as ``<p_user, q_item> + b_user + b_item + mean`` (of logistic loss: the
    sigmoid of that), and taught by gradient descent: Koren, Bell and Volinsky, "Matrix
    Factorization Techniques for Recommender Systems", 2009. Further passes of ``fit`` go over tiles
    of ratings: Liu, Wang and Smola, "Fast Differentially Private Matrix Factorization", RecSys
    2015.

    ``partial_fit`` and ``learn_one`` learn one rating after the other in the order given, in one
    pass with the step ``alpha``, and go on from where the model is; new users and items may come at
    any time. ``fit`` begins anew. Ids are strings or whole numbers (anything else goes by its
    ``str``); 7, 7.0 and "7" are the same. A user or an item that is not known is predicted by the
    bias of the other, or by the mean.

    A rating of weight w moves the factors once, by w times the gradient. Weight 0 teaches nothing.

    Examples
    --------
    >>> from streamlearn import MatrixFactorization
    >>> ratings = [("ann", "tea", 5), ("ann", "pie", 2), ("bob", "tea", 1), ("bob", "pie", 5)]
    >>> model = MatrixFactorization(dim=4, epochs=200, l2=0.01, init_scale=0.5)
    >>> model = model.fit([row[:2] for row in ratings], [row[2] for row in ratings])
    >>> bool(model.predict_one("ann", "tea") > 4 > 3 > model.predict_one("bob", "tea"))
    True
    >>> model.recommend(["ann", "bob"], n=1, filter_seen=False)[0].tolist()
    [['tea'], ['pie']]
    """

    _kind: ClassVar = "mf"
    # What the table's numbers mean, and which ratings are held out.
    _binding: ClassVar = (
        *("dim", "loss", "init_scale", "intercept", "held_out", "features_max"),
        *("embeddings_bytes_max", "when_full", "names_max"),
    )

    # What river asks of a model.
    _supervised = True
    _multiclass = False
    is_contextual = False

    def __init__(
        self,
        *,
        dim: int = 32,
        loss: str = "squared",
        negatives: int = 0,
        alpha: float = 0.05,
        decay: float = 0.7,
        l2: float = 0.05,
        init_scale: float = 0.0,
        intercept: bool = True,
        epochs: int = 20,
        held_out: float = 0.0,
        patience: int = 0,
        features_max: int = 0,
        embeddings_bytes_max: int = 0,
        ratings_bytes_max: int = 0,
        when_full: str = "error",
        names_max: int = 1_000_000,
        n_jobs: int | None = None,
        remember_seen: bool = True,
    ) -> None:
        self.dim = dim
        self.loss = loss
        self.negatives = negatives
        self.alpha = alpha
        self.decay = decay
        self.l2 = l2
        self.init_scale = init_scale
        self.intercept = intercept
        self.epochs = epochs
        self.held_out = held_out
        self.patience = patience
        self.features_max = features_max
        self.embeddings_bytes_max = embeddings_bytes_max
        self.ratings_bytes_max = ratings_bytes_max
        self.when_full = when_full
        self.names_max = names_max
        self.n_jobs = n_jobs
        self.remember_seen = remember_seen

    # --- as scikit-learn has it

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn ratings from scratch, in ``epochs`` passes.

        Parameters
        ----------
        X : array [n, 2], list of n pairs or frame of two columns
            User and item of each rating.
        y : array of n
            Ratings: finite numbers, or 0 and 1 where the loss is logistic. Of the same user and
            item the last one counts in the passes after the first.
        sample_weight : array of n, optional
            Weights, >= 0.

        Raises
        ------
        ValueError, TypeError
            Data or settings are wrong: the message says which.
        TableFullError
            There are more than ``features_max`` users and items.
        """
        pairs, ratings, weights = self._read(X, y, sample_weight)
        if not len(ratings):
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        learned, lanes = self._new(), threads_of(self.n_jobs)
        self._forget()
        self._set_columns(len(KINDS), pairs.names)
        self._adopt(learned).fit(pairs, ratings, weights, lanes)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn ratings in one pass, going on from where the model is.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Raises
        ------
        ValueError, TypeError, TableFullError
            As in :meth:`fit`.
        """
        pairs, ratings, weights = self._read(X, y, sample_weight)
        learned = self._ready()
        if hasattr(self, "n_features_in_"):
            self._check_names(pairs.names)
        else:
            self._set_columns(len(KINDS), pairs.names)
        learned.learn(pairs, ratings, weights)
        return self

    def predict(self, X: Any) -> F64:  # noqa: N803
        """Return the predicted ratings (of logistic loss: probabilities), float64[n].

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong.
        """
        learned = self._fitted()
        pairs = read_pairs(X)
        if hasattr(self, "n_features_in_"):
            self._check_names(pairs.names)
        return learned.predict(pairs.keys)

    def __sklearn_is_fitted__(self) -> bool:
        """Say whether something was learned."""
        return self._learned is not None and self._learned.table.features > 0

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.target_tags.required = True
        return tags

    # --- as river has it

    def learn_one(
        self, user: Any, item: Any = _NOTHING, y: Any = _NOTHING, x: Any = None, w: float = 1.0
    ) -> None:
        """Learn one rating: ``learn_one(user, item, y)``, or of a mapping, ``learn_one(x, y)``.

        Parameters
        ----------
        user, item : str or int
            Or, in the place of ``user``, a mapping that has both; then ``y`` comes next.
        y : float
            The rating.
        x : mapping, optional
            Not looked at; contextual recommenders of river have it.
        w : float
            Weight, >= 0.

        Raises
        ------
        ValueError, TypeError, TableFullError
            As in :meth:`fit`.
        """
        if isinstance(user, Mapping) and y is _NOTHING:
            y, item = item, _NOTHING
        if y is _NOTHING:
            raise TypeError("learn_one() needs y, the rating")
        user, item = _pair(user, item)
        learned = self._ready()
        rating = read_rating(y, binary=self.loss == "logistic")
        if not 0 <= w < float("inf"):
            raise ValueError(f"weight {w!r} is not a finite number of at least 0")
        if w:
            learned.learn_one(user, item, rating, w)

    def predict_one(self, user: Any, item: Any = _NOTHING, x: Any = None) -> float:
        """Return the prediction for one user and item, given as in :meth:`learn_one`.

        Also before anything was learned.
        """
        return self._ready().predict_one(*_pair(user, item))

    def rank(self, user: Any, items: Iterable[Any], x: Any = None) -> list[Any]:
        """Return items in the order in which a user is predicted to like them, the best first."""
        ids = list(items)
        if not ids:
            return []
        predictions = self._ready().predict(read_pairs([(user, item) for item in ids]).keys)
        return [ids[at] for at in np.argsort(-predictions, kind="stable").tolist()]

    def clone(self, new_params: Mapping[str, Any] | None = None, **_rest: Any) -> Self:
        """Return a model with the same settings that has learned nothing."""
        return type(self)(**{**self.get_params(), **(new_params or {})})

    # --- as recommenders have it

    def recommend(
        self, users: Any, n: int = 10, filter_seen: bool = True
    ) -> tuple[np.ndarray[Any, Any], F64]:
        """Return the items that users are predicted to like best.

        Parameters
        ----------
        users : id, or array of ids
            A user that is not known is given the items of highest bias.
        n : int
            Items for each, as far as there are.
        filter_seen : bool
            Leave out what a user has rated, as far as it is remembered (``remember_seen``).

        Returns
        -------
        ids : array [users, min(n, items)], or [min(n, items)] of one user
            The best first, of equals the one that was met first. Where a user has seen so many
            items that fewer are left, None stands for those missing, and the array is of objects.
        scores : float64 array of the same shape
            Predictions; NaN where there is no item.

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError
            The ids of items were not kept, as there are more than ``names_max``.
        """
        learned = self._fitted()
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n is {n!r}, expected a whole number of at least 1")
        one = isinstance(users, str | bytes) or not hasattr(users, "__len__")
        column = read_column("user", [users] if one else users)
        rows, scores = learned.recommend(column, int(n), unseen=filter_seen)
        width = scores.shape[1]
        flat = [item for row in rows for item in [*row, *[None] * (width - len(row))]]
        ids = learned.ids["item"].array(flat).reshape(scores.shape)
        return (ids[0], scores[0]) if one else (ids, scores)

    # --- what was learned

    @property
    def users_(self) -> np.ndarray[Any, Any]:
        """Ids of users, in the order in which they were met."""
        return self._ids("user")

    @property
    def items_(self) -> np.ndarray[Any, Any]:
        """Ids of items, in the order in which they were met."""
        return self._ids("item")

    @property
    def user_biases_(self) -> F32:
        """Biases of ``users_``, float32[n]."""
        learned = self._fitted()
        return learned.model.weights_at(learned.keys_of("user"))

    @property
    def item_biases_(self) -> F32:
        """Biases of ``items_``, float32[n]."""
        learned = self._fitted()
        return learned.model.weights_at(learned.keys_of("item"))

    @property
    def user_factors_(self) -> F32:
        """Factors of ``users_``, float32[n, dim]."""
        learned = self._fitted()
        return learned.model.embeddings_at(learned.keys_of("user"))

    @property
    def item_factors_(self) -> F32:
        """Factors of ``items_``, float32[n, dim]."""
        learned = self._fitted()
        return learned.model.embeddings_at(learned.keys_of("item"))

    @property
    def intercept_(self) -> float:
        """The mean rating; of logistic loss, its logit."""
        return self._fitted().solver.intercept

    @property
    def passes_(self) -> list[dict[str, Any]]:
        """Step and figures of each pass of the last ``fit``."""
        return self._fitted().passes

    @property
    def examples_(self) -> int:
        """Ratings learned, those of each pass counted."""
        return 0 if self._learned is None else self._learned.model.counts.examples

    def progressive(self) -> dict[str, float]:
        """Return the validation of the last pass: every rating was scored before it taught.

        Returns
        -------
        dict
            ``rmse``, ``mae`` and more (of logistic loss ``logloss``, ``auc``, ...), over all
            ratings and (``_window``) the last hundred thousand.
        """
        return self._ready().model.validation.summary()

    # --- as the command line has it

    def save(self, path: str | Path) -> None:
        """Write a snapshot, as ``streamlearn train --out PATH`` does, and who has rated what.

        Raises
        ------
        SnapshotError
            It cannot be written.
        """
        state = self._columns_state() | {"remember_seen": self.remember_seen}
        self._ready().save(Path(path), state, time.time())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open the newest snapshot of a directory, written from Python or by the command line.

        Of a model of the command line all ids are strings, and nothing is known of who has rated
        what.

        Raises
        ------
        ConfigError
            There is no model, or one of another kind, which another class opens.
        SnapshotError
            No snapshot is whole, or it is of another format version.
        """
        learned, state = LearnedRatings.load(Path(path))
        remember = bool(state.get("remember_seen", True))
        return cls._opened(learned, state, remember_seen=remember)

    # --- state

    def _new(self) -> LearnedRatings:
        return LearnedRatings(Model.new(self._job(), KINDS))

    def _ready(self) -> LearnedRatings:
        learned = super()._ready()
        learned.remembers = bool(self.remember_seen)
        return learned

    def _adopt(self, learned: LearnedRatings) -> LearnedRatings:
        learned.remembers = bool(self.remember_seen)
        return super()._adopt(learned)

    def _read(self, x: Any, y: Any, sample_weight: Any) -> tuple[Pairs, F32, F32]:
        pairs = read_pairs(x)
        rows = len(pairs.users.keys)
        ratings = read_ratings(y, rows, binary=self.loss == "logistic")
        return pairs, ratings, read_weights(sample_weight, rows)

    def _ids(self, kind: str) -> np.ndarray[Any, Any]:
        learned = self._fitted()
        return learned.ids[kind].array(learned.give_back(kind, learned.keys_of(kind)))


def _pair(user: Any, item: Any) -> tuple[Any, Any]:
    """Return user and item, which may stand in a mapping."""
    if isinstance(user, Mapping):
        if item is not _NOTHING:
            raise TypeError("expected a mapping with user and item, or both by themselves")
        try:
            return user["user"], user["item"]
        except KeyError as error:
            raise ValueError(f"x has no {error}, expected user and item") from None
    if item is _NOTHING:
        raise TypeError("expected a user and an item, or a mapping with both")
    return user, item


try:
    from river.base import Regressor
    from river.reco.base import Ranker
except ImportError:
    pass
else:
    # River asks of what class a model is; ours has the methods, so it may say yes.
    Regressor.register(MatrixFactorization)
    Ranker.register(MatrixFactorization)
