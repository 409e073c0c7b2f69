"""What all estimators do: learn, predict, save and load, as scikit-learn and as river call it.

No event loop and no threads: every method is a call that returns when it is done, and one estimator
belongs to one thread while it learns. A subclass is a constructor, and what its kind of model has
beyond a score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np

from streamlearn.inspection import strongest
from streamlearn.kept_estimator import KeptEstimator
from streamlearn.learned import Learned
from streamlearn.messages import F64, U64
from streamlearn.model import Model
from streamlearn.online.labels import Classes, read_labels, read_weights
from streamlearn.online.mappings import Fields
from streamlearn.online.matrices import Columns, Matrix, column_names, read_matrix

try:
    from sklearn.base import ClassifierMixin
except ImportError:
    from streamlearn.parameters import ClassifierMixin

__all__ = ["StreamingClassifier"]


class StreamingClassifier(ClassifierMixin, KeptEstimator[Learned]):  # type: ignore[misc]
    """A classifier of two classes that learns one example after the other.

    A subclass has the settings of its kind of model (:data:`streamlearn.learned.SETTINGS`) as
    keyword arguments of its constructor, which keeps each under its name and does nothing else.

    Attributes
    ----------
    classes_ : array of two
        The labels; the second one is what probabilities are of.
    n_features_in_, feature_names_in_ : int, array of str
        Columns of the first matrix, and their names if it was a frame with names.
    """

    epochs: int

    # What river asks of a model.
    _supervised = True
    _multiclass = False

    # Set where something is learned; a class has them so that asking is simple.
    _known: Classes | None = None
    _columns: Columns
    _sparse = False

    # --- as scikit-learn has it

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn a matrix from scratch, ``epochs`` times in the order given.

        Parameters
        ----------
        X : array [n, d], sparse matrix [n, d] or frame
            Finite numbers; a frame with names may have categories (strings), too.
        y : array of n labels
            Any two different ones.
        sample_weight : array of n, optional
            Weights of the examples, >= 0.

        Raises
        ------
        ValueError, TypeError
            Data or settings are wrong: the message says which.
        TableFullError
            There are more than ``features_max`` features.
        """
        fields = Fields()
        matrix = read_matrix(X, fields)
        labels = read_labels(y, matrix.shape[0])
        weights = read_weights(sample_weight, matrix.shape[0])
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        classes = Classes.of(labels)
        learned = self._new()
        self._forget("_known", "_columns", "classes_")
        self._adopt(learned)
        learned.fields = fields
        self._begin(X, matrix)
        self._set_classes(classes)
        numbers = classes.numbers(labels)
        solver = learned.model.solver
        try:
            for epoch in range(self.epochs):
                solver.counting = epoch == 0
                learned.learn(matrix, self._columns, numbers, weights)
        finally:
            solver.counting = True
        return self

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> Self:
        """Learn a matrix, going on from where the model is.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array of two, optional
            Both labels; needed in the first call where ``y`` has only one of them.

        Raises
        ------
        ValueError, TypeError, TableFullError
            As in :meth:`fit`.
        """
        learned = self._ready()
        if learned.schema is not None:
            self.learn_many(X, y, sample_weight)
            return self
        matrix = read_matrix(X, learned.fields)
        labels = read_labels(y, matrix.shape[0])
        weights = read_weights(sample_weight, matrix.shape[0])
        known = self._known
        if classes is not None:
            given = Classes.of(classes, given=True)
            if known is not None and not np.array_equal(known.values, given.values):
                raise ValueError(
                    f"classes {given.plain} are not the ones of the calls before: {known.plain}"
                )
            known = known or given
        known = known or Classes.of(labels)
        numbers = known.numbers(labels)
        if hasattr(self, "n_features_in_"):
            self._check_columns(X, matrix)
        else:
            self._begin(X, matrix)
        self._set_classes(known)
        learned.learn(matrix, self._columns, numbers, weights)
        return self

    def decision_function(self, X: Any) -> F64:  # noqa: N803
        """Return the scores (logits) of the second class, float64[n].

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong.
        """
        learned = self._fitted()
        if learned.schema is not None:
            return learned.score_records(X)
        matrix = read_matrix(X, learned.asked)
        if hasattr(self, "n_features_in_"):
            self._check_columns(X, matrix)
            return learned.score(matrix, self._columns)
        return learned.score(matrix, Columns(matrix.shape[1], column_names(X)))

    def predict_proba(self, X: Any) -> F64:  # noqa: N803
        """Return the probabilities of both classes, float64[n, 2]."""
        return _probabilities(self.decision_function(X))

    def predict_log_proba(self, X: Any) -> F64:  # noqa: N803
        """Return the logarithms of the probabilities of both classes, float64[n, 2]."""
        scores = self.decision_function(X)
        return -np.logaddexp(0, np.stack([scores, -scores], axis=1))

    def predict(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """Return the more probable class of each example."""
        scores = self.decision_function(X)
        classes: np.ndarray[Any, Any] = self.classes_[(scores > 0).astype(np.intp)]
        return classes

    @property
    def coef_(self) -> Any:
        """Weights of the columns, float64[1, n_features_in_]; sparse after :meth:`sparsify`."""
        keys = self._column_keys("coef_", "weights() has all")
        weights = self._ready().model.weights_at(keys).astype(np.float64)[np.newaxis]
        if self._sparse:
            return import_module("scipy.sparse").csr_matrix(weights)
        return weights

    @property
    def intercept_(self) -> F64:
        """The intercept, float64[1]."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__} has no intercept_: it has learned nothing")
        return np.array([self._ready().model.solver.intercept])

    def sparsify(self) -> Self:
        """Have ``coef_`` be a scipy CSR matrix (the table is sparse anyway)."""
        self._sparse = True
        return self

    def densify(self) -> Self:
        """Have ``coef_`` be an array again."""
        self._sparse = False
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Say whether matrices may be predicted."""
        return "classes_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = True
        return tags

    # --- as river has it

    def learn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Learn one example.

        Parameters
        ----------
        x : mapping of field to value
            Strings are categories, numbers raw values, ``None`` and NaN missing; a list is several
            values of its field, a mapping within is fields with dots. Their order is of no matter.
        y : label
            ``True`` or ``False`` (or 1 and 0), or one of those that ``partial_fit`` was given.
        w : float
            Weight, >= 0.
        """
        learned = self._ready()
        label = self._river_classes().number(y)
        if not 0 <= w < float("inf"):
            raise ValueError(f"weight {w!r} is not a finite number of at least 0")
        learned.learn_one(x, label, w)

    def predict_proba_one(self, x: Mapping[Any, Any]) -> dict[Any, float]:
        """Return the probability of each class, also before anything was learned."""
        score = self._ready().score_one(x)
        positive = _sigmoid(score)
        negative, second = self._plain_classes()
        return {negative: 1.0 - positive, second: positive}

    def predict_one(self, x: Mapping[Any, Any]) -> Any:
        """Return the more probable class, also before anything was learned."""
        return self._plain_classes()[self._ready().score_one(x) > 0]

    def learn_many(self, X: Any, y: Any, w: Any = None) -> None:  # noqa: N803
        """Learn the rows of a frame, one after the other, as ``learn_one`` would.

        Parameters
        ----------
        X : frame
            Its columns are fields; they may be others than before. NaN is missing.
        y : array of labels
        w : array of weights, optional
        """
        learned = self._ready()
        rows = len(X)
        numbers = self._river_classes().numbers(read_labels(y, rows))
        weights = read_weights(w, rows)
        if learned.schema is not None:
            learned.learn_records(X, numbers, weights)
            return
        matrix = read_matrix(X, learned.fields, missing=True)
        learned.learn(matrix, Columns(matrix.shape[1], column_names(X)), numbers, weights)

    def predict_proba_many(self, X: Any) -> Any:  # noqa: N803
        """Return the probabilities of a frame's rows as a frame, a column for each class."""
        pandas = import_module("pandas")
        return pandas.DataFrame(
            _probabilities(self._scores_many(X)), index=X.index, columns=self._plain_classes()
        )

    def predict_many(self, X: Any) -> Any:  # noqa: N803
        """Return the more probable class of a frame's rows as a series."""
        pandas = import_module("pandas")
        classes = np.array(self._plain_classes())
        picked = (self._scores_many(X) > 0).astype(np.intp)
        return pandas.Series(classes[picked], index=X.index)

    def clone(self, new_params: Mapping[str, Any] | None = None, **_rest: Any) -> Self:
        """Return a model with the same settings that has learned nothing."""
        return type(self)(**{**self.get_params(), **(new_params or {})})

    # --- as the command line has it

    @property
    def examples_(self) -> int:
        """Examples learned."""
        return 0 if self._learned is None else self._learned.model.counts.examples

    def progressive(self) -> dict[str, float]:
        """Return the progressive validation: every example was scored before it taught.

        Returns
        -------
        dict
            ``logloss``, ``baseline_loss``, ``auc``, ``calibration``, ``normalized_entropy`` and
            more, over all examples and (``_window``) the last hundred thousand.
        """
        return self._ready().model.validation.summary()

    def weights(self, top: int = 20) -> list[dict[str, Any]]:
        """Return the features of largest absolute weight, largest first.

        Returns
        -------
        list of dict
            ``feature`` (``field=token``, ``field=`` for a number, the number of a column, or
            ``#key`` where the name is not known), ``weight`` and ``count``, of examples with it.
        """
        return strongest(self._named().model, top)

    def save(self, path: str | Path) -> None:
        """Write a snapshot, as ``streamlearn train --out PATH`` does.

        Raises
        ------
        SnapshotError
            It cannot be written.
        """
        classes = None if self._known is None else self._known.plain
        state = {"classes": classes} | self._columns_state()
        self._named().save(Path(path), state, time.time())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open the newest snapshot of a directory, written from Python or by the command line.

        A model of the command line reads mappings and frames by its source's schema (a time gives
        its hour, crosses are made); one that was learned from svmlight takes matrices. Its classes
        are 0 and 1.

        Raises
        ------
        ConfigError
            There is no model, or one of another kind, which another class opens.
        SnapshotError
            No snapshot is whole, or it is of another format version.
        """
        learned, state = Learned.load(Path(path), cls._kind)
        self = cls._opened(learned, state)
        if state["classes"] is not None:
            self._set_classes(Classes(np.array(state["classes"])))
        return self

    # --- state

    def _new(self) -> Learned:
        return Learned(Model.new(self._job(), ()))

    def _named(self) -> Learned:
        """Return what was learned, having given all features that can have a name theirs."""
        learned = self._ready()
        learned.name(self.__dict__.get("_columns"))
        return learned

    def _set_classes(self, classes: Classes) -> None:
        self._known = classes
        self.classes_ = classes.values

    def _river_classes(self) -> Classes:
        """Return the classes: False and True if nothing else was said."""
        known = self._known
        if known is None:
            known = Classes(np.array([False, True]))
            self._set_classes(known)
        return known

    def _plain_classes(self) -> list[Any]:
        known = self._known
        return [False, True] if known is None else known.plain

    def _begin(self, x: Any, matrix: Matrix) -> None:
        """Take a first matrix's columns for the model's."""
        self._set_columns(matrix.shape[1], column_names(x))

    def _set_columns(self, count: int, names: Sequence[str] | None) -> None:
        super()._set_columns(count, names)
        self._columns = Columns(count, None if names is None else tuple(names))

    def _check_columns(self, x: Any, matrix: Matrix) -> None:
        """Refuse a matrix with other columns than the first one's."""
        self._check_frame(column_names(x))
        self._check_count(matrix.shape[1])

    def _column_keys(self, asked: str, instead: str) -> U64:
        """Return the keys of a matrix's columns, for an attribute that has a row for each."""
        own = f"{type(self).__name__} has no {asked}"
        if not hasattr(self, "n_features_in_"):
            raise AttributeError(f"{own}: it has seen no matrix; {instead}")
        kinds = self._ready().fields.kinds
        tokens = [name for name in self._columns.names or () if kinds.get(name) == "categorical"]
        if tokens:
            raise AttributeError(
                f"{own}: columns {tokens[:5]} are categories, a feature for each; {instead}"
            )
        return self._columns.keys

    def _scores_many(self, x: Any) -> F64:
        learned = self._ready()
        if learned.schema is not None:
            return learned.score_records(x)
        matrix = read_matrix(x, learned.asked, missing=True)
        return learned.score(matrix, Columns(matrix.shape[1], column_names(x)))


def _sigmoid(score: float) -> float:
    return float(1 / (1 + np.exp(-min(max(score, -700.0), 700.0))))


def _probabilities(scores: F64) -> F64:
    positive = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
    return np.stack([1 - positive, positive], axis=1)


try:
    from river.base import MiniBatchClassifier
except ImportError:
    pass
else:
    # River asks of what class a model is; ours has the methods, so it may say yes.
    MiniBatchClassifier.register(StreamingClassifier)
