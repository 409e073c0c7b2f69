"""Deep steps: against one written out in float64, and what holds of every model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.compute.cuda import StreamLane  # noqa: E402
from streamlearn.errors import ConfigError, DataError, SnapshotError  # noqa: E402
from streamlearn.kinds import DeepConfig  # noqa: E402
from streamlearn.lanes import Parcel, Portion  # noqa: E402
from streamlearn.online.deep import DeepSolver, DeepStep  # noqa: E402
from streamlearn.online.nets import Sizes  # noqa: E402
from streamlearn.online.steps import Gradients  # noqa: E402
from streamlearn.shards.arena import Arena  # noqa: E402
from streamlearn.shards.table import ExactTable  # noqa: E402
from tests.deep_steps import (  # noqa: E402
    COLUMNS,
    DIM,
    FIELDS,
    Examples,
    Tables,
    by_key,
    examples,
    learn,
    snapshot,
    stepping,
)

LR = 0.01


class Twin:
    """Wide and deep with one hidden layer, step by step in float64.

    Parameters
    ----------
    step : DeepStep
        Whose first parameters it takes.
    """

    def __init__(self, step: DeepStep, *, mean: bool, optimizer: str) -> None:
        names = ("deep.layers.0.weight", "deep.layers.0.bias", "deep.layers.2.weight",
                 "deep.layers.2.bias", "linear.weight")  # fmt: skip
        state = step.state()
        self.parameters = [state[f"net.{name}"].astype(float) for name in names]
        self._mean = mean
        self._optimizer = optimizer
        self._moments = [[np.zeros_like(one) for _ in range(2)] for one in self.parameters]
        self._seen = np.zeros((0, COLUMNS))
        self._steps = 0

    def step(self, one: Examples, tables: Tables) -> Any:
        """Learn a minibatch; return scores, and gradients of weights and embeddings by key."""
        batch, keys = one.batch, one.keys
        rows = batch.rows
        tables.know(keys)
        self._seen = np.vstack([self._seen, batch.dense[:rows].astype(float)])
        mean, deviation = np.nanmean(self._seen, 0), np.nanstd(self._seen, 0)
        dense = np.nan_to_num((batch.dense[:rows] - mean) / deviation, nan=0.0)
        dense = np.clip(dense, -10, 10)

        count = np.zeros((rows, FIELDS))
        wide, pooled = np.zeros((rows, FIELDS)), np.zeros((rows, FIELDS, DIM))
        for r, row in enumerate(one.rows):
            for field, key, value in row:
                x = float(np.float32(value)) if batch.has_values else 1.0
                wide[r, field] += float(tables.weights[key]) * x
                pooled[r, field] += tables.vectors[key].astype(float) * x
                count[r, field] += 1
        share = 1 / np.maximum(count, 1) if self._mean else np.ones_like(count)
        pooled *= share[..., None]

        w1, b1, w2, b2, linear = self.parameters
        inputs = np.hstack([dense, pooled.reshape(rows, -1)])
        before = inputs @ w1.T + b1
        hidden = np.maximum(before, 0)
        scores = wide.sum(1) + (hidden @ w2.T + b2 + dense @ linear.T)[:, 0]

        weights = batch.weights[:rows].astype(float)
        slope = (1 / (1 + np.exp(-scores)) - batch.labels[:rows]) * weights / weights.sum()
        d_hidden = slope[:, None] * w2 * (before > 0)
        d_inputs = d_hidden @ w1
        d_pooled = d_inputs[:, COLUMNS:].reshape(pooled.shape) * share[..., None]
        self._move([
            d_hidden.T @ inputs, d_hidden.sum(0), slope[None] @ hidden, slope.sum()[None],
            slope[None] @ dense,
        ])  # fmt: skip

        by_weight, by_vector = np.zeros(len(keys)), np.zeros((len(keys), DIM))
        for r, row in enumerate(one.rows):
            for field, key, value in row:
                x = float(np.float32(value)) if batch.has_values else 1.0
                by_weight[keys.index(key)] += slope[r] * x
                by_vector[keys.index(key)] += d_pooled[r, field] * x
        by_weight, by_vector = by_weight * weights.sum(), by_vector * weights.sum()
        tables.push(keys, by_weight, by_vector)
        return scores, by_weight, by_vector

    def _move(self, gradients: list[Any]) -> None:
        """Kingma and Ba, "Adam", ICLR 2015, algorithm 1; or momentum as torch's SGD has it."""
        self._steps += 1
        for one, g, moments in zip(self.parameters, gradients, self._moments, strict=True):
            if self._optimizer == "sgd":
                moments[0] = 0.9 * moments[0] + g
                one -= LR * moments[0]
                continue
            moments[0] = 0.9 * moments[0] + 0.1 * g
            moments[1] = 0.999 * moments[1] + 0.001 * g * g
            m = moments[0] / (1 - 0.9**self._steps)
            v = moments[1] / (1 - 0.999**self._steps)
            one -= LR * m / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("values", [False, True])
def test_a_step_is_the_one_written_out(
    values: bool, pooling: str, optimizer: str, steps: int
) -> None:
    with stepping(pooling=pooling, optimizer=optimizer, lr=LR, seed=3) as step:
        twin = Twin(step, mean=pooling == "mean", optimizer=optimizer)
        tables, exact = Tables(), Tables(kind=np.float64)
        for number in range(steps):
            one = examples(number, values=values)
            values_ = tables.pull(one.keys)
            scores, gradients = learn(step, tables, one)
            expected, by_weight, by_vector = twin.step(one, exact)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(gradients.weights, by_weight, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(by_key(values_, gradients), by_vector, rtol=1e-3, atol=1e-6)
            assert gradients.dropped == 0
        state = step.state()
        held = [state[name] for name in state if name.startswith("net.")]
        for mine, theirs in zip(held, twin.parameters, strict=True):
            # Adam divides by roots of squares: where a gradient is rounding alone, so is its step
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-4)
        assert step.steps == steps


def test_unseen_features_count_as_zeros_and_get_gradients_of_their_weight_alone() -> None:
    one = Examples([[(0, 3, 1.0), (0, 5, 1.0)], [(1, 5, 1.0)]], [1, 0], dense=np.ones((2, COLUMNS)))
    tables = Tables()
    with stepping(standardize=False) as step, stepping(standardize=False) as other:
        tables.unknown = {5}
        values = tables.pull(one.keys)
        assert values.dims.tolist() == [DIM, 0]
        scores, gradients = np.zeros(2, np.float32), None
        gradients = step.step(one.batch, one.localized, values, scores)
        assert gradients.vectors.shape == (DIM,)
        assert gradients.weights.all()
        zero = Tables()
        zero.know([3, 5])
        zero.weights[5], zero.vectors[5] = np.float32(0), np.zeros(DIM, np.float32)
        as_zeros, theirs = learn(other, zero, one)
        assert scores.tobytes() == as_zeros.tobytes()
        assert gradients.vectors.tobytes() == theirs.vectors[:DIM].tobytes()
        assert snapshot(step) == snapshot(other)


def test_rows_and_fields_without_features_are_zeros() -> None:
    one = Examples([[], [(1, 3, 2.0)]], [1, 0], dense=np.zeros((2, COLUMNS)))
    with stepping(standardize=False) as step:
        seen: list[Any] = []
        step.net.register_forward_pre_hook(lambda _, args: seen.extend(args))
        tables = Tables()
        learn(step, tables, one)
        dense, embeddings, wide = seen
        assert not dense.any()
        assert embeddings.shape == (2, FIELDS, DIM)
        assert not embeddings[0].any()
        assert not embeddings[1, 0].any()
        assert embeddings[1, 1].all()
        assert (wide != 0).tolist() == [[False, False], [False, True]]


def test_a_vanished_feature_changes_nothing_of_others() -> None:
    with stepping() as step:
        tables = Tables()
        learn(step, tables, examples(1))
        before = {key: one.copy() for key, one in tables.vectors.items()}
        learn(step, tables, Examples([[(0, 3, 1.0)]], [1], dense=np.zeros((1, COLUMNS))))
        changed = {key for key, one in before.items() if (tables.vectors[key] != one).any()}
        assert changed <= {3}


def test_the_order_of_features_is_of_no_meaning() -> None:
    one = examples(4, rows=8)
    dice = np.random.default_rng(0)
    shuffled = [[row[i] for i in dice.permutation(len(row))] for row in one.rows]
    n = one.batch.rows
    other = Examples(
        shuffled, one.batch.labels[:n].tolist(), dense=one.batch.dense[:n],
        weights=one.batch.weights[:n].tolist(),
    )  # fmt: skip
    with stepping() as step, stepping() as second:
        scores, gradients = learn(step, Tables(), one)
        others, theirs = learn(second, Tables(), other)
        np.testing.assert_allclose(others, scores, rtol=1e-5)
        np.testing.assert_allclose(theirs.vectors, gradients.vectors, rtol=1e-4, atol=1e-7)


DROPOUT: dict[str, Any] = {"settings": {"hidden": (8, 4), "dropout": 0.5}}


def test_the_same_minibatches_give_the_same_bytes() -> None:
    with stepping(**DROPOUT) as step, stepping(**DROPOUT) as second:
        tables, others = Tables(), Tables()
        for number in range(4):
            scores, gradients = learn(step, tables, examples(number))
            torch.manual_seed(number)  # others' dice are of no meaning
            again, theirs = learn(second, others, examples(number))
            assert scores.tobytes() == again.tobytes()
            assert gradients.vectors.tobytes() == theirs.vectors.tobytes()
        assert snapshot(step) == snapshot(second)
    with stepping(seed=1, **DROPOUT) as step:
        assert learn(step, Tables(), examples(0))[0].tobytes() != scores.tobytes()


def test_dropout_differs_from_step_to_step_and_leaves_the_dice_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    one = examples(1)
    with stepping(lr=1e-12, **DROPOUT) as step:
        values = Tables().pull(one.keys)
        first, second = np.zeros((2, one.batch.rows), np.float32)
        step.step(one.batch, one.localized, values, first)
        step.step(one.batch, one.localized, values, second)
        assert np.abs(first - second).max() > 1e-3
    assert torch.rand(3).tolist() == expected


def test_a_step_may_begin_before_the_one_before_it_is_taken() -> None:
    given = [examples(number) for number in range(5)]
    pulled = [Tables().pull(one.keys) for one in given]
    scores = np.zeros((2, 5, 6), np.float32)
    with stepping() as step, stepping() as second:
        one_by_one = [
            step.step(one.batch, one.localized, values, out)
            for one, values, out in zip(given, pulled, scores[0], strict=True)
        ]
        early: list[Gradients] = []
        pending = None
        for one, values, out in zip(given, pulled, scores[1], strict=True):
            begun = second.begin(one.batch, one.localized, values, out)
            if pending is not None:
                early.append(pending.result())
            pending = begun
        assert pending is not None
        early += [pending.result()]
        assert pending.result() is early[-1]
        assert scores[0].tobytes() == scores[1].tobytes()
        for mine, theirs in zip(one_by_one, early, strict=True):
            assert mine.vectors.tobytes() == theirs.vectors.tobytes()
            assert mine.weights.tobytes() == theirs.weights.tobytes()
        assert snapshot(step) == snapshot(second)


# --- snapshots ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adagrad"])
def test_what_is_resumed_goes_on_as_if_uninterrupted(optimizer: str) -> None:
    model = {"optimizer": optimizer, "weight_decay": 0.01, **DROPOUT}
    with stepping(**model) as step, stepping(**model) as resumed:
        tables, again = Tables(), Tables()
        learn(resumed, Tables(), examples(9))  # what it holds by then is gone
        for number in range(3):
            learn(step, tables, examples(number))
        kept = step.state()
        copies = {name: array.copy() for name, array in kept.items()}
        resumed.restore(kept)
        again.weights = dict(tables.weights)
        again.vectors = {key: one.copy() for key, one in tables.vectors.items()}
        for number in range(3, 6):
            mine, _ = learn(step, tables, examples(number))
            theirs, _ = learn(resumed, again, examples(number))
            assert mine.tobytes() == theirs.tobytes()
        assert snapshot(resumed) == snapshot(step)
        for name, array in copies.items():
            assert array.tobytes() == kept[name].tobytes(), name  # a snapshot is a copy


def test_a_snapshot_has_names_that_say_what_is_what() -> None:
    with stepping() as step:
        assert {name.partition(".")[0] for name in step.state()} == {
            *("net", "standardizer", "steps", "skipped")
        }
        learn(step, Tables(), examples(0))
        state = step.state()
        assert state["optimizer.deep.layers.0.weight.exp_avg"].shape == (4, COLUMNS + 2 * DIM)
        assert state["steps"].tolist() == [1]
        assert {str(array.dtype) for array in state.values()} == {"float32", "float64", "int64"}


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"hidden": (5,)}}, r"layers\.0\.weight .* \[4, 9\] there, \[5, 9\] here"),
    ({"settings": {"hidden": (4, 4)}}, r"nothing is only there, .*layers\.4\.weight"),
    ({"optimizer": "adagrad"}, r"another optimizer: .*exp_avg.* only there"),
    ({"standardize": False}, "standardises"),
]


def test_a_snapshot_of_another_net_is_refused_with_both_views() -> None:
    with stepping() as step:
        learn(step, Tables(), examples(0))
        kept = step.state()
    for model, said in OTHERS:
        with stepping(**model) as other, pytest.raises(SnapshotError, match=said):
            other.restore(kept)
    with stepping() as other:
        with pytest.raises(SnapshotError, match="lacks steps and skipped"):
            other.restore({})
        del kept["optimizer.linear.weight.exp_avg"]
        with pytest.raises(SnapshotError, match=r"linear\.weight\.exp_avg is only here"):
            other.restore(kept)


# --- what is refused ------------------------------------------------------------------------------


def test_a_label_that_is_none_is_refused_before_anything_is_learned() -> None:
    with stepping() as step:
        before = snapshot(step)
        with pytest.raises(DataError, match="label 2 in row 1 is not 0 or 1"):
            learn(step, Tables(), Examples([[], []], [0, 2], dense=np.ones((2, COLUMNS))))
        assert snapshot(step) == before


def test_a_net_that_does_not_fit_the_tables_is_refused() -> None:
    lane = StreamLane("cpu")
    sizes = Sizes((COLUMNS,), FIELDS, 1)
    with pytest.raises(ConfigError, match=r"set model\.dim"):
        DeepStep(DeepConfig(settings={"dim": 4}), sizes, lane)
    with pytest.raises(ConfigError, match=r"wants embeddings of 2 numbers; model\.dim is 16"):
        DeepStep(DeepConfig(net=f"{__name__}:two_numbers"), sizes, lane)
    lane.close()


def two_numbers(sizes: Sizes) -> Any:
    """A user's factory that takes no `dim`."""
    from streamlearn.online.nets import NETS

    return NETS["mlp"](sizes, dim=2)


# --- kinds of nets --------------------------------------------------------------------------------


def test_classes_have_a_score_each() -> None:
    sizes = Sizes((COLUMNS,), FIELDS, 3)
    one = examples(2, labels=[0, 1, 2, 2, 1, 0])
    with stepping(sizes, net="mlp", loss="classes") as step:
        values, scores = Tables().pull(one.keys), np.full((8, 3), 7, np.float32)
        gradients = step.step(one.batch, one.localized, values, scores)
        assert (scores[6:] == 7).all()
        assert not gradients.weights.any()  # nobody asked for them
        assert gradients.vectors.any()
        assert step.score(one.batch, one.localized, values).shape == (6, 3)


def test_images_need_no_features() -> None:
    dice = np.random.default_rng(1)
    images = dice.normal(120, 50, (5, 1, 8, 8))
    one = Examples([[]] * 5, [0, 1, 2, 0, 1], dense=images, shape=(1, 8, 8))
    sizes = Sizes((1, 8, 8), 0, 3)
    settings = {"width": 2, "hidden": 4}
    with stepping(sizes, net="convnet", loss="classes", settings=settings) as step:
        scores = np.zeros((5, 3), np.float32)
        gradients = step.step(one.batch, one.localized, Tables().pull([]), scores)
        assert gradients.weights.shape == gradients.vectors.shape == (0,)
        assert scores.any()


def test_features_need_no_dense_part_and_numbers_are_learned_by_squares() -> None:
    sizes = Sizes((), FIELDS, 1)
    one = examples(3, dense=None, labels=[3.5] * 6)
    with stepping(sizes, net="mlp", loss="squared", lr=0.05) as step:
        tables = Tables()
        scores = np.zeros(0)
        for _ in range(200):
            scores, _ = learn(step, tables, one)
        np.testing.assert_allclose(scores, 3.5, atol=0.2)
        assert step.standardizer is None


def test_missing_numbers_are_zero_where_nothing_is_standardised() -> None:
    one = Examples([[]], [1], dense=[[np.nan, 5, -1e6]])
    with stepping(standardize=False) as step:
        seen: list[Any] = []
        step.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        learn(step, Tables(), one)
        assert seen[0].tolist() == [[0, 5, -1e6]]


def test_bf16_is_near_float32() -> None:
    with stepping() as step, stepping(precision="bf16") as narrow:
        one = examples(5)
        scores, gradients = learn(step, Tables(), one)
        others, theirs = learn(narrow, Tables(), one)
        np.testing.assert_allclose(others, scores, atol=0.05)
        np.testing.assert_allclose(theirs.vectors, gradients.vectors, atol=0.02)
        assert others.tobytes() != scores.tobytes()
        assert theirs.vectors.dtype == np.float32


def test_gradients_of_embeddings_are_clipped() -> None:
    with stepping(v_clip=0.001) as step, stepping() as free:
        _, gradients = learn(step, Tables(), examples(6))
        _, whole = learn(free, Tables(), examples(6))
        np.testing.assert_array_equal(gradients.vectors, np.clip(whole.vectors, -1e-3, 1e-3))
        assert (gradients.vectors == np.float32(1e-3)).any()


# --- scoring --------------------------------------------------------------------------------------


def test_scoring_learns_nothing_and_drops_nothing_out() -> None:
    with stepping(**DROPOUT) as step, stepping() as plain:
        tables, one = Tables(), examples(1)
        learn(step, tables, one)
        before = snapshot(step)
        values = tables.pull(one.keys)
        first = step.score(one.batch, one.localized, values)
        assert first.tobytes() == step.score(one.batch, one.localized, values).tobytes()
        assert snapshot(step) == before
        # without dropout, a minibatch is scored by the next step as by who only scores
        learn(plain, tables, one)
        values = tables.pull(one.keys)
        scores = np.zeros(one.batch.rows, np.float32)
        plain.standardizer, kept = None, plain.standardizer
        expected = plain.score(one.batch, one.localized, values)
        plain.step(one.batch, one.localized, values, scores)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
        plain.standardizer = kept


def test_a_solver_pulls_as_a_shard_does() -> None:
    model = DeepConfig(dim=DIM, settings={"hidden": (4,)}, alpha=0.5)
    table = ExactTable(10_000)
    Arena.of(table, model, 1 << 20)
    portion = Portion(0, table, model, (0, 256))
    one, later = examples(1, keys=20), examples(2, keys=30)
    with stepping(alpha=0.5) as step:
        for _ in range(3):
            parcel = Parcel(one.batch.rows_max, one.batch.nnz_max, 1)
            parcel.localized = one.localized
            parcel.bounds[:] = one.localized.bounds((0, 256))
            portion.pull(parcel)
            parcel.gradients = step.step(one.batch, one.localized, parcel.values, parcel.scores)
            portion.push(parcel)
        solver = DeepSolver(model, table, step)
        parcel = Parcel(later.batch.rows_max, later.batch.nnz_max, 1)
        parcel.localized = later.localized
        parcel.bounds[:] = later.localized.bounds((0, 256))
        portion.pull(parcel)
        pulled = solver.pull(later.localized.keys)
        assert pulled.weights.tobytes() == parcel.values.weights.tobytes()
        assert pulled.weights.any()
        assert pulled.dims.tolist() == parcel.values.dims.tolist()
        assert {0, DIM} == set(pulled.dims.tolist())
        assert pulled.vectors[0].tobytes() == parcel.values.vectors[0].tobytes()
        scores = solver.score(later.batch, solver.scratch(10, later.batch.nnz_max))
        expected = step.score(later.batch, later.localized, parcel.values)
        assert scores.tobytes() == expected.tobytes()
        assert solver.intercept == 0.0
        assert solver.state().keys() == step.state().keys()
