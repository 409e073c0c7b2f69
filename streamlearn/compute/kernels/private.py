"""Kernels of private factorization: rows that are drawn by Langevin dynamics, not descended to.

What is drawn from is the tempered posterior of all rows x (factors and bias, ``dim + 1`` numbers)

    p(x) ~ exp(-F(x) / T) N(x; 0, s^2);   F = sum over ratings of w_u a min(e^2, c^2) / 2

with e = r - (<p_u, q_m> + b_u + b_m + b_0), a rating's own weight a, and a user's weight w_u by
which its ratings weigh no more than a bound together (Liu, Wang and Smola, "Fast Differentially
Private Matrix Factorization", RecSys 2015; Wang, Fienberg and Smola, "Privacy for Free", ICML
2015). Stochastic gradient Langevin dynamics (Welling and Teh, ICML 2011) at a pace of each row's
own, h = rate * pace for a whole pass:

    p_u += h_u w_u a e q_m where |e| <= c, else 0;  q_m alike;
    x = exp(-h f T / s^2) x + sqrt(2 h f T) z,  z ~ N(0, 1)

The second line is *noise*, over the fraction f of a pass that went by since the row had some last.
A row's time runs while it is touched: each of its n ratings is 1 / n of a pass. So noise and
gradients alternate however ratings are arranged, and a row's time is the business of the lane that
owns it. Were time that of the whole pass, a user, whose ratings stand together, would have nearly
all of a pass's noise before its first one, and would be found after its last with nearly none.
Noise comes once in ``due`` touches (lazily: drawing it costs as much as several ratings).

The numbers are of the seed, the row, its touches and the pass (``kernels.gaussian``).
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, int64, njit, uint64

from streamlearn.compute.kernels.factor_vectors import dot, move_apart
from streamlearn.compute.kernels.gaussian import ROOM, draw_normals

__all__ = ["settle", "sweep", "tally_items", "tally_users"]

ITEM = 1 << 31  # of a row's number: set for items

# As ``kernels.strata`` has them.
_USER = np.uint64((1 << 13) - 1)
_CODE_BITS = np.uint64(19)
_CODE = np.uint64((1 << 19) - 1)
SCORE_MAX = np.float32(2.0**60)


@njit(nogil=True, cache=True, error_model="numpy")
def _noise(rows, biases, row, dim, time, law, seed, number, touched, turn, drawn):
    """Bring a row up to date over so much of its time, h f.

    Parameters
    ----------
    rows, biases : float32[n, 16 * lines], float32[n]
    row, dim : int64, int64
    number, touched, turn : int64
        What the numbers are drawn by.
    drawn : float32[dim + 1 + ROOM]
        Written: the numbers.
    """
    keep = float32(math.exp(-law[1] * time))
    spread = float32(math.sqrt(2.0 * law[2] * time))
    if spread > float32(0):
        draw_normals(drawn, dim + 1, uint64(number), uint64(touched), uint64(turn), seed)
    for k in range(dim):
        rows[row, k] = keep * rows[row, k] + spread * drawn[k]
    biases[row] = keep * biases[row] + spread * drawn[dim]


@njit(nogil=True, cache=True, error_model="numpy")
def sweep(
    words, first, end, users, items, user_biases, item_biases, user_paces, item_paces, user_turns,
    item_turns, base, dim, lines, values, b0, law, seed, turn, sums,
):  # fmt: skip
    """Learn ratings ``[first, end)`` of a bucket in their order, each predicted first.

    Parameters
    ----------
    words, values, b0
        As for ``kernels.strata.sweep``.
    users, items : float32[BUCKET, 16 * lines], float32[places, 16 * lines]
        Factors, of the bucket's users; lines of 64 bytes, aligned. Changed, as all that follows.
    user_biases, item_biases : float32[BUCKET], float32[places]
    user_paces, item_paces : float32[BUCKET, 4], float32[places, 4]
        Of each row: its pace times its weight; its weight (of items 1); its pace over its ratings;
        touches from one noise to the next.
    user_turns, item_turns : int32[BUCKET, 2], int32[places, 2]
        Touches in this pass, and at how many noise is due.
    base : int64
        Number of the bucket's first user.
    dim, lines : int64
    law : float64[4]
        Rate; T / s^2; T; c, beyond which an error teaches nothing. T may be 0: then nothing is
        drawn.
    seed, turn : uint64[3], int64
        32 bits each; the pass, below 2**20.
    sums : float64[8]
        Added to: in the order of ``RatingTotals``, then how many errors were beyond c.

    Returns
    -------
    int64
        Ratings that taught nothing, as their score was not finite.

    Notes
    -----
    O((end - first) * lines), and O(dim) for each noise. Indices of rows are unsigned, so that none
    is taken for one from the end.
    """
    drawn = np.zeros(dim + 1 + ROOM, np.float32)
    size = lines << 6
    first_user, first_item = int64(users.ctypes.data), int64(items.ctypes.data)
    rate, bound = float32(law[0]), float32(law[3])
    dropped, beyond = int64(0), int64(0)
    squares, absolutes, ratings, rating_squares = 0.0, 0.0, 0.0, 0.0
    predictions, total = 0.0, 0.0
    for t in range(first, end):
        word = words[t]
        item, user, code = word >> uint64(32), (word >> _CODE_BITS) & _USER, word & _CODE
        r, a = values[code, 0], values[code, 1]
        p, q = first_user + int64(user) * size, first_item + int64(item) * size
        score = dot(p, q, lines) + item_biases[item] + user_biases[user] + b0
        e = r - score
        if abs(e) <= SCORE_MAX:
            squares += a * e * e
            absolutes += a * abs(e)
            ratings += a * r
            rating_squares += a * r * r
            predictions += a * score
            total += a
            if abs(e) <= bound:
                g = rate * a * e
                gain = g * user_paces[user, 0]
                item_gain = g * user_paces[user, 1] * item_paces[item, 0]
                move_apart(p, q, lines, gain, item_gain)
                user_biases[user] += gain
                item_biases[item] += item_gain
            else:
                beyond += 1
        else:
            dropped += 1
        user_turns[user, 0] += 1
        if user_turns[user, 0] == user_turns[user, 1]:
            due = user_paces[user, 3]
            user_turns[user, 1] += int64(due)
            time = law[0] * user_paces[user, 2] * due
            _noise(
                users, user_biases, int64(user), dim, time, law, seed, base + int64(user),
                int64(user_turns[user, 0]), turn, drawn,
            )  # fmt: skip
        item_turns[item, 0] += 1
        if item_turns[item, 0] == item_turns[item, 1]:
            due = item_paces[item, 3]
            item_turns[item, 1] += int64(due)
            time = law[0] * item_paces[item, 2] * due
            _noise(
                items, item_biases, int64(item), dim, time, law, seed, int64(item) | ITEM,
                int64(item_turns[item, 0]), turn, drawn,
            )  # fmt: skip
    sums[0] += squares
    sums[1] += absolutes
    sums[2] += ratings
    sums[3] += rating_squares
    sums[4] += predictions
    sums[5] += total
    sums[6] += end - first - dropped
    sums[7] += beyond
    return dropped


@njit(nogil=True, cache=True, error_model="numpy")
def settle(rows, biases, paces, turns, kind, dim, law, seed, turn):
    """End a pass: give every row the noise of its touches since the last, and count from 0 again.

    Parameters
    ----------
    rows, biases, paces, turns
        Of all users, or of all items: see :func:`sweep`.
    kind : int64
        0 or ``ITEM``.
    """
    drawn = np.zeros(dim + 1 + ROOM, np.float32)
    for row in range(biases.shape[0]):
        touched, due = int64(turns[row, 0]), int64(paces[row, 3])
        left = touched - (int64(turns[row, 1]) - due)
        if left > 0:
            time = law[0] * paces[row, 2] * left
            _noise(rows, biases, row, dim, time, law, seed, row | kind, touched, turn, drawn)
        turns[row, 0], turns[row, 1] = 0, due


@njit(nogil=True, cache=True)
def tally_users(words, n, values, low, high, tallies):
    """Add up what a bucket's users have rated.

    Parameters
    ----------
    words, n, values
        Its ratings.
    low, high : float
        Ratings are cut to between these.
    tallies : float64[BUCKET, 3]
        Added to: ratings, their weights, their cut values.
    """
    for i in range(n):
        user = int64((words[i] >> _CODE_BITS) & _USER)
        code = int64(words[i] & _CODE)
        tallies[user, 0] += 1
        tallies[user, 1] += values[code, 1]
        tallies[user, 2] += min(max(values[code, 0], low), high)


@njit(nogil=True, cache=True)
def tally_items(words, n, values, paces, tallies):
    """Add up what items have of a bucket's ratings.

    Parameters
    ----------
    words, n, values
        Its ratings.
    paces : float32[BUCKET, 4]
        Of its users: column 1 is their weights.
    tallies : float64[places, 2]
        Added to: ratings, and their weights times those of their users.
    """
    for i in range(n):
        item = int64(words[i] >> uint64(32))
        user = int64((words[i] >> _CODE_BITS) & _USER)
        tallies[item, 0] += 1
        tallies[item, 1] += values[int64(words[i] & _CODE), 1] * paces[user, 1]
