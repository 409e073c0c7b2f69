"""The step as a worker calls it."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels.steps import sigmoid
from streamlearn.config import LrConfig
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.steps import LogisticStep, Values
from tests.reference.steps import logistic
from tests.reference.tables import minibatch


@pytest.mark.parametrize("intercept", [False, True])
def test_a_step_scores_and_sums_the_gradient_by_key(intercept: bool) -> None:
    batch = minibatch([[9, 3], [3], []], labels=[1, 0, 1], weights=[1, 2, 3])
    out = Localizer(batch.nnz_max).localize(batch, Localized(100), intercept=intercept)
    rule = LogisticStep(LrConfig(intercept=intercept))
    assert rule.intercept == intercept
    weights = {1: 0.25, 3: -0.5, 9: 1.0}
    pulled = Values(np.array([weights[key] for key in out.keys.tolist()], np.float32))
    scores = np.full(10, 7, np.float32)
    gradients = rule.step(batch, out, pulled, scores).weights
    expected, sums = logistic(batch, weights, intercept=intercept, sigmoid=sigmoid)
    assert scores[:3].tolist() == expected
    assert (scores[3:] == 7).all()
    assert dict(zip(out.keys.tolist(), gradients.tolist(), strict=True)) == sums
    assert np.shares_memory(gradients, out.gradients)


def test_a_step_refuses_what_was_localised_or_pulled_for_another() -> None:
    batch = minibatch([[9, 3]])
    out = Localizer(batch.nnz_max).localize(batch, Localized(100), intercept=False)
    scores = np.zeros(1, np.float32)
    with pytest.raises(AssertionError, match="another model"):
        LogisticStep(LrConfig()).step(batch, out, Values(np.zeros(2, np.float32)), scores)
    with pytest.raises(AssertionError, match="3 weights, 2 keys"):
        values = Values(np.zeros(3, np.float32))
        LogisticStep(LrConfig(intercept=False)).step(batch, out, values, scores)
