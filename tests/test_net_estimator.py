"""Nets as users of scikit-learn, of river and of the command line meet them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from streamlearn import DeepClassifier, DeepRegressor  # noqa: E402

WEIGHTED = "an example of weight w counts w times in its step, it is not shown w times"
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": WEIGHTED,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTED,
}
SMALL = {"settings": {"hidden": [32, 16]}, "lr": 0.01, "minibatch": 32}


@parametrize_with_checks(
    [DeepClassifier(**SMALL), DeepRegressor(**SMALL)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_keeps_what_scikit_learn_promises(estimator: Any, check: Any) -> None:
    check(estimator)
