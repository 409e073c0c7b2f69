"""Pooling by field against sums written out, and against torch's EmbeddingBag."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import pooling

DIM = 5


@dataclass
class Features:
    """Features of some rows, as kernels take them."""

    inverse: Any
    fields: Any
    values: Any
    indptr: Any
    weights: Any
    dims: Any
    vectors: Any
    places: Any
    n_fields: int

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def given(self) -> tuple[Any, ...]:
        return self.inverse, self.fields, self.values, self.indptr, self.rows

    def table(self) -> np.ndarray:
        """Embeddings a row each, zeros where there are none."""
        out = np.zeros((len(self.dims), DIM), np.float32)
        for i, (dim, at) in enumerate(zip(self.dims, self.places, strict=True)):
            out[i, :dim] = self.vectors[at : at + dim]
        return out

    def each(self) -> list[tuple[int, int, int, float]]:
        """Row, field, key and value of each feature."""
        rows = np.repeat(np.arange(self.rows), np.diff(self.indptr))
        x = self.values if len(self.values) else np.ones(len(self.inverse), np.float32)
        return [
            (int(r), int(f), int(i), float(v))
            for r, f, i, v in zip(rows, self.fields, self.inverse, x, strict=True)
        ]


def features(
    seed: int, rows: int, keys: int, n_fields: int, *, values: bool, most: int = 7
) -> Features:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, rows)
    nnz = int(lengths.sum())
    dims = rng.choice([0, 3, DIM], keys).astype(np.int64)
    places = np.empty(keys, np.int64)
    size = pooling.place(dims, places)
    return Features(
        inverse=rng.integers(0, keys, nnz).astype(np.int32),
        fields=rng.integers(0, n_fields, nnz).astype(np.int32),
        values=rng.uniform(-2, 2, nnz if values else 0).astype(np.float32),
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        weights=rng.normal(size=keys).astype(np.float32),
        dims=dims,
        vectors=rng.normal(size=size).astype(np.float32),
        places=places,
        n_fields=n_fields,
    )


CASES = {
    "some": features(1, 9, 12, 4, values=False),
    "values": features(2, 9, 12, 4, values=True),
    "one": features(3, 1, 1, 1, values=True, most=1),
    "twice": features(4, 20, 2, 2, values=False, most=12),
    "nothing in them": features(5, 3, 2, 4, values=False, most=0),
    "none": features(6, 0, 1, 3, values=True),
}


def gather(one: Features, *, mean: bool) -> tuple[np.ndarray, np.ndarray]:
    wide = np.full((one.rows, one.n_fields), 7, np.float32)
    embeddings = np.full((one.rows, one.n_fields, DIM), 7, np.float32)
    pooling.gather(
        *one.given, one.weights, one.vectors, one.places, one.dims, int(mean),
        np.empty(one.n_fields, np.int64), wide, embeddings,
    )  # fmt: skip
    return wide, embeddings


def scatter(
    one: Features, d_wide: np.ndarray, d_embeddings: np.ndarray, *, mean: bool
) -> tuple[np.ndarray, np.ndarray]:
    d_weights = np.full(len(one.dims), 7, np.float32)
    d_vectors = np.full(len(one.vectors), 7, np.float32)
    pooling.scatter(
        *one.given, d_wide, d_embeddings, one.places, one.dims, int(mean),
        np.empty(one.n_fields, np.int64), d_weights, d_vectors,
    )  # fmt: skip
    return d_weights, d_vectors


def counts_of(one: Features) -> np.ndarray:
    counts = np.zeros((one.rows, one.n_fields))
    for r, f, _, _ in one.each():
        counts[r, f] += 1
    return np.maximum(counts, 1)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_features_are_pooled_as_the_sums_say(name: str, mean: bool) -> None:
    one = CASES[name]
    wide, embeddings = gather(one, mean=mean)
    by_w, by_v = np.zeros(wide.shape), np.zeros(embeddings.shape)
    table = one.table().astype(float)
    for r, f, i, x in one.each():
        by_w[r, f] += float(one.weights[i]) * x
        by_v[r, f] += table[i] * x
    if mean:
        by_v /= counts_of(one)[..., None]
    # at most 12 terms below 8 in size, rounded once each
    np.testing.assert_allclose(wide, by_w, rtol=0, atol=12 * 100 * 2.0**-24)
    np.testing.assert_allclose(embeddings, by_v, rtol=0, atol=12 * 100 * 2.0**-24)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_transposes(name: str, mean: bool) -> None:
    one = CASES[name]
    rng = np.random.default_rng(9)
    d_wide = rng.normal(size=(one.rows, one.n_fields)).astype(np.float32)
    d_embeddings = rng.normal(size=(one.rows, one.n_fields, DIM)).astype(np.float32)
    d_weights, d_vectors = scatter(one, d_wide, d_embeddings, mean=mean)
    by_w, by_v = np.zeros(len(one.dims)), np.zeros((len(one.dims), DIM))
    counts = counts_of(one) if mean else np.ones((one.rows, one.n_fields))
    for r, f, i, x in one.each():
        by_w[i] += float(d_wide[r, f]) * x
        by_v[i] += d_embeddings[r, f].astype(float) * x / counts[r, f]
    flat = [by_v[i, :dim] for i, dim in enumerate(one.dims)]
    np.testing.assert_allclose(d_weights, by_w, rtol=0, atol=100 * 100 * 2.0**-24)
    np.testing.assert_allclose(
        d_vectors, np.concatenate([np.zeros(0), *flat]), rtol=0, atol=100 * 100 * 2.0**-24
    )


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_torchs_embedding_bag_gives_the_same(mode: str) -> None:
    torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
    one = CASES["some"]
    members, _, offsets = bagged(one)
    table = torch.tensor(one.table(), requires_grad=True)
    pooled = torch.nn.functional.embedding_bag(
        torch.tensor(members), table, torch.tensor(offsets), mode=mode, include_last_offset=True
    ).view(one.rows, one.n_fields, DIM)
    wide, embeddings = gather(one, mean=mode == "mean")
    np.testing.assert_allclose(embeddings, pooled.detach(), rtol=0, atol=1e-5)
    d_embeddings = np.random.default_rng(3).normal(size=pooled.shape).astype(np.float32)
    pooled.backward(torch.tensor(d_embeddings))
    _, d_vectors = scatter(one, np.zeros_like(wide), d_embeddings, mean=mode == "mean")
    expected = [table.grad[i, :dim].numpy() for i, dim in enumerate(one.dims)]
    np.testing.assert_allclose(d_vectors, np.concatenate(expected), rtol=0, atol=1e-5)


def bagged(one: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    members = np.full(len(one.inverse), -1, np.int32)
    xs = np.full(len(one.values), np.nan, np.float32)
    offsets = np.full(one.rows * one.n_fields + 1, -1, np.int32)
    pooling.bag(*one.given, one.n_fields, members, xs, offsets)
    return members, xs, offsets


@pytest.mark.parametrize("name", CASES)
def test_bags_have_the_features_of_a_field_in_their_order(name: str) -> None:
    one = CASES[name]
    members, xs, offsets = bagged(one)
    assert offsets[-1] == len(members)
    expected: list[list[tuple[int, float]]] = [[] for _ in range(one.rows * one.n_fields)]
    for r, f, i, x in one.each():
        expected[r * one.n_fields + f].append((i, x))
    values = xs if len(xs) else np.ones(len(members), np.float32)
    found = [
        list(zip(members[a:b].tolist(), values[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(offsets.tolist())
    ]
    assert found == expected


def test_what_is_not_wanted_is_neither_read_nor_written() -> None:
    one = CASES["values"]
    no_wide, no_embeddings = np.zeros((0, 0), np.float32), np.zeros((0, 0, 0), np.float32)
    scratch = np.empty(one.n_fields, np.int64)
    wide, embeddings = gather(one, mean=True)
    some = np.empty_like(wide)
    pooling.gather(
        *one.given, one.weights, one.vectors, one.places, one.dims, 1, scratch, some,
        no_embeddings,
    )  # fmt: skip
    assert some.tobytes() == wide.tobytes()
    others = np.empty_like(embeddings)
    pooling.gather(
        *one.given, one.weights, one.vectors, one.places, one.dims, 1, scratch, no_wide, others
    )
    assert others.tobytes() == embeddings.tobytes()
    d_weights, d_vectors = scatter(one, no_wide, np.ones_like(embeddings), mean=True)
    assert not d_weights.any()
    assert d_vectors.any()
    d_weights, d_vectors = scatter(one, np.ones_like(wide), no_embeddings, mean=True)
    assert d_weights.any()
    assert not d_vectors.any()


def test_what_is_no_number_stays_in_its_row_and_gradients_are_cut() -> None:
    one = features(8, 6, 8, 3, values=False)
    one.weights[one.inverse[0]] = np.nan
    wide, _ = gather(one, mean=False)
    hit = {(r, f) for r, f, i, _ in one.each() if i == one.inverse[0]}
    assert {tuple(at) for at in np.argwhere(np.isnan(wide)).tolist()} == hit
    shape = (one.rows, one.n_fields)
    d_weights, d_vectors = scatter(
        one, np.full(shape, np.inf, np.float32), np.full((*shape, DIM), -np.inf, np.float32),
        mean=False,
    )  # fmt: skip
    used = np.unique(one.inverse)
    assert (d_weights[used] == 2.0**51).all()
    assert set(d_vectors.tolist()) <= {-(2.0**51), 0.0}


def test_rows_of_keys_go_there_and_back() -> None:
    one = CASES["some"]
    rows = np.full((len(one.dims), DIM), 7, np.float32)
    pooling.spread(one.vectors, one.places, one.dims, rows)
    assert rows.tobytes() == one.table().tobytes()
    back = np.empty_like(one.vectors)
    pooling.take(rows, one.places, one.dims, back)
    assert back.tobytes() == one.vectors.tobytes()
    rows[:] = np.inf
    pooling.take(rows, one.places, one.dims, back)
    assert (back == 2.0**51).all()
