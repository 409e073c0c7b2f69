"""What all estimators do alike; how each does it is in the tests of its own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from streamlearn import LDA, FactorizationMachine, LogisticRegression, MatrixFactorization
from streamlearn.kept_estimator import KeptEstimator, threads_of
from streamlearn.learned import SETTINGS

ALL = (LogisticRegression, FactorizationMachine, MatrixFactorization, LDA)


@pytest.mark.parametrize("kind", ALL)
def test_what_may_not_change_is_a_setting(kind: type[KeptEstimator[Any]]) -> None:
    assert kind._binding
    assert set(kind._binding) <= set(SETTINGS[kind._kind]) <= set(kind().get_params())


@pytest.mark.parametrize("kind", ALL)
def test_refuses_to_go_on_with_a_setting_that_may_not_change(
    kind: type[KeptEstimator[Any]],
) -> None:
    model = kind()
    learned = model._ready()
    assert model.set_params(epochs=3)._ready() is learned
    assert learned.model.job.model.epochs == 3
    model.set_params(names_max=17)
    with pytest.raises(ValueError, match="names_max is 17, but the model has learned with 1000000"):
        model._ready()


def test_threads_are_none_some_or_all_but_some() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_of(None) == 1
    assert threads_of(np.int64(3)) == 3
    assert threads_of(-1) == cores
    assert threads_of(-1 - 2 * cores) == 1
    for wrong in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="n_jobs is"):
            threads_of(wrong)


def test_a_message_has_the_first_names_alone() -> None:
    model = LDA()
    model._set_columns(12, [f"w{i}" for i in range(12)])
    with pytest.raises(ValueError, match=r"they are \['a'\], they were \['w0', .*'w9', \.\.\.\]$"):
        model._check_names(("a",))
