"""Rounding floats to one byte each, without bias: blocks under a scale, dice by counter.

A row as it travels holds a chunk's scales (float32), then its codes (int8). Everything here is a
function of tensors, on any device; the same inputs give the same bytes.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from streamlearn.compute.kernels import rounding as kernels

__all__ = [
    "BLOCK",
    "SCALE_BYTES",
    "blocks_of",
    "decode",
    "encode",
    "float_bytes",
    "noise",
    "scales_in",
    "scales_of",
    "sent_bytes",
    "write",
]

# Coordinates under one float32 scale. A scale costs 4/256 = 1.6 % of the codes; at 64 it would be
# 6.3 % (26.6 % of float32's bytes: next to the budget of 27 %), for a scale that is only 1.2 times
# finer where coordinates are normal (the largest of 64 is 2.4 deviations, of 256 2.8). Far larger
# blocks save at most 0.4 points more and let one large coordinate coarsen thousands.
BLOCK: Final = 256

# The code of a block's largest coordinate: a hair below 127, so that division in float32 never
# reaches 127 and rounding up never 128. Nothing has to be clamped, which would be a bias.
_CODE_MAX: Final = 127 - 2**-13

_SCALE_MIN: Final = 2.0**-126  # below, float32 has no digits to divide by: all stays residual
SCALE_BYTES: Final = 4


def sent_bytes(coordinates: int, workers: int, block: int = BLOCK) -> tuple[int, int]:
    """Return what one worker sends for one bucket: in float32, and as codes and scales.

    Parameters
    ----------
    coordinates, workers, block : int
        Each at least 1.

    Returns
    -------
    before : int
        A ring's all-reduce: 2 (n-1) chunks of 4 bytes a coordinate.
    after : int
        Both hops' codes, padding and scales. At most 27 % of the former from 50 coordinates a
        worker on (at the default block); frames of the transport count in neither.
    """
    blocks, block = blocks_of(coordinates, workers, block)
    after = 2 * (workers - 1) * blocks * (SCALE_BYTES + block)
    return float_bytes(coordinates, workers), after


def blocks_of(coordinates: int, workers: int, block: int) -> tuple[int, int]:
    """Return blocks a chunk and coordinates a block, evened out below the one asked for."""
    chunk = math.ceil(coordinates / workers)
    blocks = math.ceil(chunk / block)
    return blocks, math.ceil(chunk / blocks)


def float_bytes(coordinates: int, workers: int) -> int:
    """Return what one worker sends of a bucket in a ring's all-reduce of float32."""
    return 2 * (workers - 1) * math.ceil(coordinates / workers) * 4


def scales_of(values: torch.Tensor) -> torch.Tensor:
    """Return each block's scale: what one code is worth.

    Parameters
    ----------
    values : float32[..., block]

    Returns
    -------
    float32[...]
        max|x| / 127, a hair more; 0 where that has no digits left; NaN or inf where x has any.
    """
    if _on_host(values):
        found = torch.empty(values.shape[:-1])
        flat = values.view(-1, values.shape[-1]).numpy()
        kernels.scales_of(
            flat, np.float32(_CODE_MAX), np.float32(_SCALE_MIN), found.view(-1).numpy()
        )
        return found
    scales = values.abs().amax(-1) / _CODE_MAX
    return torch.where(scales < _SCALE_MIN, torch.zeros_like(scales), scales)


def encode(values: torch.Tensor, scales: torch.Tensor, dice: torch.Tensor) -> torch.Tensor:
    """Round values to codes without bias.

    Parameters
    ----------
    values : float32[..., block]
    scales : float32[...]
        From ``scales_of`` of the same values, finite.
    dice : float32[..., block]
        Uniform in [0, 1), as ``noise`` makes them.

    Returns
    -------
    int8[..., block]
        floor(x/s) + (u < x/s - floor(x/s)): x/s in the mean, and never further than 1 from it. The
        remainder is compared, not added to: a sum near 127 would keep only 17 bits of u. Bias at
        most 2^-24 of a scale.
    """
    codes = values / torch.where(scales == 0, torch.full_like(scales, torch.inf), scales)[..., None]
    floor = codes.floor()
    codes -= floor
    floor += dice < codes
    return floor.to(torch.int8)


def decode(row: torch.Tensor, blocks: int, block: int) -> torch.Tensor:
    """Return the values of a row as it travels: scales, then codes.

    Parameters
    ----------
    row : int8[blocks * (4 + block)]

    Returns
    -------
    float32[blocks, block]
    """
    codes = row[blocks * SCALE_BYTES :].view(blocks, block)
    return codes.to(torch.float32).mul_(scales_in(row, blocks)[:, None])


def scales_in(rows: torch.Tensor, blocks: int) -> torch.Tensor:
    """Return the scales of rows: a copy, since a row need not begin where a float may."""
    return rows[..., : blocks * SCALE_BYTES].clone().contiguous().view(torch.float32)


def noise(places: torch.Tensor, key: tuple[int, ...]) -> torch.Tensor:
    """Draw a uniform number for each place by counter: the same on every device, in any order.

    Parameters
    ----------
    places : int32[k]
        0, 1, 2, ...
    key : tuple of int
        Seed, step, bucket, worker and stage: one stream of numbers for each.

    Returns
    -------
    float32[k]
        In [0, 1), 24 bits.

    Notes
    -----
    The key is folded to two words by splitmix64's finaliser (Steele et al., OOPSLA 2014); the place
    plus the first goes through Wellons's `lowbias32` with the second between its multiplications,
    so that two keys whose first words lie close do not give the same numbers a little shifted.
    """
    word = _word_of(key)
    x = places + _signed(word)
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x ^= _signed(word >> 32)
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    x = (x >> 8) & 0xFFFFFF
    return x.to(torch.float32).mul_(2.0**-24)


def write(
    rows: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    places: torch.Tensor,
    key: tuple[int, ...],
    *,
    fine: bool,
) -> None:
    """Write values as rows for the wire; leave in `values` what rounding kept back.

    Where they are not `fine`, all scales are NaN, and `values` stays what it is.
    """
    blocks = values.shape[-2]
    head, codes = rows[..., : blocks * SCALE_BYTES], rows[..., blocks * SCALE_BYTES :]
    if not fine:
        codes.zero_()
        scales = torch.full_like(scales, torch.nan)
    elif _on_host(values):
        _write_codes(codes, values, scales, key)
    else:
        dice = noise(places[: values.numel()], key).view_as(values)
        coded = encode(values, scales, dice)
        codes.copy_(coded.view(codes.shape))
        values -= coded.to(torch.float32).mul_(scales[..., None])
    head.copy_(scales.contiguous().view(torch.int8).view(head.shape))


def _write_codes(
    codes: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, key: tuple[int, ...]
) -> None:
    """Do what :func:`write` does with tensors, in one pass."""
    word, (blocks, block) = _word_of(key), values.shape[-2:]
    first, second = np.uint32(word & 0xFFFFFFFF), np.uint32(word >> 32)
    rows = zip(
        values.view(-1, blocks, block), scales.view(-1, blocks), codes.view(-1, blocks * block),
        strict=True,
    )  # fmt: skip
    for number, (one, its, out) in enumerate(rows):
        at = np.uint32(number * blocks * block & 0xFFFFFFFF)
        kernels.write(one.numpy(), its.numpy(), first, second, at, out.view(blocks, block).numpy())


def _on_host(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and values.is_contiguous() and values.dtype == torch.float32


def _word_of(key: tuple[int, ...]) -> int:
    """Fold a key to 64 bits."""
    word = 0
    for part in key:
        word = _finalised(word + part + 0x9E3779B97F4A7C15)
    return word


def _finalised(word: int) -> int:
    word &= 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    """Return the low 32 bits as torch's int32 has them."""
    return ((word + 0x80000000) & 0xFFFFFFFF) - 0x80000000
