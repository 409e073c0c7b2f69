"""Rounding in one pass is what tensors do in many, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamlearn.compute import rounding  # noqa: E402


def values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return blocks of very different sizes, one of zeros and one below what has digits."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=dice) * 10 ** torch.randint(
        -30, 30, (*shape[:-1], 1), generator=dice
    )
    flat = x.view(-1, shape[-1])
    flat[0] = 0
    flat[len(flat) // 2] = 1e-42
    return x


@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 7, 13), (4, 256), (1, 1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_writes_what_tensors_write(
    shape: tuple[int, ...], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for on_host in (True, False):
        monkeypatch.setattr(rounding, "_on_host", lambda _, here=on_host: here)
        x = values(shape, seed)
        scales = rounding.scales_of(x)
        row = shape[-2] * (rounding.SCALE_BYTES + shape[-1])
        rows = torch.zeros((*shape[:-2], row), dtype=torch.int8)
        places = torch.arange(x.numel(), dtype=torch.int32)
        rounding.write(rows, x, scales, places, (7, seed, 3, 1, 0), fine=True)
        found.append((scales.numpy().tobytes(), rows.numpy().tobytes(), x.numpy().tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_shows_in_the_scale_of_its_block_alone(wrong: float) -> None:
    x = torch.ones(3, 32)
    x[1, 31] = wrong
    scales = rounding.scales_of(x)
    assert torch.isfinite(scales).tolist() == [True, False, True]
