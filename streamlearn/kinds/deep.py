"""Settings of deep models."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from streamlearn.embeddings import DIM_MAX, Tiers
from streamlearn.kinds.shared import ALPHA, BETA, EPOCHS, L1, L2
from streamlearn.settings import about

__all__ = ["DeepConfig"]

# Logits of an example: beyond, the last layer is a table that belongs into shards.
CLASSES_MAX: Final = 1 << 16


class DeepConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="deep",
):
    """Deep nets: embeddings of features in the table, the dense part in torch."""

    net: Annotated[
        str,
        about(
            "The net: mlp, wide_deep, deepfm, dlrm, convnet, or package.module:factory of your "
            "own.",
            common=True,
            inherited=True,
        ),
    ] = "wide_deep"
    settings: Annotated[
        dict[str, Any],
        about(
            "The net's own settings: hidden, dropout, bottom, top, width, or those of your "
            "factory.",
            flag="--net-setting",
            expects="a table of name = number, text or list (hidden=[256,128])",
            common=True,
            inherited=True,
        ),
    ] = {}
    loss: Annotated[
        str,
        about(
            "logistic: of labels 0 and 1; classes: of one label of several; squared: of numbers.",
            choices=("logistic", "classes", "squared"),
            common=True,
            inherited=True,
        ),
    ] = "logistic"
    classes: Annotated[
        int,
        about(
            "classes: how many there are, labels being 0 and up; 0: those of source.classes.",
            ge=0,
            le=CLASSES_MAX,
            common=True,
            inherited=True,
        ),
    ] = 0
    # --- the dense part
    optimizer: Annotated[
        str,
        about(
            "Optimizer of the dense part.",
            choices=("adam", "adamw", "sgd", "adagrad"),
            common=True,
            inherited=True,
        ),
    ] = "adam"
    lr: Annotated[
        float, about("Learning rate of the dense part.", gt=0, common=True, inherited=True)
    ] = 0.001
    momentum: Annotated[float, about("sgd: momentum.", ge=0, lt=1, inherited=True)] = 0.9
    weight_decay: Annotated[
        float,
        about("Weight decay of the dense part, as the optimizer has it.", ge=0, inherited=True),
    ] = 0.0
    standardize: Annotated[
        bool,
        about(
            "Take the dense part of each example to mean 0 and variance 1 by what the stream has "
            "had so far.",
            inherited=True,
        ),
    ] = True
    precision: Annotated[
        str,
        about(
            "Numbers that the net computes with: float32, or bf16 where that loses little "
            "(autocast).",
            choices=("float32", "bf16"),
            common=True,
            inherited=True,
        ),
    ] = "float32"
    compile: Annotated[
        bool, about("Compile the net (torch.compile).", common=True, inherited=True)
    ] = False
    # --- embeddings and wide weights, in the table
    dim: Annotated[
        int,
        about("Numbers in an embedding.", ge=1, le=DIM_MAX, common=True, inherited=True),
    ] = 16
    pooling: Annotated[
        str,
        about(
            "What becomes of several features of one field: the sum of their embeddings, or the "
            "mean.",
            choices=("sum", "mean"),
            inherited=True,
        ),
    ] = "sum"
    threshold: Annotated[
        int,
        about(
            "Count above which a feature earns its embedding; 0: it has one from its first "
            "minibatch on.",
            ge=0,
            le=(1 << 32) - 1,
            common=True,
            inherited=True,
        ),
    ] = 0
    v_rule: Annotated[
        str,
        about(
            "Step of embeddings: adagrad, each number by its own gradients; rowwise: by the mean "
            "square of the embedding's, which takes one number beside it and not as many again.",
            choices=("adagrad", "rowwise"),
            common=True,
            inherited=True,
        ),
    ] = "adagrad"
    v_lr: Annotated[
        float, about("Step scale of embeddings.", gt=0, common=True, inherited=True)
    ] = 0.05
    v_lr_beta: Annotated[
        float, about("Step offset of embeddings.", gt=0, common=True, inherited=True)
    ] = 0.1
    v_l2: Annotated[
        float,
        about(
            "L2 penalty of embeddings, at each minibatch that has the feature.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    v_init_scale: Annotated[
        float,
        about("A new embedding is drawn from between minus and plus this.", ge=0, inherited=True),
    ] = 0.05
    v_clip: Annotated[
        float,
        about(
            "Cut each number of an embedding's gradient to between minus and plus this; 0: do not.",
            ge=0,
            inherited=True,
        ),
    ] = 0.0
    alpha: Annotated[float, ALPHA] = 0.05
    beta: Annotated[float, BETA] = 0.0001
    l1: Annotated[float, L1] = 0.0
    l2: Annotated[float, L2] = 0.0
    # --- how steps follow one another
    delay: Annotated[
        int,
        about(
            "1: a minibatch is pulled, copied and exchanged while the one before computes, so it "
            "misses what that one teaches; 0: one after the other.",
            ge=0,
            le=1,
            expects="0 or 1",
            common=True,
            inherited=True,
        ),
    ] = 0
    exchange: Annotated[
        str,
        about(
            "How dense gradients travel between workers: int8, one byte a coordinate with what "
            "rounding keeps back added later; or float32.",
            choices=("int8", "float32"),
            inherited=True,
        ),
    ] = "int8"
    skipped_max: Annotated[
        float,
        about(
            "A step whose loss is no number is skipped; the job stops when more than this share "
            "of its last steps were.",
            ge=0,
            le=1,
            inherited=True,
        ),
    ] = 0.01
    seed: Annotated[
        int,
        about("Of first weights, dropout and rounding.", ge=0, le=(1 << 63) - 1, inherited=True),
    ] = 0
    epochs: Annotated[int, EPOCHS] = 1

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "deep"

    @property
    def rule(self) -> str:
        """The update rule: FTRL for wide weights, AdaGrad for embeddings."""
        return "difacto"

    @property
    def intercept(self) -> bool:
        """Whether there is a constant feature: the net has its own."""
        return False

    @property
    def l1_shrk(self) -> bool:
        """Whether embeddings are left out while the weight is zero: they are not."""
        return False

    @property
    def tiers(self) -> Tiers:
        """Which embedding a feature earns by its count."""
        by_row = self.v_rule == "rowwise"
        return Tiers(2, (self.threshold,), (self.dim,), sums=not by_row, row_sum=by_row)

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What embeddings are updated by, in the order in which kernels take it."""
        return (self.v_lr, self.v_lr_beta, self.v_l2, self.v_init_scale, self.v_clip, 0.0, 0.0)
