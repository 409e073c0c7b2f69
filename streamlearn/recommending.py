"""Recommending: the best items of users, without what sources say that they have rated."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from streamlearn.config import JobConfig
from streamlearn.errors import ResourceError
from streamlearn.factorized import Places, Side, factorized, ids_of, need_factorization
from streamlearn.messages import F32, U64
from streamlearn.model import Model, load
from streamlearn.online.losses import validation_of
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.ratings import rating_keys
from streamlearn.ranking import Ranking, seen_by
from streamlearn.scoring import read_records
from streamlearn.tables import ratings_bytes_max
from streamlearn.training import with_lanes

__all__ = ["Recommended", "recommend"]

_log = logging.getLogger("streamlearn.recommending")

# Users whose items are told at a time.
_PIECE: Final = 1024
# Among more ids none is looked for that is like an unknown one: each takes some 10 us.
_IDS_COMPARED_MAX: Final = 100_000

# Told of a user: their id, the ids of the items, the best first, and the predictions.
Recommended = Callable[[str, Sequence[str], Sequence[float]], None]


async def recommend(
    directory: Path, job: JobConfig, users: Sequence[str] | None, n: int, out: Recommended
) -> dict[str, Any]:
    """Tell of the best items of users, by the newest snapshot of an output directory.

    Parameters
    ----------
    job : JobConfig
        With the sources that say what each user has rated, which is left out; none: all items.
    users : sequence of str or None
        Ids, of which each counts once; those that the model does not know are given the items of
        highest bias. None: all that it knows.
    n : int
        Items for each, as far as there are.
    out : callable
        Told of each user, in order.

    Returns
    -------
    dict
        How many users, unknown ones, items, ratings left out and recommendations there were.

    Raises
    ------
    ConfigError
        There is no model, or it is no factorization.
    ResourceError
        The ratings that are left out do not fit ``tables.ratings_bytes_max``.
    """
    started = time.monotonic()
    compute = msgspec.structs.replace(job.compute, learn_lanes=1)
    job = with_lanes(msgspec.structs.replace(job, compute=compute))
    model = await asyncio.to_thread(load, directory, job, mended=True)
    need_factorization(model, "recommend")
    known = factorized(model)
    if users is None:
        asked, keys = ids_of(model, known.users.keys), known.users.keys
    else:
        asked = list(dict.fromkeys(users))
        keys = rating_keys(asked, asked)[0] if asked else known.users.keys[:0]
    rows = Places(known.users.keys).find(keys)
    pairs = np.zeros(0, np.uint64)
    if job.source.uri:
        rated = _Rated(keys, known.items, ratings_bytes_max(job))
        await read_records(job, model, rated.add)
        pairs = rated.pairs()
    told = {
        "users": len(asked),
        "users_unknown": int((rows < 0).sum()),
        "items": len(known.items.keys),
        "seen": len(pairs),
        "recommendations": 0,
    }
    seen = seen_by(pairs, len(asked))
    ranking = Ranking(known.items.factors, known.items.biases)
    item_ids = ids_of(model, known.items.keys)
    predictions = validation_of(model.job.model).predictions
    for first in range(0, len(asked), _PIECE):
        end = min(first + _PIECE, len(asked))
        factors, biases = _taken(known.users, rows[first:end])
        items, scores = ranking.best(factors, n, seen.of(first, end))
        scores += (biases + np.float32(known.mean))[:, None]
        for user, best, values in zip(asked[first:end], items, scores, strict=True):
            there = int((best >= 0).sum())
            out(
                user,
                [item_ids[item] for item in best[:there].tolist()],
                predictions(values[:there]).tolist(),
            )
            told["recommendations"] += there
    _say_unknown(asked, rows < 0, known.users, model)
    return told | {"seconds": time.monotonic() - started}


def _taken(users: Side, rows: Any) -> tuple[F32, F32]:
    """Return factors and biases of users, zeros for those without a row."""
    factors: F32 = np.zeros((len(rows), users.factors.shape[1]), np.float32)
    biases: F32 = np.zeros(len(rows), np.float32)
    known = rows >= 0
    factors[known], biases[known] = users.factors[rows[known]], users.biases[rows[known]]
    return factors, biases


def _say_unknown(
    asked: Sequence[str], unknown: np.ndarray[Any, np.dtype[np.bool_]], users: Side, model: Model
) -> None:
    """Say how many users are unknown, and which is like the first of them, where that is cheap."""
    count = int(unknown.sum())
    if not count:
        return
    first = asked[int(np.argmax(unknown))]
    near: list[str] = []
    if len(users.keys) <= _IDS_COMPARED_MAX:
        near = get_close_matches(first, ids_of(model, users.keys), n=1)
    _log.warning(
        "%d of %d users are not in the model, %r the first%s: they are given the items of highest "
        "bias",
        count, len(asked), first, f" (did you mean {near[0]!r}?)" if near else "",
    )  # fmt: skip


class _Rated:
    """Which of the items that may be recommended were rated, of users who are asked about.

    Parameters
    ----------
    keys : uint64[users]
        Of those users.
    items : Side
    bytes_max : int
        Named limit (``tables.ratings_bytes_max``), 8 bytes a rating.
    """

    def __init__(self, keys: U64, items: Side, bytes_max: int) -> None:
        self._users, self._items = Places(keys), Places(items.keys)
        self._bytes_max = bytes_max
        self._found: list[U64] = []
        self._count = 0

    def add(self, _scores: F32, batch: Minibatch) -> None:
        """Note the ratings of a minibatch."""
        keys = batch.keys[: 2 * batch.rows].reshape(-1, 2)
        users, items = self._users.find(keys[:, 0]), self._items.find(keys[:, 1])
        both = (users >= 0) & (items >= 0)
        found = (users[both].astype(np.uint64) << np.uint64(32)) | items[both].astype(np.uint64)
        self._found.append(found)
        self._count += len(found)
        if 8 * self._count > self._bytes_max:
            raise ResourceError(
                f"{self._count:,} ratings are left out, 8 bytes each, but "
                f"tables.ratings_bytes_max = {self._bytes_max:,}",
                hint="raise tables.ratings_bytes_max, or name fewer users at once",
            )

    def pairs(self) -> U64:
        """Return users (upper half) and items (lower half), uint64[n], by their places."""
        return np.concatenate([np.zeros(0, np.uint64), *self._found])
