"""Normal numbers by counter: the paper's random words, the slow twin's numbers, and normal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import gaussian as kernels
from tests.reference import private as twins

SEED = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E], np.uint64)


def drawn(count: int, *counter: int, seed: Any = SEED) -> Any:
    out = np.full(count + kernels.ROOM, np.nan, np.float32)
    kernels.draw_normals(out, count, *(np.uint64(one) for one in counter), seed)
    return out[:count].astype(float)


def test_random_words_are_those_of_the_paper() -> None:
    for counter, key, words in (
        ([0] * 4, [0] * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        assert kernels.philox(*(np.uint64(word) for word in counter + key)) == words
        assert twins.philox(tuple(counter), tuple(key)) == words  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 513, 4097])
def test_numbers_are_the_slow_twins(count: int) -> None:
    counter = (0x80000007, 12, (1 << 20) - 1)
    assert drawn(count, *counter) == pytest.approx(twins.normals(counter, count, SEED), abs=1e-6)


def test_logarithm_sine_and_cosine_are_those_of_the_c_library() -> None:
    rng = np.random.default_rng(0)
    for u in [*rng.uniform(0, 1, 2000), *2.0 ** -np.arange(53), 1 - 2.0**-52, 0.5**0.5]:
        assert kernels._log(float(u)) == pytest.approx(math.log(u), rel=1e-14, abs=1e-15)
    for v in [*rng.uniform(0, 1, 2000), *np.arange(64) / 64, 1 - 2.0**-52]:
        turned = math.cos(2 * math.pi * v), math.sin(2 * math.pi * v)
        assert kernels._turned(float(v)) == pytest.approx(turned, abs=1e-14)


def test_numbers_are_normal_and_of_different_counters_independent() -> None:
    rows = np.array([drawn(40, i, 7, 3) for i in range(2500)])
    assert abs(rows.mean()) < 0.02
    assert abs(rows.std() - 1) < 0.02
    assert abs((rows**3).mean()) < 0.05
    assert abs((rows**4).mean() - 3) < 0.1
    for limit, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert (abs(rows) > limit).mean() == pytest.approx(share, rel=0.15)
    apart = np.corrcoef(rows.T) - np.eye(40)
    assert abs(apart).max() < 0.1
    assert abs(np.corrcoef(rows[1:, 0], rows[:-1, 0])[0, 1]) < 0.06
    others = [
        drawn(40, 0, 7, 4), drawn(40, 0, 8, 3), drawn(40, 2500, 7, 3),
        drawn(40, 0, 7, 3, seed=SEED[::-1].copy()),
    ]  # fmt: skip
    for other in others:
        assert np.isin(other, rows).mean() < 0.1  # float32 repeats itself in 100,000 numbers
