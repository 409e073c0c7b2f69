"""What is asked of a model while it is learned: best items, predictions, topics of documents.

Each request is answered in the lane that learns, between two minibatches (or two buckets of a
further pass), so that all of an answer is of one moment; learning waits for it meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.config import JobConfig, LdaConfig, MfConfig
from streamlearn.factorized import ids_of
from streamlearn.messages import F32, I64, U64
from streamlearn.model import Model
from streamlearn.net.http import Answers, Ask, AskedError
from streamlearn.online.lda import LdaSolver
from streamlearn.online.mf import MfSolver, numbers_of, scored
from streamlearn.online.ratings import rating_keys
from streamlearn.shards.table import ExactTable
from streamlearn.topic_serving import AskedDocument, DocumentReader, topics_of_documents

__all__ = ["Serving"]

# Items that one user may be given.
ITEMS_MAX: Final = 1000
# Ratings predicted for one request: learning waits for about half a second.
SCORES_MAX: Final = 1 << 24

Question = Mapping[str, Any]


class _Wanted(NamedTuple):
    """A question about best items."""

    user: str
    n: int
    excluded: list[str]


class Serving:
    """Answers questions of who reads HTTP, once there is a model.

    Parameters
    ----------
    age : callable
        Seconds since something was learned.

    Attributes
    ----------
    scored : callable
        Returns the scores of pairs of users and items (uint64[n, 2]), where nothing is learned
        meanwhile; for who moves rows out of the table to replace.
    """

    def __init__(self, age: Callable[[], float]) -> None:
        self._age = age
        self._model: Model | None = None
        self._run: Callable[..., Awaitable[Any]]
        self._documents: DocumentReader | None = None
        self.scored: Callable[[U64], F32]

    def paths(self, job: JobConfig) -> dict[str, Ask]:
        """Return by path who answers there: nobody, unless mf or lda is learned."""
        if isinstance(job.model, LdaConfig):
            return {"/predict": self.topics}
        if not isinstance(job.model, MfConfig) or job.model.epsilon:
            return {}  # each answer of a private model would tell of a further sample
        return {"/recommend": self.recommend, "/predict": self.predict}

    def attach(self, model: Model, run: Callable[..., Awaitable[Any]]) -> None:
        """Say what answers.

        Parameters
        ----------
        model : Model
            One that is neither a factorization nor of topics is not asked.
        run : callable
            Runs a function with its arguments where nothing is learned meanwhile.
        """
        solver = model.solver
        if isinstance(solver, MfSolver):
            self._model, self._run = model, run
            self.scored = partial(scored, solver)
        if isinstance(solver, LdaSolver):
            self._model, self._run = model, run
            self._documents = DocumentReader(model.job.source)

    def detach(self) -> None:
        """Answer nothing from now on."""
        self._model = None

    async def recommend(self, questions: Sequence[Question]) -> Answers:
        """Return the best items of users: ``user``, and perhaps ``n`` and ``exclude``.

        Raises
        ------
        AskedError
            A question is wrong (400), there are too many (400), or no model yet (503).
        """
        wanted = [_wanted(question) for question in questions]
        return await self._answer(self._recommend, wanted)

    async def predict(self, questions: Sequence[Question]) -> Answers:
        """Return the predictions of pairs: ``user`` and ``item``.

        Raises
        ------
        AskedError
            As for :meth:`recommend`.
        """
        for question in questions:
            _only(question, ("user", "item"))
        pairs = [(_token(question, "user"), _token(question, "item")) for question in questions]
        return await self._answer(self._predict, pairs)

    async def topics(self, questions: Sequence[Question]) -> Answers:
        """Return the topics of documents: ``text`` or ``words``, and perhaps ``n``.

        Raises
        ------
        AskedError
            As for :meth:`recommend`.
        """
        reader = self._documents
        documents = [] if reader is None else [reader.read(question) for question in questions]
        return await self._answer(self._topics, documents)

    async def _answer(self, function: Callable[..., Answers], questions: Sequence[Any]) -> Answers:
        if self._model is None:
            raise AskedError(503, "there is no model to ask: not yet, or not any more")
        answers: Answers = await self._run(function, self._model, questions)
        return answers

    # ---------------------------------------------------------------- where nothing is learned

    def _recommend(self, model: Model, questions: list[_Wanted]) -> Answers:
        items = _items(model)
        if len(questions) * len(items) > SCORES_MAX and len(questions) > 1:
            raise AskedError(
                400,
                f"{len(questions):,} users and {len(items):,} items are more predictions than the "
                f"{SCORES_MAX:,} of a request: ask for fewer users at once",
            )
        found = [self._best(model, items, question) for question in questions]
        return Answers(found, self._about(model))

    def _best(self, model: Model, items: U64, question: _Wanted) -> dict[str, Any]:
        user_keys, item_keys = _keys([question.user], question.excluded)
        pairs = np.stack([np.broadcast_to(user_keys, items.shape), items], axis=1)
        scores = self.scored(pairs)
        scores[np.isin(items, item_keys)] = np.nan
        best = _order(scores)[: question.n]
        predicted = model.validation.predictions(scores[best])
        names = ids_of(model, items[best])
        return {
            "user": question.user,
            "known": bool(_met(model, user_keys)[0]),
            "items": [
                {"item": name, "score": score}
                for name, score in zip(names, predicted.tolist(), strict=True)
            ],
        }

    def _predict(self, model: Model, pairs: list[tuple[str, str]]) -> Answers:
        users, items = [user for user, _ in pairs], [item for _, item in pairs]
        keys = np.stack(_keys(users, items), axis=1)
        predicted = model.validation.predictions(self.scored(keys)).tolist()
        met = _met(model, keys.reshape(-1)).reshape(-1, 2).tolist()
        found = [
            {"user": user, "item": item, "prediction": value, "known": {"user": u, "item": i}}
            for (user, item), value, (u, i) in zip(pairs, predicted, met, strict=True)
        ]
        return Answers(found, self._about(model))

    def _topics(self, model: Model, documents: list[AskedDocument]) -> Answers:
        assert isinstance(model.solver, LdaSolver)
        return Answers(topics_of_documents(model.solver, documents), self._about(model))

    def _about(self, model: Model) -> dict[str, Any]:
        """Say which model an answer is of, and how old what it knows is."""
        return {
            "model": {
                "kind": model.job.model.kind,
                "version": model.counts.examples,
                "pass": model.epoch + 1,
                "age_seconds": round(self._age(), 3),
            }
        }


def _items(model: Model) -> U64:
    """Return the keys of the items that a model holds, in the order in which they were met."""
    assert isinstance(model.solver, MfSolver)
    assert isinstance(model.table, ExactTable)
    keys = model.solver.item_keys
    return keys[model.table.find(keys) >= 0]


def _met(model: Model, keys: U64) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say of keys whether ratings of them were learned."""
    table = model.table
    assert isinstance(table, ExactTable)
    slots = table.find(keys)
    met = slots >= 0
    met[met] = numbers_of(table.rows_at(slots[met])[:, 1]) > 0
    return met


def _keys(users: list[str], items: list[str]) -> tuple[U64, U64]:
    nobody = np.zeros(0, np.uint64)
    user_keys = rating_keys(users, users)[0] if users else nobody
    return user_keys, rating_keys(items, items)[1] if items else nobody


def _order(scores: F32) -> I64:
    """Return the places of scores that are numbers, the highest first, of equals the first."""
    order = np.argsort(-scores, kind="stable")
    return order[: len(scores) - int(np.isnan(scores).sum())]


# ---------------------------------------------------------------- questions


def _wanted(question: Question) -> _Wanted:
    _only(question, ("user", "n", "exclude"))
    n = question.get("n", 10)
    if isinstance(n, str) and n.isdecimal():
        n = int(n)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= ITEMS_MAX:
        raise AskedError(400, f"n is {n!r}, expected a whole number from 1 to {ITEMS_MAX:,}")
    excluded = question.get("exclude", [])
    if not isinstance(excluded, list):
        excluded = [excluded]
    items = [_token({"exclude": item}, "exclude") for item in excluded]
    return _Wanted(_token(question, "user"), n, items)


def _token(question: Question, name: str) -> str:
    """Return a user or an item of a question."""
    value = question.get(name)
    if value is None or value == "":
        raise AskedError(400, f"{name} is missing")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise AskedError(400, f"{name} is {value!r}, expected a text or a whole number")
    return value


def _only(question: Question, names: tuple[str, ...]) -> None:
    """Refuse a question that says what nobody asked for."""
    for name in question:
        if name not in names:
            raise AskedError(400, f"{name!r} means nothing here, only {', '.join(names)} do")
