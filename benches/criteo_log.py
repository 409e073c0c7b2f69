"""Make a click log in Criteo's text format, of any size, with a known truth.

    python benches/criteo_log.py --records 2000000 --seed 1 .bench/criteo.tsv

A record is a label, 13 integers and 26 categoricals of eight hex digits, tab-separated, blanks for
what is missing. What is drawn is shaped after Criteo's display advertising log:

* each categorical field has that log's cardinality and a power law, p(rank) ~ (rank + q)**-a,
  with ``a`` and ``q`` fitted to the distinct tokens and the commonest one in its first 8,000
  records; each integer field has that sample's quantiles (heavy tails, a few negatives);
* fields are blank together as they are there: a group of fields shares one coin.

The truth is a logistic model: a sparse weight for each token (drawn by a hash of field and token:
most common tokens matter, most rare ones do not), a slope in the logarithm of each integer, and
unless ``--interactions 0``, inner products of four-dimensional token vectors for some pairs of
fields, which no linear model can learn. Intercept and scale are calibrated so that about a quarter
of the labels are 1 and the entropy of the truth, the Bayes logloss, is about 0.42.

Deterministic: record ``i`` is a function of (seed, truth, i) alone, so a longer log begins with
the shorter one. Logs of different ``--seed`` and equal ``--truth`` come from one model. Beside OUT
stands OUT.json: records, bytes, clicks, Bayes logloss, and the logloss of the truth itself.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, uint64

__all__ = ["generate"]

# cardinality, share of blanks, exponent a, shift q
CATEGORICAL = np.array(
    [
        (1460, 0.0, 1.96, 0.3),
        (583, 0.0, 1.72, 4.0),
        (10131227, 0.033, 1.02, 0.3),
        (2202608, 0.033, 1.08, 0.3),
        (305, 0.0, 2.56, 0.3),
        (24, 0.131, 1.6, 0.0),
        (12517, 0.0, 1.10, 16.0),
        (633, 0.0, 2.28, 0.3),
        (3, 0.0, 3.0, 0.0),
        (93145, 0.0, 1.14, 0.0),
        (5683, 0.0, 1.26, 16.0),
        (8351593, 0.033, 1.06, 1.0),
        (3194, 0.0, 1.28, 16.0),
        (27, 0.0, 1.44, 0.3),
        (14992, 0.0, 1.36, 16.0),
        (5461306, 0.033, 1.06, 1.0),
        (10, 0.0, 2.5, 2.0),
        (5652, 0.0, 1.50, 8.0),
        (2173, 0.453, 1.38, 0.0),
        (4, 0.453, 2.62, 8.0),
        (7046547, 0.033, 1.06, 1.0),
        (18, 0.817, 1.6, 0.0),
        (15, 0.0, 1.42, 0.0),
        (286181, 0.033, 1.24, 2.0),
        (105, 0.453, 1.6, 1.0),
        (142572, 0.453, 1.14, 1.0),
    ],
    np.float64,
)
# Values at these quantiles (of what is not blank); between them, linear in log(1 + value - lowest).
QUANTILES = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 1.0])
INTEGERS = np.array(
    [
        (0, 0, 0, 1, 3, 8, 23, 44, 214),
        (-2, 0, 0, 3, 37, 188, 946, 2167, 18522),
        (0, 1, 2, 7, 20, 51, 139, 306, 65535),
        (0, 1, 2, 4, 10, 20, 34, 44, 280),
        (0, 14, 299, 2792, 10536, 32519, 112880, 302726, 1618112),
        (0, 2, 10, 41, 131, 341, 849, 1742, 12167),
        (0, 0, 0, 3, 10, 30, 81, 189, 1658),
        (0, 0, 2, 7, 20, 34, 45, 48, 547),
        (0, 2, 10, 42, 124, 311, 698, 1228, 5639),
        (0, 0, 0, 0, 1, 1, 2, 2, 4),
        (0, 0, 0, 1, 2, 5, 12, 22, 79),
        (0, 0, 0, 0, 1, 2, 7, 12, 98),
        (0, 1, 2, 5, 13, 27, 46, 72, 770),
    ],
    np.float64,
)
INTEGER_BLANKS = np.array(
    [0.452, 0.0, 0.203, 0.203, 0.05, 0.252, 0.05, 0.001, 0.05, 0.452, 0.05, 0.777, 0.203]
)
# Pairs of categorical fields (from 0) whose tokens interact: few enough values to meet again.
PAIRS = np.array(
    [(0, 1), (1, 13), (6, 17), (10, 12), (4, 16), (7, 22), (1, 10), (12, 17), (5, 13)], np.int64
)
CLICK_RATE = 0.256
BAYES_LOGLOSS = 0.42
# Share of the logit's variance that is in the interactions.
INTERACTION_SHARE = 0.3

RECORD_BYTES_MAX = 400  # 13 integers of at most 8 characters, 26 tokens of 8, separators, label
BLOCK_RECORDS = 1 << 16
CALIBRATION_RECORDS = 50_000
CALIBRATION_SEED = 0xCA11


@njit(nogil=True, cache=True, inline="always")
def _mix(x):
    """Mix 64 bits (splitmix64's finaliser); bijective."""
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return x ^ (x >> uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _mix32(x):
    """Mix 32 bits held in a uint64 (lowbias32); bijective, so no two ranks share a token."""
    x = ((x ^ (x >> uint64(16))) * uint64(0x7FEB352D)) & uint64(0xFFFFFFFF)
    x = ((x ^ (x >> uint64(15))) * uint64(0x846CA68B)) & uint64(0xFFFFFFFF)
    return x ^ (x >> uint64(16))


@njit(nogil=True, cache=True, inline="always")
def _uniform(x):
    """Turn 64 bits into a float64 in [0, 1)."""
    return np.float64(x >> uint64(11)) * 1.1102230246251565e-16


@njit(nogil=True, cache=True)
def _token_weight(field, rank, truth):
    """Return the truth's weight of a token: mostly 0 for rare tokens, about normal otherwise."""
    h = _mix(truth + uint64(field) * uint64(0x9E3779B97F4A7C15) + uint64(rank))
    share = uint64(820) if rank < 64 else (uint64(410) if rank < 4096 else uint64(60))
    if (h & uint64(1023)) >= share:
        return 0.0
    h = _mix(h)
    # the sum of four uniforms of [-1/2, 1/2] has variance 1/3
    total = 0.0
    for _ in range(4):
        total += np.float64(h & uint64(0xFFFF)) / 65535.0 - 0.5
        h >>= uint64(16)
    return total * 1.7320508


@njit(nogil=True, cache=True)
def _inner(field_a, rank_a, field_b, rank_b, truth):
    """Return the inner product of two tokens' four-dimensional vectors, each uniform in [-1, 1]."""
    seed = truth ^ uint64(0x5851F42D4C957F2D)
    a = _mix(seed + uint64(field_a) * uint64(0x9E3779B97F4A7C15) + uint64(rank_a))
    b = _mix(seed + uint64(field_b) * uint64(0x9E3779B97F4A7C15) + uint64(rank_b))
    total = 0.0
    for _ in range(4):
        total += (np.float64(a & uint64(0xFFFF)) / 32767.5 - 1.0) * (
            np.float64(b & uint64(0xFFFF)) / 32767.5 - 1.0
        )
        a >>= uint64(16)
        b >>= uint64(16)
    return total


@njit(nogil=True, cache=True)
def _draw(
    out, first, count, seed, truth, integers, logs, lows, quantiles, integer_blanks, integer_groups,
    slopes, centres, categorical, groups, inverse, pairs, bias, scale, cross_scale, parts, stats,
):  # fmt: skip
    """Write records ``first .. first + count`` into ``out``; return how many bytes.

    ``parts[i]`` receives the two summands of record i's logit before scaling (float64[count, 2]);
    ``stats`` (float64[3]) gains the clicks, the truth's entropy and its logloss on the labels.
    """
    at = 0
    coins = np.zeros(16)
    ranks = np.zeros(26, np.int64)
    digits = np.zeros(24, np.uint8)
    for i in range(count):
        state = _mix(seed ^ _mix(uint64(first + i)))
        for g in range(16):
            state += uint64(0x9E3779B97F4A7C15)
            coins[g] = _uniform(_mix(state))
        label_at = at
        at += 1
        linear = 0.0
        for j in range(13):
            out[at] = 9
            at += 1
            state += uint64(0x9E3779B97F4A7C15)
            if coins[integer_groups[j]] < integer_blanks[j]:
                continue
            u = _uniform(_mix(state))
            k = 1
            while quantiles[k] < u:
                k += 1
            low = logs[j, k - 1]
            part = (u - quantiles[k - 1]) / (quantiles[k] - quantiles[k - 1])
            logarithm = low + (logs[j, k] - low) * part
            value = np.int64(math.exp(logarithm) - 0.5 + lows[j])
            linear += slopes[j] * (logarithm - centres[j])
            if value < 0:
                out[at] = 45
                at += 1
                value = -value
            n = 0
            while True:
                digits[n] = 48 + value % 10
                value //= 10
                n += 1
                if value == 0:
                    break
            while n > 0:
                n -= 1
                out[at] = digits[n]
                at += 1
        for j in range(26):
            out[at] = 9
            at += 1
            state += uint64(0x9E3779B97F4A7C15)
            if coins[groups[j]] < categorical[j, 1]:
                ranks[j] = -1
                continue
            # inverse of the cumulative (x + q)**(1 - a) over [1/2, cardinality + 1/2)
            u = _uniform(_mix(state))
            x = (inverse[j, 0] + u * inverse[j, 1]) ** inverse[j, 2] - categorical[j, 3]
            rank = min(max(np.int64(x + 0.5), 1), np.int64(categorical[j, 0])) - 1
            ranks[j] = rank
            linear += _token_weight(j, rank, truth)
            token = _mix32(uint64(rank) ^ (uint64(j + 1) * uint64(0x9E3779B9) & uint64(0xFFFFFFFF)))
            for k in range(8):
                nibble = np.int64((token >> uint64(28 - 4 * k)) & uint64(15))
                out[at + k] = nibble + (48 if nibble < 10 else 87)
            at += 8
        out[at] = 10
        at += 1
        cross = 0.0
        for k in range(pairs.shape[0]):
            a, b = pairs[k, 0], pairs[k, 1]
            if ranks[a] >= 0 and ranks[b] >= 0:
                cross += _inner(a, ranks[a], b, ranks[b], truth)
        parts[i, 0] = linear
        parts[i, 1] = cross
        p = 1.0 / (1.0 + math.exp(-(bias + scale * linear + cross_scale * cross)))
        p = min(max(p, 1e-9), 1.0 - 1e-9)
        state += uint64(0x9E3779B97F4A7C15)
        clicked = _uniform(_mix(state)) < p
        out[label_at] = 49 if clicked else 48
        stats[0] += 1.0 if clicked else 0.0
        stats[1] -= p * math.log(p) + (1.0 - p) * math.log(1.0 - p)
        stats[2] -= math.log(p) if clicked else math.log(1.0 - p)
    return at


def _tables(truth: int) -> tuple[Any, ...]:
    """Return what the kernel draws from: logs, groups, slopes, inverses of the power laws."""
    lows = INTEGERS[:, 0]
    # half a unit below each value, so that rounding gives it its share of both neighbours
    logs = np.log(INTEGERS - lows[:, None] + 0.5)
    rng = np.random.default_rng(truth)
    slopes = rng.normal(0.0, 0.25, 13)
    centres = logs[:, 3].copy()
    blanks = np.concatenate([INTEGER_BLANKS, CATEGORICAL[:, 1]])
    # fields with one share of blanks share one coin
    _, group = np.unique(blanks, return_inverse=True)
    cardinality, exponent, shift = CATEGORICAL[:, 0], CATEGORICAL[:, 2], CATEGORICAL[:, 3]
    power = 1.0 - exponent
    head = (0.5 + shift) ** power
    tail = (cardinality + 0.5 + shift) ** power
    inverse = np.column_stack([head, tail - head, 1.0 / power])
    return (
        INTEGERS, logs, lows, QUANTILES, INTEGER_BLANKS, group[:13].astype(np.int64), slopes,
        centres, CATEGORICAL, group[13:].astype(np.int64), inverse,
    )  # fmt: skip


def _calibrate(tables: tuple[Any, ...], truth: int, share: float) -> tuple[float, ...]:
    """Return intercept and scales that give the click rate and the Bayes logloss aimed at."""
    parts = np.zeros((CALIBRATION_RECORDS, 2))
    out = np.empty(CALIBRATION_RECORDS * RECORD_BYTES_MAX, np.uint8)
    _draw(
        out, 0, CALIBRATION_RECORDS, np.uint64(CALIBRATION_SEED), np.uint64(truth), *tables, PAIRS,
        0.0, 1.0, 1.0, parts, np.zeros(3),
    )  # fmt: skip
    linear_unit = math.sqrt(1.0 - share) / parts[:, 0].std()
    cross_unit = math.sqrt(share) / parts[:, 1].std()
    logits = linear_unit * parts[:, 0] + cross_unit * parts[:, 1]

    def bias_for(scale: float) -> float:
        low, high = -100.0, 100.0
        for _ in range(60):
            bias = (low + high) / 2
            rate = (1.0 / (1.0 + np.exp(-(bias + scale * logits)))).mean()
            low, high = (low, bias) if rate > CLICK_RATE else (bias, high)
        return (low + high) / 2

    low, high = 0.0, 20.0
    for _ in range(30):
        scale = (low + high) / 2
        p = 1.0 / (1.0 + np.exp(-(bias_for(scale) + scale * logits)))
        p = np.clip(p, 1e-12, 1.0 - 1e-12)
        entropy = -(p * np.log(p) + (1.0 - p) * np.log(1.0 - p)).mean()
        low, high = (scale, high) if entropy > BAYES_LOGLOSS else (low, scale)
    return bias_for(scale), scale * linear_unit, scale * cross_unit


def generate(
    path: Path, records: int, seed: int, *, truth: int = 1, interactions: float = INTERACTION_SHARE
) -> dict[str, Any]:
    """Write a log to ``path`` and what is known of it to ``path`` + ``.json``; return the latter.

    Parameters
    ----------
    path : Path
    records : int
    seed : int
        Draws the records.
    truth : int
        Draws the model behind the labels.
    interactions : float
        Share of the logit's variance that is in pairs of fields, 0 to 1.
    """
    tables = _tables(truth)
    bias, scale, cross_scale = _calibrate(tables, truth, interactions)
    out = np.empty(BLOCK_RECORDS * RECORD_BYTES_MAX, np.uint8)
    parts = np.zeros((BLOCK_RECORDS, 2))
    stats = np.zeros(3)
    size = 0
    with path.open("wb") as file:
        for first in range(0, records, BLOCK_RECORDS):
            count = min(BLOCK_RECORDS, records - first)
            written = _draw(
                out, first, count, np.uint64(seed), np.uint64(truth), *tables, PAIRS,
                bias, scale, cross_scale, parts, stats,
            )  # fmt: skip
            file.write(out[:written].data)
            size += written
    known = {
        "records": records,
        "bytes": size,
        "seed": seed,
        "truth": truth,
        "interactions": interactions,
        "clicks": int(stats[0]),
        "bayes_logloss": stats[1] / max(records, 1),
        "truth_logloss": stats[2] / max(records, 1),
    }
    path.with_name(path.name + ".json").write_text(json.dumps(known, indent=2) + "\n")
    return known


def main() -> None:
    """Make a log from the command line."""
    parser = argparse.ArgumentParser(description="Make a Criteo-format click log.")
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1, help="draws the records")
    parser.add_argument("--truth", type=int, default=1, help="draws the model behind the labels")
    parser.add_argument(
        "--interactions", type=float, default=INTERACTION_SHARE, help="their share of the variance"
    )
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    known = generate(
        args.out, args.records, args.seed, truth=args.truth, interactions=args.interactions
    )
    print(json.dumps(known))


if __name__ == "__main__":
    main()
