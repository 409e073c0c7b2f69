"""A model of ratings that the command line has learned, for who looks at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.runs import run

USERS, ITEMS = 120, 60


def ratings(rows: int = 3000, seed: int = 0) -> list[tuple[str, str, float]]:
    """Return ratings of rank 3, no pair twice; popular items are rated more."""
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    share = np.tile(1.0 / (np.arange(ITEMS) + 5), USERS)
    pairs = rng.choice(USERS * ITEMS, rows, replace=False, p=share / share.sum())
    u, i = np.divmod(pairs, ITEMS)
    r = 3.0 + np.linspace(1, -1, ITEMS)[i] + (p[u] * q[i]).sum(1) / 4
    values = (2 * r).round().clip(1, 10) / 2
    return [
        (f"u{a}", f"i{b:02d}", value)
        for a, b, value in zip(u.tolist(), i.tolist(), values.tolist(), strict=True)
    ]


def written(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    """Write ratings as ``user::item::rating`` lines."""
    path.write_text("".join(f"{user}::{item}::{value}\n" for user, item, value in rows))
    return path


def learned(directory: Path, *flags: object) -> Path:
    """Learn ratings; return the output directory, beside which they stand as ``ratings.dat``."""
    source = written(directory / "ratings.dat", ratings())
    ended = run(
        "train", source, "--model", "mf", "--dim", 5, "--epochs", 8, "--lanes", 1, "--out",
        directory / "out", *flags,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    return directory / "out"
