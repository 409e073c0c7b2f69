"""The Python API: estimators as scikit-learn's and river's users know them.

The same tables, update rules and snapshots as the command line's, over data that is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import numpy as np

from streamlearn.classifier import StreamingClassifier
from streamlearn.messages import F32

__all__ = ["FactorizationMachine", "LogisticRegression"]

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


class FactorizationMachine(StreamingClassifier):
    """Factorization machine that learns one example after the other.

    Beside a weight, a feature that was seen often enough has an embedding; how much two features
    (of third order: three) say together is the product of their embeddings, summed.

    Parameters
    ----------
    dim : int, default 16
        Numbers in an embedding for each order beyond the first, 1 to 512.
    order : {2, 3}, default 2
        2: pairs of features interact; 3: triples, too.
    threshold : int, default 10
        Count above which a feature earns its embedding, >= 0. Hashed tables keep no counts: there
        every row has one.
    dim_by_count : mapping of int to int, optional
        Embeddings that grow with the count, in place of ``threshold`` and ``dim``: by
        ``{10: 8, 1000: 32}`` they have 8 numbers above a count of 10 and 32 above 1000. At most 8
        entries, both ascending. Exact tables only.
    alpha : float, default 0.1
        Step scale (learning rate) of weights, > 0.
    beta : float, default 1.0
        Step offset of weights, >= 0: larger slows the first steps.
    l1 : float, default 1.0
        L1 penalty of weights, >= 0: larger makes more of them exactly zero.
    l2 : float, default 0.0
        L2 penalty of weights, >= 0: larger makes all of them smaller.
    l1_shrk : bool, default True
        Leave an embedding out while the weight of its feature is zero.
    v_l2 : float, default 0.0001
        L2 penalty of embeddings, >= 0, at each example that has the feature.
    v_lr : float, default 0.02
        Step scale of embeddings, > 0.
    v_lr_beta : float, default 1.0
        Step offset of embeddings, > 0.
    v_init_scale : float, default 0.01
        A new embedding is drawn from between minus and plus this, >= 0.
    v_clip : float, default 0.0
        Cut each number of an embedding's gradient to between minus and plus this, >= 0; 0: do not.
    v_dropout : float, default 0.0
        Share of the numbers of embeddings' gradients that are left out by chance, >= 0 and < 1.
    v_normalize : bool, default False
        Divide the gradient of all embeddings in an example by its L2 norm.
    intercept : bool, default True
        Learn a constant feature, without penalties and without an embedding.
    epochs : int, default 1
        Passes over the data in ``fit``.
    index : {"exact", "hashed"}, default "exact"
        exact: every feature has a row of its own; hashed: ``2**bits`` rows, features may collide.
    bits : int, default 24
        hashed: the table has ``2**bits`` rows, 8 bytes each and as many embeddings: with the
        default ``dim``, 128 bytes each.
    features_max : int, default 0
        exact: rows at most; 0: as many as fit four fifths of this machine's memory.
    embeddings_bytes_max : int, default 0
        exact: memory of embeddings at most; beyond it no feature earns one. 0: what
        ``features_max`` leaves of four fifths of this machine's memory.
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
        Weights of the columns: what each says alone.
    intercept_ : float64[1]
    embeddings_ : float32[n_features_in_, dim * (order - 1)]
        Embeddings of the columns.
    examples_ : int
        Examples learned.

    Notes
    -----
    With x the features of an example, w the weights and v the embeddings of second order, the score
    (logit) is

        intercept + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j

    and of third order also ``sum_{i<j<k} sum_f u_if u_jf u_kf x_i x_j x_k``, u being the second
    half of the embeddings. Weights are learned by FTRL-proximal, embeddings by AdaGrad, and what is
    regularised is what an example has: Rendle, "Factorization Machines with libFM", TIST 2012; Li
    et al., "DiFacto: Distributed Factorization Machines", WSDM 2016.

    In all else, how it is called, what data may be and how examples count, it is as
    :class:`LogisticRegression`. Scale numbers to about one: an interaction grows with the product
    of its features' values.

    Examples
    --------
    >>> from streamlearn import FactorizationMachine
    >>> model = FactorizationMachine(dim=4, threshold=0, l1=0.0, v_lr=0.2, v_init_scale=0.1)
    >>> for _ in range(50):
    ...     for user, item in [("ann", "tea"), ("ann", "pie"), ("bob", "tea"), ("bob", "pie")]:
    ...         model.learn_one({"user": user, "item": item}, (user == "ann") == (item == "tea"))
    >>> model.predict_one({"user": "ann", "item": "tea"})
    True
    >>> model.predict_one({"user": "bob", "item": "tea"})
    False
    """

    _kind: ClassVar = "fm"
    _binding: ClassVar = (
        *("dim", "order", "threshold", "dim_by_count", "l1_shrk", "embeddings_bytes_max"),
        *_BINDING,
    )

    def __init__(
        self,
        *,
        dim: int = 16,
        order: int = 2,
        threshold: int = 10,
        dim_by_count: Mapping[int, int] | None = None,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 1.0,
        l2: float = 0.0,
        l1_shrk: bool = True,
        v_l2: float = 0.0001,
        v_lr: float = 0.02,
        v_lr_beta: float = 1.0,
        v_init_scale: float = 0.01,
        v_clip: float = 0.0,
        v_dropout: float = 0.0,
        v_normalize: bool = False,
        intercept: bool = True,
        epochs: int = 1,
        index: str = "exact",
        bits: int = 24,
        features_max: int = 0,
        embeddings_bytes_max: int = 0,
        when_full: str = "error",
        names_max: int = 1_000_000,
    ) -> None:
        self.dim = dim
        self.order = order
        self.threshold = threshold
        self.dim_by_count = dim_by_count
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.l1_shrk = l1_shrk
        self.v_l2 = v_l2
        self.v_lr = v_lr
        self.v_lr_beta = v_lr_beta
        self.v_init_scale = v_init_scale
        self.v_clip = v_clip
        self.v_dropout = v_dropout
        self.v_normalize = v_normalize
        self.intercept = intercept
        self.epochs = epochs
        self.index = index
        self.bits = bits
        self.features_max = features_max
        self.embeddings_bytes_max = embeddings_bytes_max
        self.when_full = when_full
        self.names_max = names_max

    @property
    def embeddings_(self) -> F32:
        """Embeddings of the columns, float32[n_features_in_, dim * (order - 1)].

        Zeros where a column has none, and behind one that is shorter than the longest of
        ``dim_by_count``. Those of third order stand behind those of second order.
        """
        keys = self._column_keys("embeddings_", "embedding() has that of a name")
        return self._ready().model.embeddings_at(keys)

    def embedding(self, feature: str) -> F32:
        """Return the embedding of one feature, float32[dim * (order - 1)]; zeros if it has none.

        Parameters
        ----------
        feature : str
            Its name as :meth:`weights` has it: ``field=token``, ``field=`` for a number.

        Raises
        ------
        KeyError
            The name is not known: the feature was not seen, or is beyond ``names_max``.
        """
        model = self._named().model
        key = model.names.find(feature)
        if key is None:
            raise KeyError(feature)
        embedding: F32 = model.embeddings_at(np.array([key], np.uint64))[0]
        return embedding
