"""Settings of factorization machines."""

from __future__ import annotations

from typing import Annotated

import msgspec

from streamlearn.embeddings import DIM_MAX, TIERS_MAX, Tiers
from streamlearn.kinds.shared import ALPHA, BETA, EPOCHS, INTERCEPT, L1, L2
from streamlearn.settings import about

__all__ = ["FmConfig"]


class FmConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="fm",
):
    """Factorization machines, whose embeddings exist for the features that earned one (DiFacto)."""

    dim: Annotated[
        int,
        about(
            "Numbers in an embedding, for each order beyond the first.",
            ge=1,
            le=DIM_MAX,
            common=True,
            inherited=True,
        ),
    ] = 16
    order: Annotated[
        int,
        about(
            "2: pairs of features interact; 3: triples, too.",
            ge=2,
            le=3,
            expects="2 or 3",
            common=True,
            inherited=True,
        ),
    ] = 2
    threshold: Annotated[
        int,
        about(
            "Count above which a feature earns its embedding (over shards, of a feature that "
            "stands in a minibatch more than once: so many minibatches); hashed tables keep no "
            "counts, so there every row has one.",
            ge=0,
            le=(1 << 32) - 1,
            common=True,
            inherited=True,
        ),
    ] = 10
    dim_by_count: Annotated[
        dict[str, int],
        about(
            "Embeddings that grow with the count, in place of threshold and dim: 10 = 8, 1000 = 32 "
            "is 8 numbers above a count of 10, 32 above 1000.",
            flag="--dim-by-count",
            expects=f"a table of at most {TIERS_MAX} count = dim, both ascending, dim from 1 to "
            f"{DIM_MAX} (10=8,1000=32)",
            common=True,
            inherited=True,
        ),
    ] = {}
    alpha: Annotated[float, ALPHA] = 0.1
    beta: Annotated[float, BETA] = 1.0
    l1: Annotated[float, L1] = 1.0
    l2: Annotated[float, L2] = 0.0
    l1_shrk: Annotated[
        bool,
        about("Leave an embedding out while the weight of its feature is zero.", inherited=True),
    ] = True
    v_l2: Annotated[
        float,
        about(
            "L2 penalty of embeddings, at each example (over shards: each minibatch) that has the "
            "feature.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0.0001
    v_lr: Annotated[
        float, about("Step scale of embeddings.", gt=0, common=True, inherited=True)
    ] = 0.02
    v_lr_beta: Annotated[
        float, about("Step offset of embeddings.", gt=0, common=True, inherited=True)
    ] = 1.0
    v_init_scale: Annotated[
        float,
        about("A new embedding is drawn from between minus and plus this.", ge=0, inherited=True),
    ] = 0.01
    v_clip: Annotated[
        float,
        about(
            "Cut each number of an embedding's gradient to between minus and plus this; 0: do not.",
            ge=0,
            inherited=True,
        ),
    ] = 0.0
    v_dropout: Annotated[
        float,
        about(
            "Share of the numbers of embeddings' gradients that are left out, by chance.",
            ge=0,
            lt=1,
            inherited=True,
        ),
    ] = 0.0
    v_normalize: Annotated[
        bool,
        about(
            "Divide the gradient of all embeddings in an example (over shards: a minibatch) by its "
            "L2 norm.",
            inherited=True,
        ),
    ] = False
    intercept: Annotated[bool, INTERCEPT] = True
    epochs: Annotated[int, EPOCHS] = 1

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "fm"

    @property
    def rule(self) -> str:
        """The update rule: FTRL for weights, AdaGrad for embeddings."""
        return "difacto"

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What embeddings are updated by, in the order in which kernels take it."""
        treated = (self.v_clip, self.v_dropout, float(self.v_normalize))
        return (self.v_lr, self.v_lr_beta, self.v_l2, self.v_init_scale, *treated)

    @property
    def tiers(self) -> Tiers:
        """Which embedding a feature earns by its count.

        Raises
        ------
        ValueError
            ``dim_by_count`` is not in order, or beyond a limit.
        """
        if not self.dim_by_count:
            return Tiers(self.order, (self.threshold,), (self.dim,))
        counts = tuple(int(count) for count in self.dim_by_count)
        return Tiers(self.order, counts, tuple(self.dim_by_count.values()))
