"""What a worker does with embeddings: lays them out, gathers gradients and treats them."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels.fm_steps import gather, lay_out, treat
from streamlearn.embeddings import Tiers
from tests.reference.embeddings import Embedding, laid_out
from tests.reference.fm_runs import stays

TIERS = [Tiers(2, (0,), (16,)), Tiers(3, (0, 1), (5, 8)), Tiers(2, (0, 1, 2), (3, 11, 20))]
EPS = 2.0**-24


def some_dims(tiers: Tiers) -> list[list[int]]:
    many = np.random.default_rng(3).choice([0, *tiers.dims], 60).tolist()
    return [[], [0], [tiers.dim], [0, tiers.dims[0], 0], many]


@pytest.mark.parametrize("tiers", TIERS)
def test_embeddings_are_laid_out_as_a_table_has_them_and_their_sums_gathered(tiers: Tiers) -> None:
    rng = np.random.default_rng(1)
    for dims in some_dims(tiers):
        held = [rng.normal(size=(tiers.parts, dim)).astype(np.float32) for dim in dims]
        packed = np.concatenate([np.zeros(0, np.float32), *(V.reshape(-1) for V in held)])
        lengths = np.array(dims, np.int64)
        size = 16 + sum(tiers.floats(dim) for dim in dims)
        values, places = np.full(size + 16, 7, np.float32), np.full(len(dims), -1, np.int64)
        end = lay_out(packed, lengths, tiers.lanes, tiers.parts, 16, values, places)
        assert end == size
        expected = [laid_out(Embedding(V, np.zeros_like(V)), tiers) for V in held if V.size]
        assert values[16:end].tobytes() == np.concatenate([packed[:0], *expected]).tobytes()
        assert (values[:16] == 7).all()
        assert (values[end:] == 7).all()
        at = 16
        for dim, place in zip(dims, places.tolist(), strict=True):
            assert place == (at if dim else 0)
            at += tiers.floats(dim)
        sums = [rng.normal(size=V.shape).astype(np.float32) * 2.0**50 for V in held]
        for V, m, place in zip(held, sums, places.tolist(), strict=True):
            if V.size:
                values[place : place + tiers.floats(V.shape[1])] = laid_out(Embedding(V, m), tiers)
        out = np.full(packed.size, np.nan, np.float32)
        gather(values, places, lengths, tiers.lanes, tiers.parts, out)
        flat = np.concatenate([packed[:0], *(m.reshape(-1) for m in sums)])
        np.testing.assert_array_equal(out, np.clip(flat, -(2.0**51), 2.0**51))


@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 64) - 1])
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("size", [0, 1, 2, 700])
def test_clip_dropout_and_norm_act_in_this_order(
    size: int, clip: float, dropout: float, normalize: int, seed: int
) -> None:
    gradients = np.random.default_rng(size).normal(size=size).astype(np.float32)
    expected = np.clip(gradients, -clip, clip) if clip else gradients.copy()
    if dropout:
        kept = [stays(seed + i & (1 << 64) - 1, dropout) for i in range(size)]
        expected = np.where(kept, expected, np.float32(0))
    norm = float(np.linalg.norm(expected.astype(float)))
    treat(gradients, np.float32(clip), np.float32(dropout), normalize, np.uint64(seed))
    if normalize and norm:
        # the sum of squares rounds once a number, and half of that is the norm's
        np.testing.assert_allclose(gradients, expected / norm, rtol=(size + 4) * EPS, atol=0)
    else:
        np.testing.assert_array_equal(gradients, expected)


def test_what_drops_out_is_the_share_that_was_asked_for() -> None:
    gradients = np.ones(100_000, np.float32)
    treat(gradients, np.float32(0), np.float32(0.3), 0, np.uint64(7))
    # five deviations of a binomial of 100,000
    assert abs(float(gradients.mean()) - 0.7) < 5 * np.sqrt(0.21 / 100_000)


def test_gradients_of_zero_have_no_norm() -> None:
    gradients = np.zeros(5, np.float32)
    treat(gradients, np.float32(0), np.float32(0), 1, np.uint64(0))
    assert not gradients.any()
