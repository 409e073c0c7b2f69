"""Least squares of users given items: NumPy's own answer."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels import ridge as kernels

BUCKET = 8192


@pytest.mark.parametrize(("dim", "l2"), [(1, 0.1), (5, 0.05), (24, 0.01), (6, 0.0)])
def test_users_are_fitted_as_by_the_normal_equations(dim: int, l2: float) -> None:
    rng = np.random.default_rng(dim)
    users, items, n = 20, 40, 500
    u, i = rng.integers(0, users - 1, n), rng.integers(0, items, n)  # the last one rated nothing
    values = np.array([[r, a] for r in (1, 2.5, 4) for a in (1.0, 0.25, 0.0)], np.float32)
    c = rng.integers(0, len(values), n)
    words = i.astype(np.uint64) << np.uint64(32) | u.astype(np.uint64) << np.uint64(19)
    words |= c.astype(np.uint64)
    q = rng.normal(0, 0.4, (items, dim + 3)).astype(np.float32)
    p, biases = np.ones((users, dim + 3), np.float32), np.ones(users, np.float32)
    item_biases = rng.normal(0, 0.3, items).astype(np.float32)
    starts, order = np.zeros(BUCKET + 1, np.int64), np.zeros(n, np.int64)
    kernels.by_user(words, n, starts, order)
    assert (u[order] == np.sort(u)).all()
    for first, end in ((0, 7), (7, users)):
        kernels.fit_users(
            words, starts, order, first, end, p, q, biases, item_biases, values,
            np.float32(3.0), dim, l2,
        )  # fmt: skip
    for user in range(users):
        mine = u == user
        r, a = values[c[mine]].T.astype(float)
        x = np.append(q[i[mine], :dim], np.ones((mine.sum(), 1)), axis=1).astype(float)
        shape = (x * a[:, None]).T @ x + l2 * a.sum() * np.eye(dim + 1)
        wanted = np.linalg.pinv(shape) @ (x.T @ (a * (r - item_biases[i[mine]] - 3.0)))
        assert np.append(p[user, :dim], biases[user]) == pytest.approx(wanted, abs=2e-3)
        assert (p[user, dim:] == 1).all()
