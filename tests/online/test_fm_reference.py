"""The slow twin of the factorization machine: its gradients, and what it does with them."""

from __future__ import annotations

import itertools
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

from streamlearn.config import FmConfig
from tests.reference.fm import Machine, Row, gradients, has, sigmoid, slopes, v_init
from tests.reference.fm import score as score_of
from tests.reference.ftrl import LogisticTwin
from tests.reference.tables import minibatch

EPS = np.finfo(np.float64).eps
# Weights that are not zero and stay so, embeddings at the first occurrence.
EAGER: dict[str, Any] = {"threshold": 0, "l1": 0.0, "v_init_scale": 0.5, "dim": 3}


class Drawn:
    """Parameters of six keys, embeddings from 0 to 5 numbers long, and an example of them.

    |V| <= 0.5 and |x| <= 1.5, none of the values 1. Two keys stand twice in it, with other values.
    """

    def __init__(self, order: int, seed: int, *, twice: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.places = np.array([0, 1, 2, 3, 4, 5, 1, 4] if twice else range(6))
        self.lengths = np.array([5, 2, 0, 3, 5, 1])
        self.bias = float(rng.uniform(-1, 1))
        self.w = rng.uniform(-1, 1, 6)
        self.V = rng.uniform(-0.5, 0.5, (order - 1, 6, 5))
        self.x = rng.uniform(-1.5, 1.5, len(self.places))
        self.label = float(seed % 2)
        self.share = 0.75

    def score(self, bias: Any, w: Any, V: Any, xp: Any = np) -> Any:
        """Return the score, of parameters by key."""
        at = self.places
        return score_of(bias, w[at], V[:, at], self.x, self.lengths[at], xp)

    def loss(self, bias: Any, w: Any, V: Any, xp: Any = np) -> Any:
        s = self.score(bias, w, V, xp)
        return self.share * (xp.logaddexp(0.0, s) - self.label * s)

    def by_key(self, by_occurrence: np.ndarray) -> np.ndarray:
        """Return gradients [..., n, dim] summed into those of the keys."""
        out = np.zeros(self.V.shape)
        for i, place in enumerate(self.places):
            out[:, place] += by_occurrence[:, i]
        return out

    @property
    def occurrences(self) -> tuple[Any, ...]:
        at = self.places
        return self.bias, self.w[at], self.V[:, at], self.x, self.lengths[at]


@pytest.fixture(params=[2, 3])
def order(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_sums_over_pairs_and_triples(order: int, seed: int) -> None:
    drawn = Drawn(order, seed)
    bias, w, V, x, lengths = drawn.occurrences
    exact = bias + sum(w[i] * x[i] for i in range(len(x)))
    for part, size in enumerate((2, 3)[: order - 1]):
        for chosen in itertools.combinations(range(len(x)), size):
            for f in range(min(lengths[i] for i in chosen)):
                exact += np.prod([V[part, i, f] * x[i] for i in chosen])
    # With |a| <= 0.75 and eight occurrences S <= 6, Q and |C| <= 4.5: no term is beyond S^3 + 3 S Q
    # + 2 C = 306, a sixth of it, in five coordinates; a sum of the terms rounds 56 times at most.
    assert drawn.score(drawn.bias, drawn.w, drawn.V) == pytest.approx(
        exact, rel=0, abs=56 * EPS / 2 * 5 * 306 / 6
    )


@pytest.mark.parametrize("seed", range(5))
def test_slopes_are_the_scores_differences(order: int, seed: int) -> None:
    drawn = Drawn(order, seed)
    out = drawn.by_key(slopes(*drawn.occurrences[2:]))
    # A key stands twice at most, so that the score is quadratic in each of its numbers: central
    # differences are exact for any step, but for the roundings of two scores: 1/2 EPS in each of 20
    # additions, whose results stay below 64 in these draws.
    for at in np.ndindex(drawn.V.shape):
        step = np.zeros(drawn.V.shape)
        step[at] = 0.5
        up, down = (drawn.score(drawn.bias, drawn.w, drawn.V + s) for s in (step, -step))
        assert out[at] == pytest.approx(up - down, rel=0, abs=2 * 20 * EPS / 2 * 64)
    assert not out[:, ~has(drawn.lengths, 5)].any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_are_autograds(order: int, twice: bool, seed: int) -> None:
    drawn = Drawn(order, seed, twice=twice)
    g, g_w, g_V = gradients(*drawn.occurrences, drawn.label, drawn.share)
    parameters = (drawn.bias, drawn.w, drawn.V)
    by_bias, by_w, by_V = (
        grad(lambda *given: drawn.loss(*given, xp=anp), argument)(*parameters)
        for argument in range(3)
    )
    # g <= 1 is rounded a few times. A slope is made of S^2, Q, a S and a^2, below 70 together,
    # times |x| <= 1.5, by some dozen operations; so are those of the other way round.
    assert g == pytest.approx(by_bias, rel=0, abs=8 * EPS)
    summed = np.bincount(drawn.places, g_w, 6)
    np.testing.assert_allclose(summed, by_w, rtol=0, atol=16 * EPS * 1.5)
    np.testing.assert_allclose(drawn.by_key(g_V), by_V, rtol=0, atol=2 * 12 * EPS * 70 * 1.5)


@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_the_losss_differences(order: int, seed: int) -> None:
    drawn = Drawn(order, seed)
    g, g_w, g_V = gradients(*drawn.occurrences, drawn.label, drawn.share)
    ours = (np.array(g), np.bincount(drawn.places, g_w, 6), drawn.by_key(g_V))
    parameters = (np.array(drawn.bias), drawn.w, drawn.V)
    # A difference over steps of h = 2^-16 errs by h^2 / 6 of the third derivative, which is below
    # |s'|^3 / 10 + 3 |s'| |s''| / 4 with |s'| < 4, |s''| < 5 in these draws: 9e-10; and by the
    # roundings of two losses, 20 additions each with results below 8, over 2 h: 1.2e-9.
    h = 2.0**-16
    for i, parameter in enumerate(parameters):
        for at in np.ndindex(parameter.shape):
            step = np.zeros(parameter.shape)
            step[at] = h
            up, down = (
                drawn.loss(*parameters[:i], parameter + s, *parameters[i + 1 :])
                for s in (step, -step)
            )
            assert ours[i][at] == pytest.approx((up - down) / (2 * h), rel=0, abs=2.1e-9)


def test_the_sigmoid_is_cut_where_it_says_nothing_more() -> None:
    assert sigmoid(0.0) == 0.5
    assert sigmoid(1e300) == sigmoid(35.0) < 1
    assert sigmoid(-1e300) == sigmoid(-35.0) > 0


def machine(**settings: Any) -> Machine:
    return Machine(FmConfig(**EAGER | settings))


def given(rows: dict[int, float], dim: int = 3, **settings: Any) -> Machine:
    """Return a machine with an embedding for each key and the weight that z gives."""
    out = machine(dim=dim, **settings)
    rng = np.random.default_rng(7)
    for key, z in rows.items():
        shape = (out.tiers.parts, dim)
        out.rows[key] = Row(z, 1.0, 5, rng.uniform(-0.5, 0.5, shape), np.zeros(shape))
    return out


def image(of: Machine) -> dict[int, tuple[Any, ...]]:
    return {
        key: (row.z, row.n, row.count, row.V.tolist(), row.m.tolist())
        for key, row in of.rows.items()
    }


def moved(of: Machine, key: int, before: np.ndarray) -> np.ndarray:
    """Return the gradient by which a key's embedding moved, if its m was 0 and its v_l2 is."""
    change = before - of.rows[key].V
    sums = of.rows[key].m
    gradient = change * (of.config.v_lr_beta + np.sqrt(sums)) / of.config.v_lr
    np.testing.assert_allclose(gradient**2, sums, rtol=1e-9, atol=1e-25)
    return gradient


@pytest.mark.parametrize("seed", range(3))
def test_without_embeddings_it_is_logistic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = [rng.choice([3, 5, 7, 9, 11], 3, replace=False).tolist() for _ in range(40)]
    values = np.float32(rng.uniform(-2, 2, (40, 3))).tolist()
    labels = rng.integers(0, 2, 40).tolist()
    ours = machine(threshold=100, l1=0.3, l2=0.1)
    twin = LogisticTwin(l1=0.3, l2=0.1)
    scores = ours.learn_each(minibatch(keys, labels, values=values))
    expected = twin.learn_all(zip(keys, values, strict=True), labels)
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
    for key in (3, 5, 7, 9, 11):
        assert ours.rows[key].count == twin.counts[key]
        assert ours.rows[key].dim == 0
        assert ours.weight(key) == pytest.approx(twin.weight(key), rel=1e-12, abs=1e-12)
    assert ours.intercept_weight() == pytest.approx(twin.intercept_weight(), rel=1e-12)
    assert ours.bias.count == 40


def test_a_minibatch_is_one_step_of_the_summed_gradient(order: int) -> None:
    ours = given({3: 2.0, 5: -1.0, 7: 0.5}, order=order, v_l2=0.0)
    before = {key: row.V for key, row in ours.rows.items()}
    w = np.array([ours.weight(key) for key in (3, 5, 7)])
    batch = minibatch(
        [[3, 5, 3], [7, 3, 5], []],
        labels=[1, 0, 1],
        weights=[1.0, 2.0, 0.5],
        values=[[0.5, 2.0, -1.5], [1.25, 0.75, -0.5], []],
    )
    lengths = np.full(3, 3)

    def loss(bias: Any, w: Any, V: Any) -> Any:
        total = 0.0
        for places, x, label, share in (
            ([0, 1, 0], [0.5, 2.0, -1.5], 1, 1.0),
            ([2, 0, 1], [1.25, 0.75, -0.5], 0, 2.0),
        ):
            s = score_of(bias, w[places], V[:, places], np.array(x), lengths, anp)
            total = total + share * (anp.logaddexp(0.0, s) - label * s)
        return total + 0.5 * (anp.logaddexp(0.0, bias) - bias)

    V = np.stack([before[key] for key in (3, 5, 7)], axis=1)
    by_bias, by_w, by_V = (grad(loss, argument)(0.0, w, V) for argument in range(3))
    scores = ours.learn(batch)
    assert scores[2] == 0
    for i, key in enumerate((3, 5, 7)):
        row = ours.rows[key]
        # Like the sums of the tests above, and the way there and back through the step.
        np.testing.assert_allclose(moved(ours, key, before[key]), by_V[:, i], rtol=0, atol=1e-12)
        assert row.n - 1.0 == pytest.approx(by_w[i] ** 2, rel=1e-12)
        sigma = (np.sqrt(row.n) - 1.0) / ours.config.alpha
        z = {3: 2.0, 5: -1.0, 7: 0.5}[key] + by_w[i] - sigma * w[i]
        assert row.z == pytest.approx(z, rel=1e-12)
    assert (ours.bias.z, ours.bias.n) == pytest.approx((by_bias, by_bias**2), rel=1e-12)
    assert [ours.rows[key].count for key in (3, 5, 7)] == [8, 7, 6]


def test_scores_are_those_before_the_minibatch_and_of_each_before_itself() -> None:
    batch = minibatch([[3, 5]] * 3, labels=[1, 1, 1])
    together, apart = machine(), machine()
    assert len(set(together.learn(batch).tolist())) == 1
    assert len(set(apart.learn_each(batch).tolist())) == 3
    again = together.score(batch)
    assert (together.learn(batch) == again).all()


def test_penalties_are_not_for_the_intercept() -> None:
    ours = machine(l1=10.0, l2=5.0)
    ours.learn(minibatch([[3]], labels=[1]))
    assert ours.weight(3) == 0
    # z = -1/2, n = 1/4: w = 0.5 / ((1 + 0.5) / alpha)
    assert ours.intercept_weight() == pytest.approx(0.5 / (1.5 / 0.1))
    ours.rows[3].z = -10.0
    assert ours.weight(3) == 0
    ours.rows[3].z = -10.5
    assert ours.weight(3) == pytest.approx(0.5 / (1.5 / 0.1 + 5.0))
    bare = machine(intercept=False)
    bare.learn(minibatch([[3]], labels=[1]))
    assert (bare.bias.z, bare.bias.n, bare.bias.count) == (0, 0, 0)
    assert bare.score(minibatch([[]])) == [0]


def test_embeddings_decay_where_their_features_are_seen() -> None:
    ours = given({3: 2.0, 5: 1.0}, v_l2=0.5)
    before = {key: row.V for key, row in ours.rows.items()}
    ours.learn(minibatch([[3]], labels=[1]))
    # Alone in its example, a pair has no slope.
    np.testing.assert_allclose(ours.rows[3].m, (0.5 * before[3]) ** 2, rtol=1e-15)
    assert np.array_equal(ours.rows[5].V, before[5])


def test_sums_of_squares_grow_by_coordinate() -> None:
    ours = given({3: 2.0, 5: 1.0}, v_l2=0.0)
    ours.learn(minibatch([[3, 5]], labels=[1]))
    first = ours.rows[3].m.copy()
    ours.learn(minibatch([[3, 5]], labels=[0]))
    assert (ours.rows[3].m > first).all()
    assert len(set(first.ravel().tolist())) == 3


def test_new_numbers_are_uniform_and_depend_on_all_that_names_them() -> None:
    assert v_init(5, 0, 2, 0.25) == v_init(5, 0, 2, 1.0) / 4
    drawn = [v_init(5, part, f, 1.0) for part in (0, 1) for f in range(512)]
    assert len(set(drawn)) > 1000  # of 2**20, some twice
    assert len({v_init(key, 0, 0, 1.0) for key in range(1, 2001, 2)}) > 980
    # 1024 uniform numbers: a mean beyond 5 / sqrt(3 * 1024) is beyond five deviations.
    assert abs(np.mean(drawn)) < 0.09
    assert -1 <= min(drawn) < -0.95
    assert 0.95 < max(drawn) < 1


def test_an_embedding_is_earned_beyond_the_threshold(order: int) -> None:
    ours = machine(threshold=2, order=order)
    batch = minibatch([[3]], labels=[1])
    for _ in range(2):
        ours.learn(batch)
        assert ours.rows[3].V.shape == (order - 1, 0)
    ours.learn(batch)
    expected = [[v_init(3, part, f, 0.5) for f in range(3)] for part in range(order - 1)]
    assert ours.rows[3].V.tolist() == expected
    assert ours.rows[3].m.tolist() == np.zeros((order - 1, 3)).tolist()


def test_a_threshold_waits_for_so_many_minibatches_of_frequent_keys() -> None:
    ours = machine(threshold=2)
    for _ in range(2):
        ours.learn(minibatch([[3, 3], [3, 5]], labels=[1, 1]))
        assert (ours.rows[3].dim, ours.rows[5].dim) == (0, 0)
    ours.learn(minibatch([[3, 3], [3, 5]], labels=[1, 1]))
    assert (ours.rows[3].count, ours.rows[5].count) == (9, 3)
    assert (ours.rows[3].dim, ours.rows[5].dim) == (3, 3)
    assert not ours.rows[3].m.any()


def test_a_zero_weight_earns_nothing_until_it_is_one() -> None:
    ours = machine(threshold=1, l1=1.2)
    batch = minibatch([[3]], labels=[1])
    ours.learn(batch)
    ours.learn(batch)
    assert ours.rows[3].count == 2
    assert ours.weight(3) == 0
    assert ours.rows[3].dim == 0
    ours.learn(batch, counts=False)
    assert ours.rows[3].count == 2
    assert ours.weight(3) != 0
    assert ours.rows[3].dim == 3


def test_an_embedding_grows_and_keeps_what_it_was(order: int) -> None:
    ours = Machine(
        FmConfig(
            order=order, dim_by_count={"1": 2, "3": 4, "4": 7}, l1=0.0, v_init_scale=0.5,
            v_lr=0.01, v_l2=0.01,
        )
    )  # fmt: skip
    batch = minibatch([[3, 5]], labels=[1])
    lengths = []
    for _ in range(4):
        ours.learn(batch)
        lengths.append(ours.rows[3].dim)
    assert lengths == [0, 2, 2, 4]
    before = ours.rows[3]
    old_V, old_m = before.V.copy(), before.m.copy()
    assert (old_m[:, :2] > 0).all()
    assert not old_m[:, 2:].any()
    # Without weight it teaches nothing, but its features are seen: only decay moves what was there.
    ours.learn(minibatch([[3]], labels=[1], weights=[0.0]))
    g = 0.01 * old_V
    sums = old_m + g**2
    assert ours.rows[3].m[:, :4].tolist() == sums.tolist()
    assert (ours.rows[3].V[:, :4] == old_V - 0.01 * g / (1.0 + np.sqrt(sums))).all()
    assert ours.rows[3].V[:, 4:].tolist() == [
        [v_init(3, part, f, 0.5) for f in range(4, 7)] for part in range(order - 1)
    ]
    assert not ours.rows[3].m[:, 4:].any()


def test_one_count_may_earn_several_tiers_at_once() -> None:
    ours = Machine(FmConfig(dim_by_count={"1": 2, "3": 4, "100": 8}, l1=0.0))
    ours.rows[3] = ours._new()
    ours.rows[3].count = 3
    ours.learn(minibatch([[3]], labels=[1]))
    assert ours.rows[3].dim == 4


def test_an_embedding_never_shrinks() -> None:
    ours = given({3: 2.0}, dim=3)
    ours.tiers = FmConfig(dim_by_count={"0": 2, "100": 4}).tiers
    ours.learn(minibatch([[3]], labels=[1]))
    assert ours.rows[3].dim == ours.rows[3].m.shape[1] == 3


def test_embeddings_of_other_lengths_meet_in_what_both_have() -> None:
    ours = machine(dim=4)
    for key, dim in ((3, 4), (5, 2)):
        V = np.full((1, dim), 0.5)
        ours.rows[key] = Row(1.0, 0.0, 0, V, np.zeros((1, dim)))
    assert ours.score(minibatch([[3, 5, 9]])) == pytest.approx(
        ours.weight(3) + ours.weight(5) + 2 * 0.25
    )
    ours.config = FmConfig(**EAGER | {"dim": 4, "v_l2": 0.0})
    ours.learn(minibatch([[3, 5]], labels=[1]))
    assert (ours.rows[3].m[0, :2] > 0).all()
    assert not ours.rows[3].m[0, 2:].any()


@pytest.mark.parametrize("l1_shrk", [False, True])
def test_an_embedding_of_a_zero_weight_is_left_out_where_told(l1_shrk: bool) -> None:
    ours = given({3: 2.0, 5: 0.25, 7: 1.0}, l1=0.5, l1_shrk=l1_shrk, v_l2=0.1)
    assert ours.weight(5) == 0
    before = {key: row.V for key, row in ours.rows.items()}
    pairs = float(np.sum(before[3] * before[5]))
    batch = minibatch([[3, 5]], labels=[1])
    expected = ours.weight(3) + (0.0 if l1_shrk else pairs)
    assert ours.score(batch) == pytest.approx(expected, rel=1e-12)
    assert ours.used(5) == (0 if l1_shrk else 3)
    ours.learn(batch)
    assert np.array_equal(ours.rows[5].V, before[5]) == l1_shrk
    assert ours.rows[5].m.any() != l1_shrk
    assert ours.rows[5].n > 1


def gradient_of(before: Machine, **settings: Any) -> tuple[np.ndarray, Machine]:
    """Return the gradient that moved the embeddings of keys 3, 5 and 7, with these settings."""
    kept = settings.pop("kept", None)
    ours = given({3: 2.0, 5: -1.0, 7: 0.5}, v_l2=0.0, **settings)
    old = {key: row.V for key, row in ours.rows.items()}
    assert all((old[key] == before.rows[key].V).all() for key in old)
    ours.learn(minibatch([[3, 5, 7], [3, 7]], labels=[1, 0], weights=[8.0, 8.0]), kept=kept)
    return np.concatenate([moved(ours, key, old[key]) for key in old]), ours


def test_clip_dropout_and_norm_act_in_this_order() -> None:
    start = given({3: 2.0, 5: -1.0, 7: 0.5})
    plain, unclipped = gradient_of(start)
    assert (np.abs(plain) > 1.0).any()
    assert (np.abs(plain) < 1.0).any()
    close = {"rtol": 1e-9, "atol": 1e-12}
    clipped, ours = gradient_of(start, v_clip=1.0)
    np.testing.assert_allclose(clipped, np.clip(plain, -1, 1), **close)
    mask = np.ones((3, 3))
    mask[0, 1] = mask[2, :2] = 0
    kept = {3: mask[:1], 7: mask[2:]}
    dropped, _ = gradient_of(start, v_dropout=0.3, kept=kept)
    np.testing.assert_allclose(dropped, plain * mask, **close)
    scaled, _ = gradient_of(start, v_normalize=True)
    np.testing.assert_allclose(scaled, plain / np.linalg.norm(plain), **close)
    both, _ = gradient_of(start, v_clip=1.0, v_dropout=0.3, v_normalize=True, kept=kept)
    left = np.clip(plain, -1, 1) * mask
    np.testing.assert_allclose(both, left / np.linalg.norm(left), **close)
    late = np.clip(plain / np.linalg.norm(plain), -1, 1) * mask
    assert np.abs(both - late).max() > 0.01
    # None of that is for weights.
    for key in (3, 5, 7):
        assert ours.rows[key].z == unclipped.rows[key].z


def test_decay_comes_after_the_norm() -> None:
    ours = given({3: 2.0, 5: 1.0}, v_l2=0.5, v_normalize=True)
    twin = given({3: 2.0, 5: 1.0}, v_l2=0.0, v_normalize=True)
    old = {key: row.V for key, row in ours.rows.items()}
    batch = minibatch([[3, 5]], labels=[1])
    ours.learn(batch)
    twin.learn(batch)
    for key in (3, 5):
        exact = moved(twin, key, old[key]) + 0.5 * old[key]
        np.testing.assert_allclose(moved(ours, key, old[key]), exact, rtol=1e-9, atol=1e-12)


def test_nothing_is_divided_by_a_norm_of_zero() -> None:
    ours = given({3: 2.0}, v_normalize=True, v_l2=0.0)
    before = ours.rows[3].V
    ours.learn(minibatch([[3]], labels=[1]))
    assert np.array_equal(ours.rows[3].V, before)


def test_dropout_needs_its_mask() -> None:
    with pytest.raises(AssertionError, match="without a mask"):
        machine(v_dropout=0.5).learn(minibatch([[3]]))


@pytest.mark.parametrize("huge", [1e200, np.inf, np.nan])
def test_an_example_without_a_finite_score_teaches_nothing(order: int, huge: float) -> None:
    ours = given({3: 2.0, 5: 1.0, 7: 1.0, 9: 1.0}, order=order)
    ours.rows[7].V[:] = huge
    without = given({3: 2.0, 5: 1.0, 7: 1.0, 9: 1.0}, order=order)
    ours.rows[9].count = without.rows[9].count = 0
    good = [[3, 5], [5]]
    scores = ours.learn(minibatch([good[0], [3, 7, 7, 9, 11], good[1]], labels=[1, 1, 0]))
    assert np.isfinite(scores).tolist() == [True, False, True]
    assert ours.dropped == 1
    assert (without.learn(minibatch(good, labels=[1, 0])) == scores[[0, 2]]).all()
    for key in (3, 5, 9):
        a, b = ours.rows[key], without.rows[key]
        assert (a.z, a.n) == (b.z, b.n)
        assert (a.V == b.V).all()
        assert (a.m == b.m).all()
    assert (ours.bias.z, ours.bias.n) == (without.bias.z, without.bias.n)
    # What stood in it was seen.
    assert [ours.rows[key].count for key in (3, 5, 7, 9, 11)] == [7, 7, 7, 1, 1]
    assert ours.bias.count == 3
    assert (ours.rows[11].z, ours.rows[11].n, ours.rows[11].dim) == (0, 0, 0)


def test_counts_travel_where_told() -> None:
    ours = machine()
    batch = minibatch([[3, 5], [3]], labels=[1, 0])
    ours.learn(batch)
    before = {key: row.count for key, row in ours.rows.items()}
    assert before == {3: 2, 5: 1}
    ours.learn(batch, counts=False)
    ours.learn_each(batch, counts=False)
    assert {key: row.count for key, row in ours.rows.items()} == before


def test_scoring_changes_nothing() -> None:
    ours = given({3: 2.0, 5: 1.0})
    before = image(ours)
    assert ours.score(minibatch([[3, 5, 99], []])).shape == (2,)
    assert ours.score(minibatch([])).shape == (0,)
    assert ours.learn_each(minibatch([])).shape == (0,)
    assert image(ours) == before
