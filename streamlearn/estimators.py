"""The Python API: estimators as scikit-learn's and river's users know them.

The same tables, update rules and snapshots as the command line's, over data that is in memory.
"""

from __future__ import annotations

from typing import ClassVar, Final

from streamlearn.classifier import StreamingClassifier

__all__ = ["LogisticRegression"]

# What may not change once something is learned: it says what the table's numbers mean.
_BINDING: Final = ("intercept", "index", "bits", "features_max", "when_full", "names_max")


class LogisticRegression(StreamingClassifier):
    """Sparse logistic regression that learns one example after the other.

    Parameters
    ----------
    alpha : float, default 0.1
        Step scale (learning rate), > 0.
    beta : float, default 1.0
        Step offset, >= 0: larger slows the first steps.
    l1 : float, default 1.0
        L1 penalty, >= 0: larger makes more weights exactly zero.
    l2 : float, default 0.0
        L2 penalty, >= 0: larger makes all weights smaller.
    rule : {"ftrl", "adagrad", "sgd"}, default "ftrl"
        Update rule.
    intercept : bool, default True
        Learn a constant feature, without penalties.
    epochs : int, default 1
        Passes over the data in ``fit``.
    index : {"exact", "hashed"}, default "exact"
        exact: every feature has a row of its own; hashed: ``2**bits`` rows, features may collide.
    bits : int, default 24
        hashed: the table has ``2**bits`` rows, 8 bytes each.
    features_max : int, default 0
        exact: rows at most; 0: as many as fit four fifths of this machine's memory.
    when_full : {"error", "evict"}, default "error"
        What a full table does: stop, or forget the features least seen.
    names_max : int, default 1_000_000
        Names of features kept.

    Attributes
    ----------
    classes_ : array of two
        The labels; the second one is what probabilities are of.
    n_features_in_, feature_names_in_ : int, array of str
        Columns of the first matrix, and their names if it was a frame with names.
    coef_ : float64[1, n_features_in_]
        Weights of the columns.
    intercept_ : float64[1]
    examples_ : int
        Examples learned.

    Notes
    -----
    ``partial_fit``, ``learn_one`` and ``learn_many`` go on from where the model is, ``fit`` begins
    anew. All of them learn one example after the other in the order given, so the same examples in
    the same order make the same model, however they were handed in.

    Zeros are absent features. Columns of arrays and sparse matrices are numbers from 0, as indices
    of svmlight are. Columns of frames and fields of mappings have names: a string is a category, a
    number (or a boolean) a raw value, as ``number:raw`` has it.

    An example of weight w moves the weights once, by w times the gradient; that is not the same as
    showing it w times. Weight 0 teaches nothing.

    Examples
    --------
    >>> from streamlearn import LogisticRegression
    >>> model = LogisticRegression(alpha=0.5, l1=0.0)
    >>> for _ in range(20):
    ...     model.learn_one({"origin": "LAS", "distance": 2.2}, True)
    ...     model.learn_one({"origin": "SFO", "distance": 0.3}, False)
    >>> model.predict_one({"origin": "LAS", "distance": 2.0})
    True
    """

    _kind: ClassVar = "lr"
    _binding: ClassVar = ("rule", *_BINDING)

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 1.0,
        l2: float = 0.0,
        rule: str = "ftrl",
        intercept: bool = True,
        epochs: int = 1,
        index: str = "exact",
        bits: int = 24,
        features_max: int = 0,
        when_full: str = "error",
        names_max: int = 1_000_000,
    ) -> None:
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.rule = rule
        self.intercept = intercept
        self.epochs = epochs
        self.index = index
        self.bits = bits
        self.features_max = features_max
        self.when_full = when_full
        self.names_max = names_max
