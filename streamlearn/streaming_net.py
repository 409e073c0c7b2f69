"""What estimators of nets do: read, learn, save and load, as scikit-learn and as river call it.

A net is made when the first data are there, as its shape depends on what they have. A subclass says
what labels are.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, Self

import msgspec
import numpy as np

from streamlearn.config import JobConfig, SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.inspection import strongest
from streamlearn.kept_estimator import KeptEstimator, NotFittedError
from streamlearn.learned import SETTINGS, job_of
from streamlearn.learned_net import LearnedNet, require_torch
from streamlearn.messages import F32
from streamlearn.model import Model
from streamlearn.online.net_inputs import Inputs, Rows, columns_of, inputs_of, shape_of, source_of

__all__ = ["StreamingNet", "weight_of"]

# The columns that a model was made with, before there is one.
_UNSAID: Final = "(none yet)"


class StreamingNet(KeptEstimator[LearnedNet]):
    """A net that learns minibatches; see :class:`streamlearn.DeepClassifier`."""

    _kind: ClassVar = "deep"
    _binding: ClassVar = (
        *("net", "settings", "dim", "pooling", "threshold", "optimizer", "standardize", "v_rule"),
        *("features_max", "embeddings_bytes_max", "when_full", "names_max"),
    )

    # What river asks of a model.
    _supervised = True

    _made_with: Any = _UNSAID

    def __init__(
        self,
        *,
        net: str | Callable[..., Any] = "mlp",
        settings: Mapping[str, Any] | None = None,
        dim: int = 16,
        pooling: str = "sum",
        threshold: int = 0,
        optimizer: str = "adam",
        lr: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        epochs: int = 20,
        minibatch: int = 128,
        shuffle: bool = True,
        device: str = "auto",
        precision: str = "float32",
        compile: bool = False,
        delay: int = 0,
        standardize: bool = True,
        v_rule: str = "adagrad",
        v_lr: float = 0.05,
        v_lr_beta: float = 0.1,
        v_l2: float = 0.0,
        v_init_scale: float = 0.05,
        v_clip: float = 0.0,
        alpha: float = 0.05,
        beta: float = 0.0001,
        l1: float = 0.0,
        l2: float = 0.0,
        skipped_max: float = 0.01,
        seed: int = 0,
        columns: Mapping[str, str] | None = None,
        features_max: int = 0,
        embeddings_bytes_max: int = 0,
        when_full: str = "error",
        names_max: int = 1_000_000,
    ) -> None:
        self.net = net
        self.settings = settings
        self.dim = dim
        self.pooling = pooling
        self.threshold = threshold
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.minibatch = minibatch
        self.shuffle = shuffle
        self.device = device
        self.precision = precision
        self.compile = compile
        self.delay = delay
        self.standardize = standardize
        self.v_rule = v_rule
        self.v_lr = v_lr
        self.v_lr_beta = v_lr_beta
        self.v_l2 = v_l2
        self.v_init_scale = v_init_scale
        self.v_clip = v_clip
        self.alpha = alpha
        self.beta = beta
        self.l1 = l1
        self.l2 = l2
        self.skipped_max = skipped_max
        self.seed = seed
        self.columns = columns
        self.features_max = features_max
        self.embeddings_bytes_max = embeddings_bytes_max
        self.when_full = when_full
        self.names_max = names_max

    # --- what was learned

    def __sklearn_is_fitted__(self) -> bool:
        """Say whether something was learned."""
        return self._learned is not None

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    @property
    def examples_(self) -> int:
        """Examples learned, those of each pass counted."""
        return 0 if self._learned is None else self._learned.model.counts.examples

    @property
    def loss_curve_(self) -> list[float]:
        """Mean loss of each pass of the last ``fit``, every example scored before it taught."""
        return self._fitted().losses

    @property
    def net_(self) -> Any:
        """The ``torch.nn.Module``, of the first device: to look at, not to change."""
        step: Any = self._fitted().model.solver
        return step.step.net

    def progressive(self) -> dict[str, float]:
        """Return the progressive validation: every example was scored before it taught.

        Returns
        -------
        dict
            ``loss`` and, by what is learned, ``accuracy``, ``auc``, ``rmse`` and more, over all
            examples of the last pass and (``_window``) the last hundred thousand.
        """
        return self._fitted().model.validation.summary()

    def weights(self, top: int = 20) -> list[dict[str, Any]]:
        """Return the features of largest absolute wide weight, largest first.

        Returns
        -------
        list of dict
            ``feature`` (``field=token``), ``weight`` and ``count``, of examples with it. Nets
            without a wide part have no weights.
        """
        return strongest(self._fitted().model, top)

    def embedding(self, feature: str) -> F32:
        """Return the embedding of one feature, float32[dim]; zeros if it has none.

        Parameters
        ----------
        feature : str
            ``field=token``; of a sparse matrix the number of a column.

        Raises
        ------
        KeyError
            The name is not known: the feature was not seen, or is beyond ``names_max``.
        """
        model = self._fitted().model
        key = model.names.find(feature)
        if key is None:
            raise KeyError(feature)
        found: F32 = model.embeddings_at(np.array([key], np.uint64))[0]
        return found

    def clone(self, new_params: Mapping[str, Any] | None = None, **_rest: Any) -> Self:
        """Return a model with the same settings that has learned nothing."""
        return type(self)(**{**self.get_params(), **(new_params or {})})

    def save(self, path: str | Path) -> None:
        """Write a snapshot, as ``streamlearn train --model deep --out PATH`` does.

        Raises
        ------
        SnapshotError
            It cannot be written.
        """
        own = {"columns": self.columns, "shuffle": self.shuffle}
        state = self._columns_state() | self._labels_state() | own
        self._fitted().save(Path(path), state, time.time())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open the newest snapshot of a directory, written from Python or by the command line.

        A model of the command line reads frames and mappings by its source's schema, and images
        where it was learned from such; one that was learned from svmlight takes matrices.

        Raises
        ------
        ConfigError
            There is no model, or one of another kind or loss, which another class opens; or its
            records cannot be handed in by name (``libffm``).
        SnapshotError
            No snapshot is whole, or it is of another format version.
        """
        learned, state = LearnedNet.load(Path(path), cls.__name__)
        held = state or {"n_features_in": None, "feature_names_in": None}
        own = {name: held[name] for name in ("columns", "shuffle") if name in held}
        self = cls._opened(learned, held, **own)
        self._made_with = self.columns
        # a job of the command line says which fields there are
        learned.inputs.warns = state is not None and self.columns is None
        self._take_labels(learned, held)
        return self

    # --- what a subclass says

    def _labels_state(self) -> dict[str, Any]:
        """Return what is known of labels, as JSON has it."""
        return {}

    def _take_labels(self, learned: LearnedNet, state: Mapping[str, Any]) -> None:
        """Take what is known of labels, of what was loaded."""

    # --- state

    def _new(self) -> NoReturn:
        raise NotFittedError(
            f"This {type(self).__name__} instance has seen no data yet, and its net is made for "
            "the first ones."
        )

    def _ready(self) -> LearnedNet:
        learned = super()._ready()
        if self.columns != self._made_with:
            raise ValueError(
                f"columns is {self.columns!r}, but the model has learned with "
                f"{self._made_with!r}; fit begins anew"
            )
        return learned

    def _job(self) -> JobConfig:
        values = {name: getattr(self, name) for name in SETTINGS[self._kind]}
        if callable(values["net"]):
            values["net"] = _name_of(values["net"])
        return job_of(self._kind, values)

    def _read_first(self, x: Any) -> tuple[SourceConfig, Inputs, Rows]:
        """Read what is learned first, as what it shows to be."""
        require_torch(type(self).__name__)
        source = source_of(x, self.columns)
        fields, dense = shape_of(source, x)
        inputs = inputs_of(source, fields, dense)
        inputs.warns = self.columns is None
        return source, inputs, inputs.read(x, noting=True)

    def _make(self, x: Any, source: SourceConfig, inputs: Inputs, **labels: Any) -> LearnedNet:
        """Return a net for such data; ``labels`` are settings of its model."""
        job = self._job()
        job = msgspec.structs.replace(
            job, source=source, model=msgspec.structs.replace(job.model, **labels)
        )
        fields, dense = shape_of(source, x)
        try:
            return LearnedNet(Model.new(job, fields, dense=dense), inputs)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def _take(self, x: Any, learned: LearnedNet) -> LearnedNet:
        """Have a new net, and take a first matrix's columns for the model's."""
        self._made_with = copy.deepcopy(self.columns)
        columns = columns_of(x)
        if columns is not None:
            self._set_columns(*columns)
        return self._adopt(learned)

    def _read(self, x: Any, learned: LearnedNet, *, noting: bool = False) -> Rows:
        """Read data for a net that there is; of matrices, with the columns of the first."""
        columns = columns_of(x)
        if columns is not None and hasattr(self, "n_features_in_"):
            self._check_frame(columns[1])
            self._check_count(columns[0])
        return learned.inputs.read(x, noting=noting)

    def _scores(self, x: Any) -> F32:
        learned = self._fitted()
        return learned.score(self._read(x, learned))

    def _scores_of(self, x: Any) -> F32 | None:
        """Return the scores of records or a frame, of whatever fields; None: nothing is learned."""
        if self._learned is None:
            return None
        learned = self._ready()
        return learned.score(learned.inputs.read(x))


def _name_of(factory: Any) -> str:
    """Return the name that a factory of nets is found by, in a snapshot as here.

    Raises
    ------
    ValueError
        It has none.
    """
    module, name = (getattr(factory, of, "") for of in ("__module__", "__qualname__"))
    if not module or not name.isidentifier():
        raise ValueError(
            f"net is {factory!r}, which cannot be found by a name, as whoever loads the model must "
            "do: define it at the top of a module"
        )
    return f"{module}:{name}"


def weight_of(w: float) -> F32:
    """Return the weight of one example, float32[1].

    Raises
    ------
    ValueError
        It is negative or not finite.
    """
    if not 0 <= w < float("inf"):
        raise ValueError(f"weight {w!r} is not a finite number of at least 0")
    return np.array([w], np.float32)
