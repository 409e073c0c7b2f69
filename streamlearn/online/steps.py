"""What a worker does with the weights that it pulled for a minibatch."""

from __future__ import annotations

from streamlearn.compute.kernels import steps as kernels
from streamlearn.config import ModelConfig
from streamlearn.messages import F32
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import Minibatch

__all__ = ["LogisticStep"]


class LogisticStep:
    """L1 logistic regression as a worker sees it; penalties and rates are the shards' business.

    Parameters
    ----------
    model : ModelConfig
        ``intercept``.

    Attributes
    ----------
    intercept : bool
        Whether minibatches are to be localised with the constant feature.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.intercept = bool(model.intercept)

    def step(self, batch: Minibatch, localized: Localized, weights: F32, scores: F32) -> F32:
        """Score each example with the weights as they were pulled; return the gradient.

        Parameters
        ----------
        batch : Minibatch
        localized : Localized
            Of ``batch``, with ``intercept`` as here.
        weights : float32[u]
            Of ``localized.keys``.
        scores : float32[>= rows]
            Written: the score (logit) of each example.

        Returns
        -------
        float32[u]
            Gradient of the logloss *summed* over the minibatch, by key: ``localized.gradients``.
        """
        assert localized.intercept == self.intercept, "localised for another model"
        assert len(weights) == localized.unique, f"{len(weights)} weights, {localized.unique} keys"
        gradients = localized.gradients
        kernels.logistic_step(
            localized.inverse, batch.values, batch.indptr, batch.labels, batch.weights, batch.rows,
            int(self.intercept), weights, gradients, scores,
        )  # fmt: skip
        return gradients
