"""Nets in memory: a classifier and a regressor, as scikit-learn and as river call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Self

import msgspec
import numpy as np

from streamlearn.config import SourceConfig, classes_of
from streamlearn.learned_net import LearnedNet
from streamlearn.messages import F32, F64
from streamlearn.online.class_validation import probabilities
from streamlearn.online.labels import SeveralClasses, read_labels, read_numbers, read_weights
from streamlearn.online.net_inputs import Inputs, Rows
from streamlearn.streaming_net import StreamingNet, weight_of

try:
    from sklearn.base import ClassifierMixin, RegressorMixin
except ImportError:
    from streamlearn.parameters import ClassifierMixin, RegressorMixin

__all__ = ["DeepClassifier", "DeepRegressor"]


class DeepClassifier(ClassifierMixin, StreamingNet):  # type: ignore[misc]
    """A net that tells classes apart, two or more, its embeddings in a table; wants torch.

    Parameters
    ----------
    net : str or callable, default "mlp"
        mlp, wide_deep, deepfm, dlrm, convnet, or ``package.module:factory`` of your own, or that
        factory. wide_deep and deepfm want fields of categories, and two classes or numbers;
        convnet wants images.
    settings : dict, optional
        The net's own: ``hidden``, ``dropout``, ``bottom``, ``top``, ``width``, or those of your
        factory.
    dim : int, default 16
        Numbers in an embedding.
    pooling : {"sum", "mean"}, default "sum"
        What becomes of several features of one field.
    threshold : int, default 0
        Count above which a feature earns its embedding.
    optimizer : {"adam", "adamw", "sgd", "adagrad"}, default "adam"
        Of the dense part.
    lr : float, default 0.001
        Learning rate of the dense part.
    momentum : float, default 0.9
        sgd: momentum.
    weight_decay : float, default 0.0
        Of the dense part, as the optimizer has it.
    epochs : int, default 20
        Passes over the data in ``fit``.
    minibatch : int, default 128
        Examples of a step.
    shuffle : bool, default True
        Give each pass of ``fit`` an order of its own.
    device : str, default "auto"
        ``cpu``, ``cuda``, ``cuda:1``, or several with commas; auto: ``cuda`` where there is one.
    precision : {"float32", "bf16"}, default "float32"
        Numbers that the net computes with.
    compile : bool, default False
        Compile the net (``torch.compile``).
    delay : int, default 0
        1: a step begins before the one before has ended, and misses what that teaches.
    standardize : bool, default True
        Take the dense part to mean 0 and variance 1, by what was learned so far.
    v_rule : {"adagrad", "rowwise"}, default "adagrad"
        Update rule of embeddings: a sum of squares for each number, or one for each embedding.
    v_lr : float, default 0.05
        Step scale of embeddings.
    v_lr_beta : float, default 0.1
        Step offset of embeddings.
    v_l2 : float, default 0.0
        L2 penalty of embeddings.
    v_init_scale : float, default 0.05
        A new embedding is drawn from between minus and plus this.
    v_clip : float, default 0.0
        Bound of each number of an embedding's gradient; 0: none.
    alpha, beta : float, default 0.05 and 0.0001
        Step scale and offset of wide weights.
    l1, l2 : float, default 0.0
        Penalties of wide weights.
    skipped_max : float, default 0.01
        Share of steps that may be skipped, their loss being no number.
    seed : int, default 0
        Of first weights, dropout and orders.
    columns : mapping of str to str, optional
        Kinds of the fields of frames and mappings, as ``source.columns`` has them: ``categorical``,
        ``number:raw`` (the dense part), ``number`` (embedded buckets), ``time``, ``ignore``. By
        default as the first data show: texts are categorical, numbers raw.
    features_max : int, default 0
        Features at most; 0: as many as fit this machine's memory.
    embeddings_bytes_max : int, default 0
        Memory of embeddings at most; beyond it no feature earns one. 0: what ``features_max``
        leaves.
    when_full : {"error", "evict"}, default "error"
        What a full table does: stop, or forget the features least seen.
    names_max : int, default 1_000_000
        Names of features kept.

    Attributes
    ----------
    classes_ : array
        The labels, sorted; of two, the second one is what scores are of.
    n_features_in_, feature_names_in_ : int, array of str
        Columns of the first matrix, and their names if it was a frame with names.
    loss_curve_ : list of float
        Mean loss of each pass of the last ``fit``.
    net_ : torch.nn.Module
    examples_ : int
        Examples learned, those of each pass counted.

    Notes
    -----
    What X may be, and what the net is given of it:

    ===================================  =====================================================
    array [n, d]                         d numbers, NaN is a missing one
    array [n, c, h, w] or [n, h, w]      images; bytes are taken to [0, 1]
    frame, list of mappings              numbers, and a field for each column of texts, which is
                                         embedded; a list in a mapping is several of its field
    sparse matrix                        one field, whose features are its columns
    ===================================  =====================================================

    ``fit`` begins anew, and gives each pass an order of its own, a function of ``seed``
    (``shuffle=False``: the order given). ``partial_fit``, ``learn_many`` and ``learn_one`` go on
    from where the model is, in the order given, ``minibatch`` examples a step; so, unlike with
    :class:`LogisticRegression`, it matters how data are cut. ``learn_one`` makes a step of one
    example, which is slow (some milliseconds): better gather some for ``learn_many``.

    Fields are those of the first data (or ``columns``); those that come later are left out, with a
    warning. An example of weight w counts w times in its step's mean; weight 0 teaches nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from streamlearn import DeepClassifier
    >>> X = np.random.default_rng(0).normal(size=(2000, 2))
    >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
    >>> model = DeepClassifier(settings={"hidden": [32, 16]}, lr=0.01).fit(X, y)
    >>> model.predict([[1.5, 1.0], [1.5, -1.0]]).tolist()
    ['same', 'other']
    """

    # of classes that it meets as they come, it learns two
    _multiclass = False

    _known: SeveralClasses | None = None

    # --- as scikit-learn has it

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from scratch, ``epochs`` times, each time in another order.

        Parameters
        ----------
        X : array, sparse matrix, frame or list of n mappings
            See the class.
        y : array of n labels
            Two different ones or more.
        sample_weight : array of n, optional
            Weights of the examples, >= 0.

        Raises
        ------
        ValueError, TypeError
            Data or settings are wrong: the message says which.
        ImportError
            torch is not there.
        TableFullError
            There are more than ``features_max`` features.
        DivergedError
            Too many steps had a loss that is no number.
        """
        source, inputs, rows = self._read_first(X)
        labels = self._labels(y, rows)
        weights = read_weights(sample_weight, rows.count)
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        classes = SeveralClasses.of(labels)
        learned = self._made(X, source, inputs, classes)
        self._forget("_known", "classes_")
        self._take(X, learned)
        self._set_classes(classes)
        learned.fit(rows, classes.numbers(labels), weights, self.epochs, shuffle=self.shuffle)
        return self

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> Self:
        """Learn in one pass in the order given, going on from where the model is.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array, optional
            All labels; needed in the first call where ``y`` has only some of them.

        Raises
        ------
        ValueError, TypeError, ImportError, TableFullError, DivergedError
            As in :meth:`fit`.
        """
        given = None if classes is None else SeveralClasses.of(classes, given=True)
        known = self._known
        if known and given and not np.array_equal(known.values, given.values):
            raise ValueError(
                f"classes {given.plain} are not the ones of the calls before: {known.plain}"
            )
        known = known or given
        if self._learned is None:
            source, inputs, rows = self._read_first(X)
            labels, weights = self._labels(y, rows), read_weights(sample_weight, rows.count)
            known = known or SeveralClasses.of(labels)
            numbers = known.numbers(labels)
            learned = self._take(X, self._made(X, source, inputs, known))
            self._set_classes(known)
        else:
            learned = self._ready()
            rows = self._read(X, learned, noting=True)
            labels, weights = self._labels(y, rows), read_weights(sample_weight, rows.count)
            assert known is not None
            numbers = known.numbers(labels)
        learned.learn(rows, numbers, weights)
        return self

    def decision_function(self, X: Any) -> F64:  # noqa: N803
        """Return the scores (logits): of the second class float64[n], or float64[n, classes].

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong.
        """
        scores = self._scores(X).astype(np.float64)
        if scores.ndim == 2 and scores.shape[1] == 2:  # as the command line may have it
            return scores[:, 1] - scores[:, 0]
        return scores

    def predict_proba(self, X: Any) -> F64:  # noqa: N803
        """Return the probability of each class, float64[n, classes]."""
        return _probabilities(self._scores(X))

    def predict_log_proba(self, X: Any) -> F64:  # noqa: N803
        """Return the logarithm of the probability of each class, float64[n, classes]."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return -np.logaddexp(0, np.stack([scores, -scores], axis=1))
        highest = scores.max(axis=1, keepdims=True)
        shifted = scores - highest
        found: F64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return found

    def predict(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """Return the most probable class of each example."""
        scores = self._scores(X)
        classes: np.ndarray[Any, Any] = self.classes_[_best(scores)]
        return classes

    # --- as river has it

    def learn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Learn one example, as a minibatch of its own: slow; see :meth:`learn_many`.

        Parameters
        ----------
        x : mapping of field to value
            Texts are embedded, numbers are numbers, ``None`` and NaN missing; a list is several
            values of its field, a mapping within is fields with dots.
        y : label
            ``True`` or ``False`` (or 1 and 0), or one of those that ``partial_fit`` was given.
        w : float
            Weight, >= 0.
        """
        self._learn([x], self._river_classes().number(y), weight_of(w))

    def learn_many(self, X: Any, y: Any, w: Any = None) -> None:  # noqa: N803
        """Learn the rows of a frame in their order, ``minibatch`` of them a step.

        Parameters
        ----------
        X : frame, or list of mappings
            Its columns are fields; NaN is missing.
        y : array of labels
        w : array of weights, optional
        """
        numbers = self._river_classes().numbers(read_labels(y, len(X)))
        self._learn(X, numbers, read_weights(w, len(X)))

    def predict_proba_one(self, x: Mapping[Any, Any]) -> dict[Any, float]:
        """Return the probability of each class, also before anything was learned."""
        shares = self._shares([x])[0]
        return dict(zip(self._plain_classes(), shares.tolist(), strict=True))

    def predict_one(self, x: Mapping[Any, Any]) -> Any:
        """Return the most probable class, also before anything was learned."""
        return self._plain_classes()[int(self._shares([x])[0].argmax())]

    def predict_proba_many(self, X: Any) -> Any:  # noqa: N803
        """Return the probabilities of a frame's rows as a frame, a column for each class."""
        pandas = import_module("pandas")
        return pandas.DataFrame(self._shares(X), index=X.index, columns=self._plain_classes())

    def predict_many(self, X: Any) -> Any:  # noqa: N803
        """Return the most probable class of a frame's rows as a series."""
        pandas = import_module("pandas")
        picked = self._shares(X).argmax(axis=1)
        return pandas.Series(np.array(self._plain_classes())[picked], index=X.index)

    # --- state

    def _made(
        self, x: Any, source: SourceConfig, inputs: Inputs, classes: SeveralClasses
    ) -> LearnedNet:
        """Return a net for such data and so many classes."""
        count = len(classes.plain)
        if count == 2:
            return self._make(x, source, inputs, loss="logistic")
        if classes.plain != list(range(count)):
            texts = [str(one) for one in classes.plain]
            source = msgspec.structs.replace(source, classes=texts)
        return self._make(x, source, inputs, loss="classes", classes=count)

    def _learn(self, x: Any, numbers: Any, weights: F32) -> None:
        """Learn records as river hands them in."""
        labels = np.atleast_1d(np.asarray(numbers, np.float32))
        if self._learned is None:
            source, inputs, rows = self._read_first(x)
            learned = self._made(x, source, inputs, self._river_classes())
            self._made_with = self.columns
            self._adopt(learned)
        else:
            learned = self._ready()
            rows = learned.inputs.read(x, noting=True)
        learned.learn(rows, labels, weights)

    def _shares(self, x: Any) -> F64:
        """Return the probability of each class, all the same where nothing is learned."""
        scores = self._scores_of(x)
        if scores is None:
            count = len(self._plain_classes())
            return np.full((len(x), count), 1 / count)
        return _probabilities(scores)

    def _labels(self, y: Any, rows: Rows) -> np.ndarray[Any, Any]:
        if y is None:
            raise ValueError(_no_target(self))
        return read_labels(y, rows.count)

    def _set_classes(self, classes: SeveralClasses) -> None:
        self._known = classes
        self.classes_ = classes.values

    def _river_classes(self) -> SeveralClasses:
        """Return the classes: False and True if nothing else was said."""
        if self._known is None:
            self._set_classes(SeveralClasses(np.array([False, True])))
        assert self._known is not None
        return self._known

    def _plain_classes(self) -> Sequence[Any]:
        return [False, True] if self._known is None else self._known.plain

    def _labels_state(self) -> dict[str, Any]:
        return {"classes": self._plain_classes()}

    def _take_labels(self, learned: LearnedNet, state: Mapping[str, Any]) -> None:
        job = learned.model.job
        count = classes_of(job) or 2
        given = state.get("classes") or job.source.classes or list(range(count))
        self._set_classes(SeveralClasses(np.array(given)))


class DeepRegressor(RegressorMixin, StreamingNet):  # type: ignore[misc]
    """A net that predicts numbers by the squared loss, its embeddings in a table; wants torch.

    Parameters are those of :class:`DeepClassifier`, as is what X may be and in which order it is
    learned. Numbers are learned as they are: take them to about mean 0 and deviation 1 first
    (``sklearn.compose.TransformedTargetRegressor``) where they are far from that.

    Attributes
    ----------
    n_features_in_, feature_names_in_ : int, array of str
        Columns of the first matrix, and their names if it was a frame with names.
    loss_curve_ : list of float
        Mean squared error of each pass of the last ``fit``.
    net_ : torch.nn.Module
    examples_ : int
        Examples learned, those of each pass counted.

    Examples
    --------
    >>> import numpy as np
    >>> from streamlearn import DeepRegressor
    >>> X = np.random.default_rng(0).normal(size=(2000, 2))
    >>> model = DeepRegressor(settings={"hidden": [32, 16]}, lr=0.01).fit(X, np.abs(X).sum(axis=1))
    >>> bool(model.score(X, np.abs(X).sum(axis=1)) > 0.9)
    True
    """

    # --- as scikit-learn has it

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from scratch, ``epochs`` times, each time in another order.

        Parameters
        ----------
        X : array, sparse matrix, frame or list of n mappings
            See :class:`DeepClassifier`.
        y : array of n numbers
        sample_weight : array of n, optional
            Weights of the examples, >= 0.

        Raises
        ------
        ValueError, TypeError, ImportError, TableFullError, DivergedError
            As in :meth:`DeepClassifier.fit`.
        """
        source, inputs, rows = self._read_first(X)
        numbers = self._numbers(y, rows)
        weights = read_weights(sample_weight, rows.count)
        if not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        learned = self._make(X, source, inputs, loss="squared")
        self._forget()
        self._take(X, learned)
        learned.fit(rows, numbers, weights, self.epochs, shuffle=self.shuffle)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn in one pass in the order given, going on from where the model is.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Raises
        ------
        ValueError, TypeError, ImportError, TableFullError, DivergedError
            As in :meth:`fit`.
        """
        if self._learned is None:
            source, inputs, rows = self._read_first(X)
            numbers, weights = self._numbers(y, rows), read_weights(sample_weight, rows.count)
            learned = self._take(X, self._make(X, source, inputs, loss="squared"))
        else:
            learned = self._ready()
            rows = self._read(X, learned, noting=True)
            numbers, weights = self._numbers(y, rows), read_weights(sample_weight, rows.count)
        learned.learn(rows, numbers, weights)
        return self

    def predict(self, X: Any) -> F64:  # noqa: N803
        """Return the predicted numbers, float64[n].

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        ValueError, TypeError
            The data are wrong.
        """
        return self._scores(X).astype(np.float64)

    # --- as river has it

    def learn_one(self, x: Mapping[Any, Any], y: float, w: float = 1.0) -> None:
        """Learn one example, as a minibatch of its own: slow; see :meth:`learn_many`.

        Parameters
        ----------
        x : mapping of field to value
            As :meth:`DeepClassifier.learn_one` takes them.
        y : float
        w : float
            Weight, >= 0.
        """
        self._learn([x], read_numbers([y], 1), weight_of(w))

    def learn_many(self, X: Any, y: Any, w: Any = None) -> None:  # noqa: N803
        """Learn the rows of a frame in their order, ``minibatch`` of them a step.

        Parameters
        ----------
        X : frame, or list of mappings
            Its columns are fields; NaN is missing.
        y : array of numbers
        w : array of weights, optional
        """
        self._learn(X, read_numbers(y, len(X)), read_weights(w, len(X)))

    def predict_one(self, x: Mapping[Any, Any]) -> float:
        """Return the prediction, 0 before anything was learned."""
        scores = self._scores_of([x])
        return 0.0 if scores is None else float(scores[0])

    def predict_many(self, X: Any) -> Any:  # noqa: N803
        """Return the predictions of a frame's rows as a series."""
        pandas = import_module("pandas")
        scores = self._scores_of(X)
        found = np.zeros(len(X)) if scores is None else scores.astype(np.float64)
        return pandas.Series(found, index=X.index)

    # --- state

    def _learn(self, x: Any, numbers: F32, weights: F32) -> None:
        """Learn records as river hands them in."""
        if self._learned is None:
            source, inputs, rows = self._read_first(x)
            learned = self._make(x, source, inputs, loss="squared")
            self._made_with = self.columns
            self._adopt(learned)
        else:
            learned = self._ready()
            rows = learned.inputs.read(x, noting=True)
        learned.learn(rows, numbers, weights)

    def _numbers(self, y: Any, rows: Rows) -> F32:
        if y is None:
            raise ValueError(_no_target(self))
        return read_numbers(y, rows.count)


def _no_target(estimator: Any) -> str:
    name = type(estimator).__name__
    return f"{name} requires y to be passed, but the target y is None"


def _probabilities(scores: F32) -> F64:
    """Return the probability of each class, float64[n, classes]."""
    if scores.ndim == 2:
        return probabilities(scores)
    second = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -700, 700)))
    return np.stack([1 - second, second], axis=1)


def _best(scores: F32) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the place of the most probable class."""
    found: np.ndarray[Any, np.dtype[np.intp]] = (
        scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(np.intp)
    )
    return found


try:
    from river.base import MiniBatchClassifier, MiniBatchRegressor
except ImportError:
    pass
else:
    # River asks of what class a model is; ours have the methods, so they may say yes.
    MiniBatchClassifier.register(DeepClassifier)
    MiniBatchRegressor.register(DeepRegressor)
