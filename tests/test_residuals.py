"""What encoding loses of embeddings' gradients comes with the next ones."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.columns import BYTE, decode_values, encode_values
from streamlearn.residuals import VectorResiduals

PARTS, DIM = 2, 5


def some_keys(count: int) -> np.ndarray:
    keys = np.random.default_rng(0).integers(0, 1 << 63, count, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def test_what_was_sent_and_what_is_held_are_what_was_wanted() -> None:
    # As for ``columns.Residuals``: each step rounds in float32 what is held and what is wanted, to
    # 2**-24 of the largest sum, twice.
    rng = np.random.default_rng(1)
    every, residuals = some_keys(200), VectorResiduals(22, DIM, PARTS)
    lengths = rng.choice([0, 3, 5], 200).astype(np.int64)
    owner = np.repeat(np.arange(200), lengths * PARTS)
    wanted, sent = np.zeros((2, owner.size))
    largest, steps = 0.0, 40
    for step in range(steps):
        here = rng.random(200) < 0.5
        mask = here[owner]
        gradients = (rng.normal(size=owner.size) * np.exp(rng.normal(size=owner.size))).astype("f4")
        gradients = gradients[mask]
        wanted[mask] += gradients
        residuals.add(every[here], lengths[here], gradients)
        encoded = encode_values(gradients, BYTE, step)
        decoded = decode_values(encoded, gradients.size, BYTE)
        residuals.keep(every[here], lengths[here], gradients, decoded)
        sent[mask] += decoded
        largest = max(largest, float(np.abs(gradients).max()))
    held = np.zeros(owner.size, np.float32)
    residuals.add(every, lengths, held)
    assert np.abs(held).max() > 0.01
    np.testing.assert_allclose(sent + held, wanted, rtol=0, atol=2 * steps * largest * 2.0**-24)


def test_an_embedding_that_has_grown_begins_with_nothing_held() -> None:
    residuals = VectorResiduals(4, DIM, PARTS)
    key = np.array([9], np.uint64)
    residuals.keep(key, np.array([3]), np.ones(6, np.float32), np.zeros(6, np.float32))
    for dim, expected in ((5, 0), (3, 1), (0, 0), (3, 1)):
        gradients = np.zeros(dim * PARTS, np.float32)
        residuals.add(key, np.array([dim]), gradients)
        assert (gradients == expected).all()
    longer = np.arange(10, dtype=np.float32)
    residuals.keep(key, np.array([5]), longer, np.zeros(10, np.float32))
    for dim, expected in ((3, np.zeros(6)), (5, longer)):
        gradients = np.zeros(dim * PARTS, np.float32)
        residuals.add(key, np.array([dim]), gradients)
        np.testing.assert_array_equal(gradients, expected)


def test_gradients_of_another_number_are_refused() -> None:
    residuals = VectorResiduals(4, DIM, PARTS)
    keys, dims = some_keys(2), np.array([3, 5])
    right = np.zeros(16, np.float32)
    for size in (0, 15, 17):
        wrong = np.zeros(size, np.float32)
        for act in (
            lambda wrong=wrong: residuals.add(keys, dims, wrong),
            lambda wrong=wrong: residuals.keep(keys, dims, wrong, right),
            lambda wrong=wrong: residuals.keep(keys, dims, right, wrong),
        ):
            with pytest.raises(ValueError, match=f"{size} gradients of embeddings, expected 16"):
                act()
    residuals.add(keys[:0], dims[:0], right[:0])
    residuals.keep(keys[:0], dims[:0], right[:0], right[:0])
