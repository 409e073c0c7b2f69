"""What an estimator of ratings has learned: a factorization with its users, items and history."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np

from streamlearn.config import JobConfig, MfConfig, SourceConfig
from streamlearn.errors import SnapshotError, TableFullError
from streamlearn.factorized import Places, factorized
from streamlearn.learned import job_with, open_model, pack, read_beside, save_model, unpack
from streamlearn.messages import F32, F64, U64
from streamlearn.model import Model
from streamlearn.online.ids import KINDS, Column, Ids, Pairs, named, read_column
from streamlearn.online.losses import new_validation
from streamlearn.online.mappings import Examples
from streamlearn.online.mf import MfSolver, scored
from streamlearn.online.progressive import Validation
from streamlearn.online.solvers import new_solver
from streamlearn.privacy import refuse_more
from streamlearn.ranking import Ranking, seen_by
from streamlearn.seen import SeenRatings
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable
from streamlearn.strata.passes import Passes
from streamlearn.strata.patience import Patience
from streamlearn.strata.ratings import KeptRatings
from streamlearn.tables import ratings_bytes_max

__all__ = ["LearnedRatings"]

# As the command line's: what is learned then is the same, bit by bit.
_ROWS_MAX: Final = 4096
_NOTHING: Final = Nothing()
_SEEN: Final = "seen.npz"
# Keys of users, and of items, that are remembered, some 150 bytes each.
_KEYS_MAX: Final = 1 << 17


class LearnedRatings:
    """A factorization in memory, learned by one thread; predicting alone may be done by several.

    Parameters
    ----------
    model : Model
        Of kind ``mf``.

    Attributes
    ----------
    ids : dict of str to Ids
        Of ``user`` and ``item``.
    seen : SeenRatings
    remembers : bool
        Whether what is learned is taken note of there.
    loaded : Path
        Where it was loaded from, if it was.
    passes : list of dict
        Of the last fit: number, step and figures of each pass, and those of held-out ratings.
    """

    def __init__(self, model: Model) -> None:
        assert isinstance(model.table, ExactTable)
        assert isinstance(model.solver, MfSolver)
        model.names.use_fields(KINDS)
        self.model = model
        self.table = model.table
        self.solver = model.solver
        self.ids = {kind: Ids() for kind in KINDS}
        self.seen = SeenRatings()
        self.remembers = True
        self.loaded = Path()
        self.passes: list[dict[str, Any]] = []
        self._batch = Examples(_ROWS_MAX, 2 * _ROWS_MAX)
        self._scratch = self.solver.scratch(_ROWS_MAX, 0)
        self._one = Examples(1, 2)
        self._one.hold(1, 2)
        self._one_scratch = self.solver.scratch(1, 0)
        self._keys: dict[str, dict[Any, int]] = {kind: {} for kind in KINDS}
        self._dropped = 0
        self._ranked: tuple[U64, list[Any], Ranking] | None = None

    def use(self, job: JobConfig) -> None:
        """Go on with other rates."""
        self.model.job = job_with(self.model.job, job)
        self.model.solver = new_solver(self.config, self.table)
        assert isinstance(self.model.solver, MfSolver)
        self.solver = self.model.solver

    @property
    def config(self) -> MfConfig:
        """The settings of the model."""
        model = self.model.job.model
        assert isinstance(model, MfConfig)
        return model

    # --- learning

    def learn(self, pairs: Pairs, ratings: F32, weights: F32) -> None:
        """Learn ratings, one after the other, those of weight 0 left out.

        Raises
        ------
        TableFullError
            There is no room for a new user or item.
        ConfigError
            The model is private.
        """
        refuse_more(self.config, self.loaded)
        rows = np.flatnonzero(weights)
        if self.remembers:
            self.seen.add(pairs.keys[rows])
        try:
            for first in range(0, len(rows), _ROWS_MAX):
                self._learn(pairs, ratings, weights, rows[first : first + _ROWS_MAX])
        finally:
            self._say_dropped()

    def learn_one(self, user: Any, item: Any, rating: float, weight: float) -> None:
        """Learn one rating, a float32, of a weight that is not 0."""
        refuse_more(self.config, self.loaded)
        keys = self.key("user", user), self.key("item", item)
        if self.remembers:
            self.seen.add_one(*keys)
        batch, scratch, model = self._one, self._one_scratch, self.model
        batch.keys[0], batch.keys[1] = keys
        batch.labels[0], batch.weights[0] = rating, weight
        self._ranked = None
        scores = self.solver.learn(batch, scratch, _NOTHING, 0)
        model.validation.update(scores, batch.labels, batch.weights)
        model.counts.examples += 1
        if scratch.state[4]:
            self._dropped, scratch.state[4] = 1, 0
            self._say_dropped()
        if scratch.fresh[0]:
            columns = Column([user], batch.keys[:1]), Column([item], batch.keys[1:])
            self._meet(Pairs(*columns, None), [0])

    def key(self, kind: str, one: Any) -> int:
        """Return the key of a user or an item."""
        if type(one) is not str and type(one) is not int:  # True would be taken for 1
            return int(read_column(kind, [one]).keys[0])
        known = self._keys[kind]
        key = known.get(one)
        if key is None:
            if len(known) >= _KEYS_MAX:
                known.clear()
            key = known[one] = int(read_column(kind, [one]).keys[0])
        return key

    def fit(self, pairs: Pairs, ratings: F32, weights: F32, lanes: int) -> None:
        """Learn ratings as :meth:`learn` does, then sweep them until all passes are made.

        Parameters
        ----------
        lanes : int
            Threads of the further passes.
        """
        self.passes.clear()
        with tempfile.TemporaryDirectory(prefix="streamlearn.") as directory:
            kept = KeptRatings(ratings_bytes_max(self.model.job), Path(directory))
            try:
                self.solver.recorder = kept.add
                started = time.monotonic()
                self.learn(pairs, ratings, weights)
                self._note(0, started, self.model.validation, self._held_out(kept))
                if self.config.epochs > 1 and kept.count:
                    self._sweep_all(kept, lanes, Path(directory))
            finally:
                self.solver.recorder = None
                kept.close()
                self._ranked = None
                self._say_dropped()

    def _learn(self, pairs: Pairs, ratings: F32, weights: F32, rows: Any) -> None:
        batch, n = self._batch, len(rows)
        batch.keys[: 2 * n : 2] = pairs.users.keys[rows]
        batch.keys[1 : 2 * n : 2] = pairs.items.keys[rows]
        batch.labels[:n], batch.weights[:n] = ratings[rows], weights[rows]
        batch.hold(n, 2 * n)
        self._ranked = None
        try:
            self.solver.learn(batch, self._scratch, _NOTHING, 0)
        except TableFullError:
            self._learned(pairs, rows[: int(self._scratch.state[0])])
            raise
        self._learned(pairs, rows)

    def _learned(self, pairs: Pairs, rows: Any) -> None:
        """Take note of the first ratings of the minibatch, which are learned."""
        model, batch, scratch, n = self.model, self._batch, self._scratch, len(rows)
        model.validation.update(scratch.scores[:n], batch.labels[:n], batch.weights[:n])
        model.counts.examples += n
        self._dropped += int(scratch.state[4])
        scratch.state[4] = 0
        fresh = rows[np.flatnonzero(scratch.fresh[:n])].tolist()
        if fresh:
            self._meet(pairs, fresh)

    def _meet(self, pairs: Pairs, rows: list[int]) -> None:
        """Take note of the ids in some rows."""
        self.model.names.insert(named(pairs, rows))
        for kind, column in zip(KINDS, pairs[:2], strict=True):
            self.ids[kind].meet(column, rows)

    def _say_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            warnings.warn(
                f"{dropped:,} ratings taught nothing, as they were predicted to be no finite "
                "number: the model diverges; lower alpha, or raise l2",
                RuntimeWarning,
                stacklevel=5,
            )

    # --- further passes

    def _sweep_all(self, kept: KeptRatings, lanes: int, directory: Path) -> None:
        model, config = self.model, self.config
        sweeps = Passes(
            config, self.table, kept, self.solver.intercept, lanes=lanes,
            bytes_max=ratings_bytes_max(model.job), directory=directory,
        )  # fmt: skip
        patience = Patience(config.patience)
        try:
            for epoch in range(1, config.epochs):
                started = time.monotonic()
                validation = new_validation(config, model.job.output.window)
                for bucket in range(sweeps.buckets):
                    count, dropped = sweeps.sweep(bucket, epoch, validation)
                    model.counts.examples += count
                    self._dropped += dropped
                model.validation, model.epoch, model.swept = validation, epoch, -1
                held = sweeps.held_out(model.job.output.window)
                self._note(epoch, started, validation, held)
                loss = held.summary()["loss"] if held is not None else None
                if patience.ended(epoch, loss, sweeps.rows):
                    break
            patience.restore(sweeps.rows)
        finally:
            sweeps.close()

    def _held_out(self, kept: KeptRatings) -> Validation | None:
        keys, ratings, weights = kept.held_out.all()
        if not len(ratings):
            return None
        validation = new_validation(self.config, self.model.job.output.window)
        validation.update(scored(self.solver, keys), ratings, weights)
        return validation

    def _note(
        self, epoch: int, started: float, validation: Validation, held: Validation | None
    ) -> None:
        """Remember a pass's figures."""
        summary = validation.summary()
        told = {
            "pass": epoch + 1,
            "step": self.config.alpha / (epoch + 1) ** self.config.decay,
            **validation.headlines(summary),
            "seconds": time.monotonic() - started,
        }
        if held is not None:
            figures = held.headlines(held.summary())
            told |= {f"held_out_{name}": value for name, value in figures.items()}
        self.passes.append(told)

    # --- predicting

    def predict(self, keys: U64) -> F64:
        """Return the predictions of pairs, uint64[n, 2]."""
        return self.model.validation.predictions(scored(self.solver, keys))

    def predict_one(self, user: Any, item: Any) -> float:
        """Return the prediction of one user and item."""
        batch = Examples(1, 2)
        batch.keys[0], batch.keys[1] = self.key("user", user), self.key("item", item)
        batch.hold(1, 2)
        return self.model.validation.prediction(
            self.solver.score(batch, self.solver.scratch(1, 0))[0]
        )

    def recommend(self, users: Column, n: int, *, unseen: bool) -> tuple[list[list[Any]], F64]:
        """Return the best items of users.

        Parameters
        ----------
        unseen : bool
            Whether what a user has rated is left out.

        Returns
        -------
        list of list
            Ids of items, as many as there are for that user, n at most.
        float64[users, min(n, items)]
            Predictions; NaN where there is no item.
        """
        keys, ids, ranking = self._ranking()
        unique, whose = np.unique(users.keys, return_inverse=True)
        seen = None
        if unseen and self.seen.count:
            seen = seen_by(self.seen.pairs(unique, Places(keys)), len(unique))
        best, scores = ranking.best(self.model.embeddings_at(unique), n, seen)
        scores += (self.model.weights_at(unique) + np.float32(self.solver.intercept))[:, None]
        best, scores = best[whose], scores[whose]
        predicted = self.model.validation.predictions(scores.reshape(-1)).reshape(scores.shape)
        found = [[ids[item] for item in row if item >= 0] for row in best.tolist()]
        return found, predicted

    def _ranking(self) -> tuple[U64, list[Any], Ranking]:
        """Return the keys of the items, their ids, and how they rank."""
        if self._ranked is None:
            keys = self.keys_of("item")
            ranking = Ranking(self.model.embeddings_at(keys), self.model.weights_at(keys))
            self._ranked = keys, self.give_back("item", keys), ranking
        return self._ranked

    def keys_of(self, kind: str) -> U64:
        """Return the keys of users or items that the model holds, in the order of their coming."""
        if kind == "item":
            keys = self.solver.item_keys
            found: U64 = keys[self.table.find(keys) >= 0]
            return found
        return factorized(self.model, factors=False).users.keys

    def give_back(self, kind: str, keys: U64) -> list[Any]:
        """Return ids as they were handed in.

        Raises
        ------
        ValueError
            One was not kept.
        """
        names = self.model.names.lookup(keys)
        missing = sum(name is None for name in names)
        if missing:
            raise ValueError(
                f"the ids of {missing:,} {kind}s were not kept, as there are more than names_max = "
                f"{self.model.names.names_max:,} ids: raise it and fit again"
            )
        texts = [name.partition("=")[2] for name in names if name is not None]
        return self.ids[kind].give_back(keys, texts)

    # --- keeping it

    def save(self, path: Path, state: dict[str, Any], now: float) -> None:
        """Write a snapshot into ``path/model``, and beside it ``state`` and what users have rated.

        Parameters
        ----------
        now : float
            Seconds since the epoch.
        """
        source = SourceConfig(format="ratings")
        if self.model.job.source.format != "ratings":
            self.model.job = msgspec.structs.replace(self.model.job, source=source)
        kinds = {kind: sorted(ids.kinds) for kind, ids in self.ids.items()}
        save_model(self.model, path, state | {"ids": kinds, "kinds": {}}, now)
        seen = path / _SEEN
        try:
            if not self.seen.count:
                seen.unlink(missing_ok=True)
                return
            partial = path / f".{_SEEN}"
            arrays: dict[str, Any] = self.seen.state()
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.replace(seen)
        except OSError as error:
            raise SnapshotError(f"cannot write {seen}", cause=error.strerror) from error

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """Open the newest snapshot of ``path/model``; return it with what stood beside it."""
        self = cls(open_model(path, "mf"))
        self.loaded = path
        state = read_beside(path, "ids")
        if state is None:
            for ids in self.ids.values():
                ids.kinds.add("text")
            return self, {"feature_names_in": None, "n_features_in": None}
        for kind, ids in self.ids.items():
            ids.kinds.update(state["ids"][kind])
        seen = path / _SEEN
        try:
            if seen.exists():
                with np.load(seen) as arrays:
                    self.seen.restore(dict(arrays))
        except (OSError, ValueError) as error:
            raise SnapshotError(f"{seen} cannot be read", cause=str(error)) from error
        return self, state

    def __getstate__(self) -> dict[str, Any]:
        """Return all that is not made again: equal for equal models."""
        return pack(self.model) | {
            "ids": self.ids,
            "seen": self.seen.state(),
            "remembers": self.remembers,
            "told": self.passes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the table anew."""
        self.__init__(unpack(state))  # type: ignore[misc]
        self.ids, self.remembers, self.passes = state["ids"], state["remembers"], state["told"]
        self.seen.restore(state["seen"])
