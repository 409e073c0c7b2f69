"""Settings of topic models."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from streamlearn.embeddings import TOPICS_MAX, Tiers
from streamlearn.kinds.shared import Added
from streamlearn.settings import about

__all__ = ["LdaConfig"]

# Documents from which on the share of those that have a word is taken for what it is.
DF_KNOWN: Final = 100


class LdaConfig(
    Added,
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
