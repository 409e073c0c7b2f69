"""The kinds of model: each one's settings, which `[model]` may hold where that kind is learned."""

from __future__ import annotations

from typing import Final, TypeAlias

from streamlearn.kinds.deep import DeepConfig
from streamlearn.kinds.fm import FmConfig
from streamlearn.kinds.lda import LdaConfig
from streamlearn.kinds.lr import LrConfig
from streamlearn.kinds.mf import MfConfig

__all__ = ["MODELS", "DeepConfig", "FmConfig", "LdaConfig", "LrConfig", "MfConfig", "ModelConfig"]

# A model's settings are a struct of its own, told apart by ``kind``: a further model is a further
# struct here and a further member of the union.
ModelConfig: TypeAlias = LrConfig | FmConfig | MfConfig | LdaConfig | DeepConfig
MODELS: Final[dict[str, type[ModelConfig]]] = {
    "lr": LrConfig,
    "fm": FmConfig,
    "mf": MfConfig,
    "lda": LdaConfig,
    "deep": DeepConfig,
}
