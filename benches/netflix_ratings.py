"""Make ratings shaped like the Netflix prize's, of any number, with a known truth.

    python benches/netflix_ratings.py --ratings 20000000 --held-out 0.1 .bench/netflix.dat

A rating is a user, an item, one to five stars and a timestamp, in a format of MovieLens (``dat``:
``user::item::rating::timestamp``, ``tab``, ``csv``), in LIBMF's, or as arrays (``npz``). What is
drawn is shaped after the Netflix prize's data:

* a user rates an item with probability c x y / (1 + c x y), which is the distribution of largest
  entropy for given degrees. The logarithm of the user's x is normal (with a few that rate nearly
  everything), the item's y is a power law of its rank. Their constants are fitted to that data: a
  mean of 209 ratings a user and a median of 96, 17,600 at most; the commonest item is rated by 48 %
  of the users, the median rating is of an item that 12 % rated, the median item has 560 ratings.
  No pair is there twice. Ids are shuffled, so they say nothing of degrees.
* stars are a mean, a bias of the user, one of the item, and the inner product of their RANK
  factors, with normal noise, rounded and cut to 1 ... 5: mean 3.60, standard deviation 1.08.

The truth predicts the expected stars of a pair; nothing predicts with a smaller RMSE, about 0.845.

By default there are 17,770 items, and users in proportion. Deterministic: who rates what, a pair's
stars, timestamp and whether it is held out come from the arguments alone, and are the same in each
format and order. With ``--held-out`` a hash of the pair decides which ratings go to a second file,
``OUT.held.EXT``; a user or an item that would have no rating left keeps all of them. Beside OUT
stands OUT.json: the arguments, and of each file its ratings and the RMSE and MAE of the truth.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numba import njit, uint64

__all__ = [
    "FORMS",
    "Drawn",
    "Order",
    "Ratings",
    "draw",
    "generate",
    "held_path",
    "users_for",
    "write",
]

USERS, ITEMS, RATINGS = 480_189, 17_770, 100_480_507
# log x = ACTIVITY z + TAIL max(z - TAIL_FROM, 0)**2 for a normal z, cut off below LAZIEST, where
# some three ratings are expected; y = (1 + rank / HEAD)**-POPULARITY.
ACTIVITY, LAZIEST = 1.877, -2.0
TAIL, TAIL_FROM = 8.0, 4.0
POPULARITY, HEAD = 1.975, 129.6
# Before rounding and cutting. Means and deviations are over ratings: frequent ones count more.
MEAN, NOISE = 3.669, 0.888
USER_DEVIATION = ITEM_DEVIATION = 0.444
FACTORS_DEVIATION = 0.456
RANK = 12  # the k-th factor has a variance proportional to 1 / k
# Half a day before the first and half a day after the last day of the Netflix prize's.
FIRST_SECOND, SECONDS = 942_278_400, 2_243 * 86_400

RATING_BYTES_MAX = 48  # ten digits each of user, item and timestamp, stars, separators
BLOCK_RATINGS = 1 << 18
GRID = 4096
# Odd, to tell streams of one seed apart; kernels have it as an argument.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Form:
    """How a text format says a rating: what is between fields, and what follows the stars."""

    header: bytes
    between: bytes
    after_stars: bytes
    timestamps: bool


FORMS = {
    "dat": Form(b"", b"::", b"", timestamps=True),
    "tab": Form(b"", b"\t", b"", timestamps=True),
    "csv": Form(b"userId,movieId,rating,timestamp\n", b",", b".0", timestamps=True),
    "libmf": Form(b"", b" ", b"", timestamps=False),
}
Order: TypeAlias = Literal["user", "item", "time"]


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings in the order of their file.

    Attributes
    ----------
    users, items : int32[n]
        From 1.
    stars : uint8[n]
    timestamps : uint32[n]
    """

    users: np.ndarray
    items: np.ndarray
    stars: np.ndarray
    timestamps: np.ndarray


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn: ratings to learn from, ratings that are held out, what is known of both."""

    learned: Ratings
    held_out: Ratings
    known: dict[str, Any]


@njit(nogil=True, cache=True, inline="always")
def _mix(x):
    """Mix 64 bits (splitmix64's finaliser); bijective."""
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return x ^ (x >> uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _uniform(x):
    """Turn 64 bits into a float64 in (0, 1]."""
    return np.float64((x >> uint64(11)) + uint64(1)) * 1.1102230246251565e-16


@njit(nogil=True, cache=True, inline="always")
def _pair(user, item, seed):
    """Return the state that a pair's draws start from."""
    return _mix(seed ^ _mix(uint64(user) << uint64(32) | uint64(item)))


@njit(nogil=True, cache=True)
def _draw_pairs(activity, popularity, by_rank, seed, golden, users, items):
    """Draw which pairs there are; return how many.

    Parameters
    ----------
    activity : float64[users]
        c x of each user.
    popularity : float64[ranks]
        y, descending.
    by_rank : int32[ranks]
        The item of each rank.
    seed, golden : uint64
    users, items : int32[room]
        Receive the pairs, by user. Drawing ends where there is no more room.

    Notes
    -----
    Miller and Hagberg, "Efficient generation of networks with given expected degrees", WAW 2011:
    along items of descending probability, the next that may be rated is skipped to as if all had
    the probability p of the last one, and is rated with q / p, q its own. O(pairs).
    """
    drawn = 0
    for user in range(activity.size):
        state = _mix(seed ^ _mix(uint64(user)))
        x = activity[user]
        p = x * popularity[0] / (1.0 + x * popularity[0])
        rank = 0
        while True:
            state += golden
            skipped = math.floor(math.log(_uniform(_mix(state))) / math.log1p(-p))
            if skipped >= by_rank.size - rank:
                break
            rank += int(skipped)
            q = x * popularity[rank] / (1.0 + x * popularity[rank])
            state += golden
            if _uniform(_mix(state)) * p <= q:
                if drawn == users.size:
                    return drawn
                users[drawn] = user
                items[drawn] = by_rank[rank]
                drawn += 1
            p = q
            rank += 1
            if rank == by_rank.size:
                break
    return drawn


@njit(nogil=True, cache=True)
def _keep(users, items, drawn, wanted, seed, golden):
    """Keep ``wanted`` of the first ``drawn`` pairs, each subset as likely, in place and in order.

    Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S.
    """
    kept = 0
    state = seed
    for i in range(drawn):
        state += golden
        if _uniform(_mix(state)) * (drawn - i) <= wanted - kept:
            users[kept] = users[i]
            items[kept] = items[i]
            kept += 1


@njit(nogil=True, cache=True)
def _hold_out(users, items, share, seed, user_left, item_left, held):
    """Say of each pair whether it is held out.

    ``user_left`` (int32[users]) and ``item_left`` (int32[items]), both zero before, receive how
    many ratings the hash alone would leave them; ``held`` (bool[pairs]) is written.
    """
    for i in range(users.size):
        held[i] = _uniform(_mix(_pair(users[i], items[i], seed))) <= share
        if not held[i]:
            user_left[users[i]] += 1
            item_left[items[i]] += 1
    for i in range(users.size):
        held[i] = held[i] and user_left[users[i]] > 0 and item_left[items[i]] > 0


@njit(nogil=True, cache=True)
def _when(users, items, seed, first, seconds, timestamps):
    """Write a timestamp for each pair, uniform over ``first .. first + seconds``."""
    for i in range(users.size):
        hashed = _mix(_pair(users[i], items[i], seed))
        timestamps[i] = first + (hashed >> uint64(32)) * uint64(seconds) // uint64(1 << 32)


@njit(nogil=True, cache=True)
def _rate(
    users, items, held, seed, golden, mean, noise, user_biases, item_biases, user_factors,
    item_factors, expected, low, step, stars, sums,
):  # fmt: skip
    """Draw the stars of each pair.

    Parameters
    ----------
    users, items : int32[pairs]
    held : bool[pairs]
    seed, golden : uint64
    mean, noise : float
    user_biases, item_biases : float64[users], float64[items]
    user_factors, item_factors : float64[users, rank], float64[items, rank]
    expected : float64[grid]
        Expected stars where the sum of all terms but noise is ``low + j * step``.
    low, step : float
    stars : uint8[pairs]
        Written.
    sums : float64[2, 2]
        Gains squared and absolute errors of the truth, of learned and of held-out ratings.

    Notes
    -----
    Normal noise by Box and Muller. Between points of the grid, ``expected`` is linear.
    """
    for i in range(users.size):
        user, item = users[i], items[i]
        p, q = user_factors[user], item_factors[item]
        term = mean + user_biases[user] + item_biases[item]
        for k in range(p.size):
            term += p[k] * q[k]
        state = _pair(user, item, seed) + golden
        radius = math.sqrt(-2.0 * math.log(_uniform(_mix(state))))
        angle = 2.0 * math.pi * _uniform(_mix(state + golden))
        rounded = math.floor(term + noise * radius * math.cos(angle) + 0.5)
        rounded = min(max(rounded, 1.0), 5.0)
        stars[i] = np.uint8(rounded)
        at = min(max((term - low) / step, 0.0), expected.size - 1.001)
        j = np.int64(at)
        predicted = expected[j] + (at - j) * (expected[j + 1] - expected[j])
        side = 1 if held[i] else 0
        sums[side, 0] += (rounded - predicted) ** 2
        sums[side, 1] += abs(rounded - predicted)


@njit(nogil=True, cache=True)
def _sort(keys, counts, order, out):
    """Sort pairs by ``keys[order[i]]``, those of one key in the order they had (a counting sort).

    ``counts`` (int64[largest key + 2]) is zero before; ``out`` (uint32[pairs]) receives the order.
    """
    for i in range(keys.size):
        counts[keys[i] + 1] += 1
    for k in range(1, counts.size):
        counts[k] += counts[k - 1]
    for i in range(order.size):
        key = keys[order[i]]
        out[counts[key]] = order[i]
        counts[key] += 1


@njit(nogil=True, cache=True, inline="always")
def _number(out, at, number, digits):
    """Write a number in decimal; return where it ends."""
    n = 0
    while True:
        digits[n] = 48 + number % 10
        number //= 10
        n += 1
        if number == 0:
            break
    while n > 0:
        n -= 1
        out[at] = digits[n]
        at += 1
    return at


@njit(nogil=True, cache=True)
def _lines(users, items, stars, timestamps, between, after_stars, with_timestamps, out):
    """Write ratings as lines into ``out`` (uint8[RATING_BYTES_MAX * n]); return how many bytes."""
    digits = np.zeros(24, np.uint8)
    at = 0
    for i in range(users.size):
        at = _number(out, at, np.int64(users[i]), digits)
        for k in range(between.size):
            out[at] = between[k]
            at += 1
        at = _number(out, at, np.int64(items[i]), digits)
        for k in range(between.size):
            out[at] = between[k]
            at += 1
        out[at] = 48 + stars[i]
        at += 1
        for k in range(after_stars.size):
            out[at] = after_stars[k]
            at += 1
        if with_timestamps:
            for k in range(between.size):
                out[at] = between[k]
                at += 1
            at = _number(out, at, np.int64(timestamps[i]), digits)
        out[at] = 10
        at += 1
    return at


def users_for(ratings: int, items: int = ITEMS) -> int:
    """Return how many users make so many ratings as dense as the Netflix prize's."""
    return max(round(ratings / items * (USERS * ITEMS / RATINGS)), 1)


def held_path(path: Path) -> Path:
    """Return where the held-out ratings of a file stand."""
    return path.with_name(f"{path.stem}.held{path.suffix}")


def draw(
    ratings: int,
    seed: int,
    *,
    users: int | None = None,
    items: int = ITEMS,
    order: Order = "user",
    held_out: float = 0.0,
) -> Drawn:
    """Draw ratings.

    Parameters
    ----------
    ratings : int
        Of both parts together.
    seed : int
        Draws everything.
    users : int, optional
        By default in proportion.
    items : int
    order : str
        What they are sorted by. Those of one user, or of one item, are in order of time.
    held_out : float
        Share of the ratings that are held out, about.

    Raises
    ------
    ValueError
        There are more ratings than half of the pairs, or another argument is out of range.
    """
    if users is None:
        users = users_for(ratings, items)
    if not 0 < items < 1 << 31 or not 0 < users < 1 << 31:
        raise ValueError(f"users, items are {users}, {items}; expected 1 to 2**31 - 1")
    if not 0 < ratings <= min(users * items // 2, (1 << 32) - 1):
        raise ValueError(f"ratings is {ratings}; expected 1 to half of {users} users x {items}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}; expected 0 <= held_out < 1")
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 1 << 64, 5, np.uint64)
    activity = _activities(rng.permutation(users))
    popularity = (1.0 + np.arange(items) * (ITEMS / items) / HEAD) ** -POPULARITY
    by_rank = rng.permutation(items).astype(np.int32)
    pairs, degrees = _pairs(activity, popularity, by_rank, ratings, (seeds[0], seeds[1]))
    item_degrees = np.bincount(pairs[1], minlength=items)
    truth = _truth(rng, degrees, item_degrees)

    held = np.zeros(ratings, np.bool_)
    if held_out > 0:
        left = np.zeros(users, np.int32), np.zeros(items, np.int32)
        _hold_out(*pairs, held_out, seeds[2], *left, held)
    timestamps = np.empty(ratings, np.uint32)
    _when(*pairs, seeds[3], FIRST_SECOND, SECONDS, timestamps)
    stars = np.empty(ratings, np.uint8)
    sums = np.zeros((2, 2))
    _rate(*pairs, held, seeds[4], GOLDEN, *truth, stars, sums)
    moments = float(stars.mean()), float(stars.std())

    places = _ordered(pairs, timestamps, order)
    held = held[places]
    drawn = []
    for part in (places[~held], places[held]) if held_out > 0 else (places, places[:0]):
        ids = (pairs[0][part] + np.int32(1), pairs[1][part] + np.int32(1))
        drawn.append(Ratings(*ids, stars[part], timestamps[part]))
    known: dict[str, Any] = {
        "ratings": ratings,
        "users": users,
        "items": items,
        "users_rating": int(np.count_nonzero(degrees)),
        "items_rated": int(np.count_nonzero(item_degrees)),
        "seed": seed,
        "order": order,
        "held_out_share": held_out,
        "rank": RANK,
        "mean": moments[0],
        "deviation": moments[1],
    }
    for name, part, (squared, absolute) in zip(("learned", "held_out"), drawn, sums, strict=True):
        count = max(len(part.stars), 1)
        known[name] = {
            "ratings": len(part.stars),
            "truth_rmse": math.sqrt(squared / count),
            "truth_mae": float(absolute) / count,
        }
    return Drawn(drawn[0], drawn[1], known)


def write(ratings: Ratings, path: Path, form: str) -> int:
    """Write ratings; return the bytes.

    Parameters
    ----------
    ratings : Ratings
    path : Path
    form : str
        One of FORMS, or ``npz``: arrays of the names that `Ratings` has.
    """
    columns = ratings.users, ratings.items, ratings.stars, ratings.timestamps
    if form == "npz":
        names = ("users", "items", "stars", "timestamps")
        with path.open("wb") as file:
            np.savez(file, **dict(zip(names, columns, strict=True)), allow_pickle=False)
        return path.stat().st_size
    said = FORMS[form]
    between, after_stars = (np.frombuffer(b, np.uint8) for b in (said.between, said.after_stars))
    out = np.empty(BLOCK_RATINGS * RATING_BYTES_MAX, np.uint8)
    size = len(said.header)
    with path.open("wb") as file:
        file.write(said.header)
        for first in range(0, len(ratings.users), BLOCK_RATINGS):
            block = (column[first : first + BLOCK_RATINGS] for column in columns)
            written = _lines(*block, between, after_stars, said.timestamps, out)
            file.write(out[:written].data)
            size += written
    return size


def generate(path: Path, form: str, drawn: Drawn) -> dict[str, Any]:
    """Write what was drawn to ``path`` (see `held_path`) and ``path`` + ``.json``; return that."""
    known = {**drawn.known, "format": form}
    known["learned"] |= {"bytes": write(drawn.learned, path, form)}
    if known["held_out_share"] > 0:
        known["held_out"] |= {"bytes": write(drawn.held_out, held_path(path), form)}
    path.with_name(path.name + ".json").write_text(json.dumps(known, indent=2) + "\n")
    return known


def _activities(places: np.ndarray) -> np.ndarray:
    """Return log x of each user: the quantile of its place among all of them."""
    z = np.linspace(-6.0, 6.0, GRID)
    below = np.array([math.erfc(-value / math.sqrt(2.0)) / 2 for value in z])
    normal = np.interp((places + 0.5) / len(places), below, z)
    tail = np.maximum(normal - TAIL_FROM, 0.0)
    return ACTIVITY * np.maximum(normal, LAZIEST) + TAIL * tail**2


def _pairs(
    activity: np.ndarray,
    popularity: np.ndarray,
    by_rank: np.ndarray,
    ratings: int,
    seeds: tuple[np.uint64, np.uint64],
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return exactly ``ratings`` distinct pairs, users and items int32, and the users' degrees."""
    logarithms = np.linspace(activity.min() - 30.0, activity.max() + 30.0, GRID)
    expected = np.array([(1.0 / (1.0 + np.exp(-x) / popularity)).sum() for x in logarithms])

    def total(shift: float) -> float:
        return float(np.interp(activity + shift, logarithms, expected).sum())

    spread = math.sqrt(ratings)  # at least the deviation of the number of pairs that are drawn
    surplus = 4 * spread
    while True:
        low, high = -30.0, 30.0
        for _ in range(60):
            shift = (low + high) / 2
            low, high = (low, shift) if total(shift) > ratings + surplus else (shift, high)
        room = math.ceil(1.001 * ratings + 2 * surplus + 8 * spread)
        users, items = np.empty(room, np.int32), np.empty(room, np.int32)
        x = np.exp(activity + shift)
        drawn = _draw_pairs(x, popularity, by_rank, seeds[0], GOLDEN, users, items)
        if ratings <= drawn < room:
            break
        surplus *= 2  # one draw in tens of thousands
    _keep(users, items, drawn, ratings, seeds[1], GOLDEN)
    users, items = users[:ratings], items[:ratings]
    return (users, items), np.bincount(users, minlength=len(activity))


def _truth(
    rng: np.random.Generator, degrees: np.ndarray, item_degrees: np.ndarray
) -> tuple[Any, ...]:
    """Return what `_rate` draws stars from, scaled as it is seen by ratings."""
    deviations = 1.0 / np.sqrt(np.arange(1, RANK + 1))
    deviations *= FACTORS_DEVIATION / math.sqrt((deviations**2).sum())
    sides = []
    for weights, deviation in ((degrees, USER_DEVIATION), (item_degrees, ITEM_DEVIATION)):
        normal = rng.standard_normal((len(weights), RANK + 1))
        share = weights / weights.sum()
        normal -= share @ normal
        normal /= np.sqrt(share @ normal**2) + 1e-9  # one user alone deviates from no mean
        # an inner product's terms have the deviation of one side's factor times the other's
        sides.append((deviation * normal[:, 0], normal[:, 1:] * np.sqrt(deviations)))
    (user_biases, user_factors), (item_biases, item_factors) = sides
    low, high = -6.0, 14.0
    terms = np.linspace(low, high, GRID)
    expected = np.array(
        [
            1.0 + sum(math.erfc((k + 0.5 - term) / NOISE / math.sqrt(2.0)) / 2 for k in range(1, 5))
            for term in terms
        ]
    )
    return (
        MEAN, NOISE, user_biases, item_biases, user_factors, item_factors, expected, low,
        (high - low) / (GRID - 1),
    )  # fmt: skip


def _ordered(
    pairs: tuple[np.ndarray, np.ndarray], timestamps: np.ndarray, order: Order
) -> np.ndarray:
    """Return the places of the pairs in the order asked for, uint32."""
    places = np.argsort(timestamps, kind="stable").astype(np.uint32)
    if order == "time":
        return places
    keys = pairs[0] if order == "user" else pairs[1]
    out = np.empty_like(places)
    _sort(keys, np.zeros(int(keys.max()) + 2, np.int64), places, out)
    return out


def main() -> None:
    """Make ratings from the command line."""
    parser = argparse.ArgumentParser(description="Make Netflix-like ratings.")
    parser.add_argument("--ratings", type=int, help=f"default: in proportion to users, {RATINGS:,}")
    parser.add_argument("--users", type=int, help="default: in proportion to ratings")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--order", choices=("user", "item", "time"), default="user")
    parser.add_argument("--format", choices=(*FORMS, "npz"), default="dat")
    parser.add_argument("--held-out", type=float, default=0.0, help="share, 0 to 1")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    users = args.users if args.users or args.ratings else USERS
    ratings = args.ratings or round(users * args.items * (RATINGS / (USERS * ITEMS)))
    try:
        drawn = draw(
            ratings,
            args.seed,
            users=users,
            items=args.items,
            order=args.order,
            held_out=args.held_out,
        )
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(generate(args.out, args.format, drawn)))


if __name__ == "__main__":
    main()
