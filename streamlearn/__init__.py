"""streamlearn: raw logs in, sparse models out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.estimators import FactorizationMachine as FactorizationMachine
    from streamlearn.estimators import LogisticRegression as LogisticRegression
    from streamlearn.lda_estimator import LDA as LDA
    from streamlearn.matrix_estimator import MatrixFactorization as MatrixFactorization
    from streamlearn.net_estimator import DeepClassifier as DeepClassifier
    from streamlearn.net_estimator import DeepRegressor as DeepRegressor

__version__ = "0.1.0"
__all__ = [
    "LDA",
    "DeepClassifier",
    "DeepRegressor",
    "FactorizationMachine",
    "LogisticRegression",
    "MatrixFactorization",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the Python API when it is asked for: the command line does without."""
    if name == "LDA":
        from streamlearn import lda_estimator

        return lda_estimator.LDA
    if name == "MatrixFactorization":
        from streamlearn import matrix_estimator

        return matrix_estimator.MatrixFactorization
    if name in ("DeepClassifier", "DeepRegressor"):
        from streamlearn import net_estimator

        return getattr(net_estimator, name)
    if name in __all__:
        from streamlearn import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
