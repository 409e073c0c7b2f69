"""Minibatches of a topic model between pull and push: counted, judged, drawn, and encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from streamlearn import columns, topic_columns
from streamlearn.cluster.preparing import Prepared, Pushed, Stepper
from streamlearn.cluster.users import Users
from streamlearn.compute.kernels import topic_priors
from streamlearn.compute.kernels.topic_pushes import document_counts
from streamlearn.config import DeepConfig, JobConfig, LdaConfig
from streamlearn.errors import ColumnError
from streamlearn.messages import F32, I32, I64, U32
from streamlearn.online.formats import Format
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.progressive import Validation
from streamlearn.online.topic_blocks import Priors
from streamlearn.online.topic_steps import Documents, LdaStep
from streamlearn.online.topic_validation import TopicValidation
from streamlearn.online.totals import AnyTotals
from streamlearn.protocol import Pulled, PulledTopics
from streamlearn.topic_columns import NO_TOPIC, U16, WordRows

__all__ = ["TopicStepper", "new_stepper"]

_EMPTY: Final = memoryview(b"")


def new_stepper(
    job: JobConfig, rows_max: int, validation: Validation, format: Format | None = None
) -> Stepper | TopicStepper:
    """Return what steps the minibatches of a job's model; see :class:`Stepper`.

    Parameters
    ----------
    format : Format, optional
        Of the records: a net is made for what they have.
    """
    if isinstance(job.model, DeepConfig):
        from streamlearn.cluster.deep_stepper import DeepStepper  # which brings torch

        assert format is not None, "a net is made for a format"
        return DeepStepper(job, rows_max, validation, format)
    if isinstance(job.model, LdaConfig):
        return TopicStepper(job.model, rows_max, validation)
    return Stepper(job, rows_max, validation)


class TopicStepper:
    """Counts the words of minibatches, or draws the topics of their tokens.

    Parameters
    ----------
    model : LdaConfig
    rows_max : int
        Documents of a minibatch.
    validation : Validation

    Attributes
    ----------
    last, dropped, users
        As of :class:`Stepper`: nothing.
    tokens : int
        Whose topics were drawn.
    """

    def __init__(self, model: LdaConfig, rows_max: int, validation: Validation) -> None:
        assert isinstance(validation, TopicValidation)
        self.users: Users | None = None
        self.last: tuple[float, float, int] = (np.nan, np.nan, 0)
        self.validation = validation
        self.dropped = 0
        self.tokens = 0
        self._model = model
        self._step = LdaStep(model)
        self._fits = False  # whether the first shard wants to know:
        self._fit = _EMPTY  # of the last minibatch
        self._beta = (-1, 0.0)
        self._scores: F32 = np.zeros(rows_max, np.float32)

    def step(
        self, prepared: Prepared, pulled: Sequence[Pulled], seed: int, epoch: int
    ) -> tuple[list[Pushed], AnyTotals]:
        """Count or learn a minibatch; see :meth:`Stepper.step`.

        Raises
        ------
        ColumnError
            A shard sent something else than topics.
        """
        batch, localized = prepared.cut.batch, prepared.buffers.localized
        before = self.validation.sums()
        online = self._model.epochs == 1
        documents: U32 | None = None
        if epoch == 0:
            documents = np.zeros(localized.unique, np.uint32)
            document_counts(localized.inverse, batch.indptr, batch.rows, documents)
        there: I64 = np.zeros(localized.unique, np.int64)
        topics: U16 = np.zeros(0, np.uint16)
        self._fit = _EMPTY
        if online or epoch:
            there, topics = self._draw(prepared, pulled, online=online)
        elif batch.rows:
            self.validation.add_sums(0.0, 0, batch.rows)
        if batch.rows:
            self.last = (
                np.nan,
                np.nan,
                int(batch.indptr[batch.rows] - batch.indptr[batch.rows - 1]),
            )
        pushed = self._pushed(prepared, pulled, documents, there, topics)
        return pushed, self.validation.totals_of(self.validation.sums() - before)

    def _draw(
        self, prepared: Prepared, pulled: Sequence[Pulled], *, online: bool
    ) -> tuple[I64, U16]:
        """Draw topics; return which words have some, and those of their tokens."""
        batch, localized = prepared.cut.batch, prepared.buffers.localized
        there, rows, priors, old = self._decode(prepared, pulled)
        number = np.where(there != 0, np.cumsum(there != 0) - 1, -1)
        words = number[localized.inverse]
        known = words >= 0
        if len(old) != int(np.count_nonzero(known)):
            raise ColumnError(f"topics of {len(old)} tokens, of {np.count_nonzero(known)}")
        if online and batch.rows:
            self._step.judge(batch, words, rows, priors, self._scores)
            scores = self._scores[: batch.rows]
            self.validation.update(scores, scores, batch.weights[: batch.rows])
        topics: U16 = np.zeros(0, np.uint16)
        if known.any():
            of = np.repeat(np.arange(batch.rows), np.diff(batch.indptr[: batch.rows + 1]))
            lengths: I32 = np.bincount(of[known], minlength=batch.rows).astype(np.int32)
            documents = Documents(words[known].astype(np.uint32), lengths, len(rows))
            topics, swept, fit = self._step.draw(documents, rows, priors, old, _key(prepared.place))
            self.tokens += len(topics)
            if self._fits:
                self._fit = fit.view(np.uint8).data
            if not online:
                self.validation.add_sums(-swept.log_likelihood, swept.tokens, batch.rows)
        elif not online and batch.rows:
            self.validation.add_sums(0.0, 0, batch.rows)
        return there, topics

    def _decode(
        self, prepared: Prepared, pulled: Sequence[Pulled]
    ) -> tuple[I64, WordRows, Priors, U16]:
        """Return which words have topics, their counts, the priors, and the tokens' topics."""
        localized, k = prepared.buffers.localized, self._model.topics
        there: I64 = np.zeros(localized.unique, np.int64)
        totals: I64 = np.zeros(k, np.int64)
        old: list[U16] = []
        vectors, sizes, words = [], [], 0
        told = [answer for answer in pulled if isinstance(answer, PulledTopics)]
        if len(told) != len(pulled):
            raise ColumnError("a shard answered without topics")
        for part, answer in zip(prepared.parts, told, strict=True):
            own = columns.decode_lengths(answer.lengths, part.count, (k,))
            there[part.first : part.end] = own
            totals += topic_columns.decode_totals(answer.totals, k)
            vectors.append(answer.vectors)
            sizes.append(int(np.count_nonzero(own)))
            words += answer.words
            tokens = int(localized.counts[part.first : part.end][own != 0].sum(dtype=np.int64))
            if len(answer.topics):
                old.append(topic_columns.decode_topics(answer.topics, tokens, k, whole=False))
            else:
                old.append(np.full(tokens, NO_TOPIC, np.uint16))
        rows = WordRows(vectors, sizes, k)
        alpha = np.full(k, self._model.alpha_0)
        self._fits = len(told[0].alpha) > 0
        if self._fits:
            alpha = topic_columns.decode_floats(told[0].alpha, k).copy()
        beta = self._fitted_beta(told, totals, words, prepared.place[1])
        return there, rows, Priors(alpha, beta, totals, words), np.concatenate(old)

    def _fitted_beta(
        self, told: Sequence[PulledTopics], totals: I64, words: int, epoch: int
    ) -> float:
        """Return beta, fitted once a pass to what all shards say."""
        if not all(len(answer.tallies) for answer in told):
            return self._model.topic_word_prior
        if self._beta[0] != epoch:
            tallied = sum(topic_columns.decode_tallies(answer.tallies) for answer in told)
            beta = topic_priors.fit_beta(self._model.topic_word_prior, tallied, totals, words)
            self._beta = epoch, float(beta)
        return self._beta[1]

    def _pushed(
        self,
        prepared: Prepared,
        pulled: Sequence[Pulled],
        documents: U32 | None,
        there: I64,
        topics: U16,
    ) -> list[Pushed]:
        counts, first = prepared.buffers.localized.counts, 0
        pushed: list[Pushed] = []
        for part, answer in zip(prepared.parts, pulled, strict=True):
            own = slice(part.first, part.end)
            end = first + int(counts[own][there[own] != 0].sum(dtype=np.int64))
            met = _EMPTY if documents is None else columns.encode_counts(documents[own]).data
            pushed.append(
                Pushed(
                    _EMPTY,
                    columns.encode_counts(counts[own]).data,
                    answer.lengths,
                    documents=met,
                    topics=topic_columns.encode_topics(topics[first:end], self._model.topics).data,
                    fit=_EMPTY if pushed else self._fit,
                )
            )
            first = end
        return pushed

    def close(self) -> None:
        """End what it computes with: nothing."""

    def try_out(self, batch: Minibatch, localized: Localized) -> None:
        """Step a minibatch, so that kernels are there when they are needed."""
        k, unique = self._model.topics, localized.unique
        if not unique:
            return
        vectors = topic_columns.encode_rows(np.zeros(k, np.int32), np.zeros(unique, np.int64), k)
        rows = WordRows([vectors], [unique], k)
        priors = Priors(np.full(k, 0.1), 0.1, np.zeros(k, np.int64), unique)
        words = localized.inverse.astype(np.uint32)
        lengths = np.diff(batch.indptr[: batch.rows + 1]).astype(np.int32)
        old: U16 = np.full(len(words), NO_TOPIC, np.uint16)
        self._step.judge(batch, words.astype(np.int64), rows, priors, self._scores)
        drawn = self._step.draw(Documents(words, lengths, unique), rows, priors, old, 0)
        coded = topic_columns.encode_topics(drawn.topics, k)
        topic_columns.decode_topics(coded, len(words), k, whole=True)
        document_counts(localized.inverse, batch.indptr, batch.rows, np.zeros(unique, np.uint32))
        self.validation.summary()


def _key(place: tuple[str, int, int]) -> int:
    """Return what the draws of a minibatch are keyed by."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 8
