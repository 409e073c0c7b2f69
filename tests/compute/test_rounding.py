"""Rounding without bias: statistics, bytes, dice that a second implementation draws alike."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.compute.rounding import (  # noqa: E402
    blocks_of,
    decode,
    encode,
    noise,
    scales_of,
    sent_bytes,
    write,
)

MASK64 = (1 << 64) - 1


def twin_noise(count: int, key: tuple[int, ...]) -> np.ndarray:
    """The same numbers in NumPy's unsigned arithmetic."""
    word = 0
    for part in key:
        word = (word + part + 0x9E3779B97F4A7C15) & MASK64
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK64
        word ^= word >> 31
    x = np.arange(count, dtype=np.uint32) + np.uint32(word & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x ^= np.uint32(word >> 32)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float64) / 2**24


@pytest.mark.parametrize("key", [(0,), (7, 0, 0, 0, 0), (7, 3, 1, 2, 1), (2**63, 10**9, 5, 7, 1)])
def test_noise_is_what_a_second_implementation_draws(key: tuple[int, ...]) -> None:
    drawn = noise(torch.arange(5000, dtype=torch.int32), key).numpy()
    assert np.array_equal(drawn, twin_noise(5000, key))


def test_noise_is_uniform_and_its_streams_are_unrelated() -> None:
    places = torch.arange(1 << 16, dtype=torch.int32)
    streams = [noise(places, (1, step, 0, worker, 0)) for step in range(3) for worker in range(3)]
    for one in streams:
        counts = torch.histc(one, 64, 0, 1)
        expected = len(places) / 64
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert 25 < chi < 120  # 63 degrees of freedom: 1e-5 either side
    table = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert table.abs().max() < 5 / 2**8  # five deviations
    lagged = torch.corrcoef(torch.stack([streams[0][:-1], streams[0][1:]]))[0, 1]
    assert abs(lagged) < 5 / 2**8


def test_rounding_has_no_bias() -> None:
    draws, block = 4000, 64
    values = torch.randn(block, generator=torch.Generator().manual_seed(1)).double()
    values[:4] = torch.tensor([0.0, 1e-4, -1e-4, 3.0])  # the largest, and far below one code
    values = values.float()
    many = values.expand(draws, block).contiguous()
    scales = scales_of(many)
    dice = noise(torch.arange(draws * block, dtype=torch.int32), (3,)).view(draws, block)
    codes = encode(many, scales, dice).double()
    scaled = (values.double() / scales[0].double())[None]
    assert (codes - scaled).abs().max() < 1 + 1e-5
    fraction = scaled[0] - scaled[0].floor()
    deviation = (fraction * (1 - fraction) / draws).sqrt()
    bias = (codes.mean(0) - scaled[0]).abs()
    assert (bias <= 4.5 * deviation + 1e-5).all()
    assert (codes[:, 0] == 0).all()


def test_codes_reach_the_ends_and_never_wrap() -> None:
    values = torch.tensor([[3.4e38, -3.4e38, 1.0, 0.0], [1.7, -1.7, 1.699999, 1e-30]])
    highest = encode(values, scales_of(values), torch.zeros_like(values))
    lowest = encode(values, scales_of(values), torch.full_like(values, 1 - 2**-24))
    assert highest[:, 0].tolist() == [127, 127]
    assert lowest[:, 0].tolist() == [126, 126]
    assert highest[:, 1].tolist() == [-126, -126]
    assert lowest[:, 1].tolist() == [-127, -127]


def test_what_has_no_digits_left_stays_whole() -> None:
    values = torch.tensor([[1e-39, -1e-40, 0.0, 1e-38]])
    kept = values.clone()
    rows = torch.empty(1 * (4 + 4), dtype=torch.int8)
    write(rows, kept, scales_of(kept), torch.arange(4, dtype=torch.int32), (0,), fine=True)
    assert torch.equal(kept, values)
    assert not decode(rows, 1, 4).any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_no_number_shows_in_the_scale(wrong: float) -> None:
    values = torch.tensor([[1.0, wrong], [1.0, 2.0]])
    assert torch.isfinite(scales_of(values)).tolist() == [False, True]


def test_row_and_residual_add_up_to_the_values() -> None:
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2))
    kept, rows = values.clone(), torch.empty((3, 5 * 11), dtype=torch.int8)
    write(rows, kept, scales_of(kept), torch.arange(105, dtype=torch.int32), (9,), fine=True)
    back = torch.stack([decode(row, 5, 7) for row in rows])
    assert torch.allclose(back + kept, values, rtol=0, atol=1e-6)
    assert (kept.abs() <= scales_of(values)[..., None]).all()


@pytest.mark.parametrize("workers", range(2, 9))
@pytest.mark.parametrize("coordinates", [400, 1000, 2049, 65_537, 1 << 20, 9_999_991])
def test_bytes_are_at_most_27_percent(workers: int, coordinates: int) -> None:
    before, after = sent_bytes(coordinates, workers)
    assert after <= 0.27 * before
    if coordinates > 1 << 16:
        assert after <= 0.256 * before


@pytest.mark.parametrize("coordinates", [1, 2, 7, 255, 256, 257, 100_003])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [1, 64, 256])
def test_blocks_hold_all_with_little_padding(coordinates: int, workers: int, block: int) -> None:
    blocks, even = blocks_of(coordinates, workers, block)
    assert even <= block
    assert coordinates <= workers * blocks * even < coordinates + workers * blocks + workers
