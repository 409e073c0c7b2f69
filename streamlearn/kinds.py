"""The kinds of model: each one's settings, which `[model]` may hold where that kind is learned."""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import msgspec

from streamlearn.embeddings import DIM_MAX, FACTORS_MAX, TIERS_MAX, TOPICS_MAX, Tiers
from streamlearn.settings import about

__all__ = ["MODELS", "FmConfig", "LdaConfig", "LrConfig", "MfConfig", "ModelConfig"]

# Items drawn for one record: more teach mostly what is not so.
NEGATIVES_MAX: Final = 64
# Documents from which on the share of those that have a word is taken for what it is.
DF_KNOWN: Final = 100

_ALPHA: Final = about("Step scale (learning rate).", gt=0, short="-l", common=True, inherited=True)
_BETA: Final = about(
    "Step offset: larger slows the first steps.", ge=0, common=True, inherited=True
)
_L1: Final = about(
    "L1 penalty: larger makes more weights exactly zero.", ge=0, common=True, inherited=True
)
_L2: Final = about(
    "L2 penalty: larger makes all weights smaller.", ge=0, common=True, inherited=True
)
_INTERCEPT: Final = about("Learn a constant feature.", inherited=True)
_EPOCHS: Final = about("Passes over the source.", ge=1, common=True, inherited=True)


class LrConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="lr",
):
    """Sparse logistic regression, per example."""

    rule: Annotated[
        str, about("Update rule.", choices=("ftrl", "adagrad", "sgd"), common=True, inherited=True)
    ] = "ftrl"
    alpha: Annotated[float, _ALPHA] = 0.1
    beta: Annotated[float, _BETA] = 1.0
    l1: Annotated[float, _L1] = 1.0
    l2: Annotated[float, _L2] = 0.0
    intercept: Annotated[bool, _INTERCEPT] = True
    epochs: Annotated[int, _EPOCHS] = 1

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "lr"

    @property
    def tiers(self) -> Tiers | None:
        """Which embeddings there are: none."""
        return None

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What embeddings would be updated by."""
        return (0.0, 1.0, 0.0, 0.0)


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
    alpha: Annotated[float, _ALPHA] = 0.1
    beta: Annotated[float, _BETA] = 1.0
    l1: Annotated[float, _L1] = 1.0
    l2: Annotated[float, _L2] = 0.0
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
    intercept: Annotated[bool, _INTERCEPT] = True
    epochs: Annotated[int, _EPOCHS] = 1

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


class _Added:
    """What a model whose rows are added to has in place of the settings of an update rule."""

    __slots__ = ()

    @property
    def beta(self) -> float:
        """Step offset: there is none."""
        return 1.0

    @property
    def l1(self) -> float:
        """L1 penalty: there is none."""
        return 0.0

    @property
    def l1_shrk(self) -> bool:
        """Whether rows are left out while their weight is zero: they are not."""
        return False


class MfConfig(
    _Added,
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="mf",
):
    """Biased matrix factorization of ratings, by stochastic gradient descent (SC-SGD)."""

    dim: Annotated[
        int,
        about(
            "Factors of a user, and of an item.",
            ge=1,
            le=FACTORS_MAX,
            common=True,
            inherited=True,
        ),
    ] = 32
    loss: Annotated[
        str,
        about(
            "squared: of ratings; logistic: of feedback that is 0 or 1.",
            choices=("squared", "logistic"),
            common=True,
            inherited=True,
        ),
    ] = "squared"
    negatives: Annotated[
        int,
        about(
            "logistic: items drawn by chance for each record whose rating is 1, taken for 0.",
            ge=0,
            le=NEGATIVES_MAX,
            common=True,
            inherited=True,
        ),
    ] = 0
    alpha: Annotated[float, _ALPHA] = 0.05
    decay: Annotated[
        float,
        about(
            "The step of pass t is alpha / t ** decay; 0: constant.",
            ge=0,
            le=10,
            common=True,
            inherited=True,
        ),
    ] = 0.7
    l2: Annotated[float, _L2] = 0.05
    init_scale: Annotated[
        float,
        about(
            "Standard deviation of new factors; 0: 0.12 / sqrt(dim).", ge=0, le=100, inherited=True
        ),
    ] = 0.0
    users: Annotated[
        str,
        about(
            "Where users stand, over shards: with these, as items do, or with the worker that "
            "reads them, where no user is in two objects of the source.",
            choices=("shards", "worker"),
            flag="--users-at",
            inherited=True,
        ),
    ] = "shards"
    intercept: Annotated[bool, _INTERCEPT] = True
    epochs: Annotated[int, _EPOCHS] = 1
    held_out: Annotated[
        float,
        about(
            "Share of the ratings that are scored after each pass, and never learned.",
            ge=0,
            lt=1,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    patience: Annotated[
        int,
        about(
            "Stop after so many passes in a row in which held-out ratings were predicted no "
            "better, and keep the best; 0: do not.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0
    # --- private
    epsilon: Annotated[
        float,
        about(
            "Differential privacy of all ratings of any one user: budget of the model that is "
            "published; 0: it is not private.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    published: Annotated[
        str,
        about(
            "private: which rows epsilon is the budget of: all, or those of items; then each "
            "user's is learned from them and its own ratings, and is for its own eyes.",
            choices=("all", "items"),
            common=True,
            inherited=True,
        ),
    ] = "all"
    user_ratings_max: Annotated[
        float,
        about(
            "private: the ratings of a user weigh no more than so many.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 50.0
    error_max: Annotated[
        float,
        about(
            "private: a rating that is predicted worse than this teaches nothing.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 2.0
    prior_scale: Annotated[
        float,
        about(
            "private: standard deviation of biases and factors of whom nothing is known; in place "
            "of l2, but for users' own rows.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 0.2
    rating_min: Annotated[
        float, about("private: ratings below it count as it in the mean.", inherited=True)
    ] = 1.0
    rating_max: Annotated[
        float, about("private: ratings above it count as it in the mean.", inherited=True)
    ] = 5.0

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "mf"

    @property
    def rule(self) -> str:
        """The update rule of shards: what workers have learned is added."""
        return "mf"

    @property
    def tiers(self) -> Tiers:
        """Which factors a row has: all, from the first rating on."""
        return Tiers(2, (0,), (self.dim,), sums=False)

    @property
    def v_init_scale(self) -> float:
        """New factors are drawn from between minus and plus this."""
        deviation = self.init_scale or 0.12 / math.sqrt(self.dim)
        return deviation * math.sqrt(3.0)

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What factors are updated by over shards: nothing but what is sent."""
        return (0.0, 1.0, 0.0, self.v_init_scale)


class LdaConfig(
    _Added,
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="lda",
):
    """Topics of documents: latent Dirichlet allocation, without locks (ESCA)."""

    topics: Annotated[
        int, about("Topics.", ge=1, le=TOPICS_MAX, short="-k", common=True, inherited=True)
    ] = 100
    epochs: Annotated[
        int,
        about(
            "Passes over the tokens: the first reads them, each further one draws the topic of "
            "every token anew. 1: each document is learned as it comes, once.",
            ge=1,
            common=True,
            inherited=True,
        ),
    ] = 100
    doc_topic_prior: Annotated[
        float,
        about(
            "Prior of a topic in a document (alpha), which the first passes begin with; 0: 5 / "
            "topics.",
            ge=0,
            le=100,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    topic_word_prior: Annotated[
        float,
        about(
            "Prior of a word in a topic (beta), which the first passes begin with.",
            gt=0,
            le=100,
            common=True,
            inherited=True,
        ),
    ] = 0.01
    optimize: Annotated[
        str,
        about(
            "Which priors are fitted to what is learned: alpha, one number for each topic; beta, "
            "one for all words; both, or none.",
            choices=("none", "alpha", "beta", "both"),
            common=True,
            inherited=True,
        ),
    ] = "both"
    # --- vocabulary
    min_df: Annotated[
        int,
        about(
            "Words that stand in fewer documents are left out.", ge=1, common=True, inherited=True
        ),
    ] = 5
    max_df: Annotated[
        float,
        about(
            "Words that stand in a larger share of the documents are left out.",
            gt=0,
            le=1,
            common=True,
            inherited=True,
        ),
    ] = 0.25
    vocabulary_max: Annotated[
        int,
        about(
            "The most words with topics: those that stand in the most documents; 0: no limit.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0
    # --- how well
    held_out: Annotated[
        float,
        about(
            "Share of the documents that are never learned, but judged by: of each, every other "
            "token is predicted from the rest.",
            ge=0,
            lt=1,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    patience: Annotated[
        int,
        about(
            "Stop after so many looks in a row at which held-out documents were predicted no "
            "better; 0: do not.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0
    # --- documents that come for ever
    draws: Annotated[
        int,
        about(
            "In a single pass: how often topics are drawn for the tokens of a document that comes.",
            ge=1,
            le=1000,
            inherited=True,
        ),
    ] = 10
    half_life: Annotated[
        float,
        about(
            "In a single pass: documents after which half of what was learned is forgotten; 0: "
            "none is.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0.0

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "lda"

    @property
    def rule(self) -> str:
        """The update rule of shards: counts are added."""
        return "add"

    @property
    def alpha(self) -> float:
        """Step scale: what is added is added whole."""
        return 1.0

    @property
    def l2(self) -> float:
        """L2 penalty: there is none."""
        return 0.0

    @property
    def intercept(self) -> bool:
        """Whether there is a constant feature: there is none."""
        return False

    @property
    def v_init_scale(self) -> float:
        """New counts are zero."""
        return 0.0

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What counts are updated by over shards: nothing but what is sent."""
        return (0.0, 1.0, 0.0, 0.0)

    def df_most(self, documents: int) -> float:
        """Return in how many of so many documents a word may stand; all, while they are few."""
        return self.max_df * documents if documents >= DF_KNOWN else math.inf

    @property
    def alpha_0(self) -> float:
        """Prior of a topic in a document to begin with."""
        return self.doc_topic_prior or 5.0 / self.topics

    @property
    def tiers(self) -> Tiers:
        """Which counts a word has: one for each topic, once it has any."""
        return Tiers(2, (0,), (self.topics,), sums=False)


# A model's settings are a struct of its own, told apart by ``kind``: a further model is a further
# struct here and a further member of the union.
ModelConfig: TypeAlias = LrConfig | FmConfig | MfConfig | LdaConfig
MODELS: Final[dict[str, type[ModelConfig]]] = {
    "lr": LrConfig,
    "fm": FmConfig,
    "mf": MfConfig,
    "lda": LdaConfig,
}
