"""A minibatch between pull and push: to the bit what one process would learn, and what is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streamlearn import columns
from streamlearn.cluster.batcher import Cut
from streamlearn.cluster.preparing import (
    Buffers,
    Part,
    Prepared,
    Preparer,
    Pushed,
    Stepper,
    codings,
    marked,
)
from streamlearn.compute.kernels.steps import sigmoid
from streamlearn.config import JobConfig, loss_of
from streamlearn.errors import ColumnError
from streamlearn.messages import BadRecord
from streamlearn.model import Model
from streamlearn.online.localized import Localized
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.totals import AnyTotals, RatingTotals, Totals
from streamlearn.online.validation import BinaryValidation
from streamlearn.protocol import MARKS, Mark, Pulled, Push, PushFactors, RatingMark
from streamlearn.shards.cut import Nothing
from streamlearn.shards.shard import INTERCEPT_KEY, Shard, prefixes_of
from tests.reference.rules import RuleTwin
from tests.reference.steps import logistic
from tests.reference.tables import minibatch
from tests.shard_parts import job, spec

# Embeddings of three lengths, for pairs and triples, that are earned soon.
FM: dict[str, Any] = {
    "kind": "fm", "order": 3, "dim_by_count": {"1": 3, "4": 9, "9": 17}, "v_lr": 0.05,
    "v_init_scale": 0.2,
}  # fmt: skip
NNZ = FEATURES_PER_RECORD_MAX + 4096


class Learning:
    """One worker and its shards, without anything between them.

    Attributes
    ----------
    pushes : list of list of Push
        Of each minibatch, by shard.
    """

    def __init__(self, of_job: JobConfig, of: int) -> None:
        self.specs = [spec(of_job, index, of) for index in range(of)]
        self.shards = [Shard(one) for one in self.specs]
        self.preparer = Preparer(of_job, [prefixes_of(index, of)[0] for index in range(of)], NNZ)
        self.validation = new_validation(of_job.model, 100)
        self.stepper = Stepper(of_job, 64, self.validation)
        self.mark = MARKS[loss_of(of_job.model)]("p", "v", 0, 0, 0, 0)
        self.pushes: list[list[Push]] = []
        self._buffers = Localized(NNZ)
        self._coding = codings(of_job)

    def prepare(self, batch: Minibatch) -> Prepared:
        """Prepare a minibatch."""
        cut = Cut(batch, self.mark.offset + 10, self.mark.records + batch.rows)
        return self.preparer.prepare(cut, Buffers(batch, self._buffers))

    def pulled(self, prepared: Prepared) -> list[Pulled]:
        """Pull for it."""
        out = []
        for one, shard, part in zip(self.specs, self.shards, prepared.parts, strict=True):
            keys = columns.decode_keys(part.keys, part.count, one.low, one.high)
            assert part.signature == columns.signature(part.keys)
            located = shard.locate(keys)
            values = shard.values(located)
            column = columns.encode_values(values, self._coding[0])
            lengths, vectors = shard.vectors(located, values, self._coding[0])
            out.append(Pulled(part.count, self._coding[0], column.data, lengths.data, vectors.data))
        return out

    def learn(self, batch: Minibatch, pulled: Sequence[Pulled] | None = None) -> AnyTotals:
        """Learn a minibatch; with ``pulled``, from what was pulled for it before."""
        prepared = self.prepare(batch)
        clock = len(self.pushes)
        pulled = pulled or self.pulled(prepared)
        pushed, totals = self.stepper.step(prepared, pulled, clock, self.mark.epoch)
        self.mark = marked(self.mark, prepared.cut, totals, 7)
        made = [
            self._push(part, one, clock) for part, one in zip(prepared.parts, pushed, strict=True)
        ]
        for shard, push in zip(self.shards, made, strict=True):
            shard.apply(clock + 1, push)
        self.pushes.append(made)
        return totals

    def _push(self, part: Part, one: Pushed, clock: int) -> Push:
        told = (
            0, "a", 1, clock, 0, part.signature, part.count, part.keys, self._coding[1], one.values,
            one.counts, self.mark, one.lengths, one.vectors,
        )  # fmt: skip
        return Push(*told) if part.items is None else PushFactors(*told, part.items, one.shares)

    def embeddings(self) -> dict[int, list[float]]:
        """Return every key's embedding, zeros for none."""
        out: dict[int, list[float]] = {}
        for shard in self.shards:
            keys, arena = self.keys(shard), shard.table.arena
            assert arena is not None
            found = arena.coordinates_at(shard.table.find(keys)).tolist()
            out |= zip(keys.tolist(), found, strict=True)
        return out

    def weights(self) -> dict[int, float]:
        """Return every key's weight."""
        out: dict[int, float] = {}
        for shard in self.shards:
            keys = self.keys(shard)
            out |= zip(keys.tolist(), shard.values(shard.locate(keys)).tolist(), strict=True)
        return out

    @staticmethod
    def keys(shard: Shard) -> np.ndarray:
        """Return a shard's keys."""
        parts = [shard.table.rows(segment)[:, 0] for segment in shard.table.key_order()]
        return np.sort(np.concatenate(parts))

    def vectors(self, clock: int) -> tuple[list[int], list[float]]:
        """Return the lengths and the embeddings' gradients that were pushed of a minibatch."""
        dims, out = [], []
        tiers = self.specs[0].job.model.tiers
        for push in self.pushes[clock]:
            there = columns.decode_lengths(push.lengths, push.count, tiers.dims)
            total = int(there.sum()) * tiers.parts
            out += columns.decode_values(push.vectors, total, push.coding & 15).tolist()
            dims += there.tolist()
        return dims, out

    def gradients(self, clock: int) -> dict[int, float]:
        """Return what was pushed of a minibatch, decoded."""
        out: dict[int, float] = {}
        for one, push in zip(self.specs, self.pushes[clock], strict=True):
            keys = columns.decode_keys(push.keys, push.count, one.low, one.high)
            values = columns.decode_values(push.values, push.count, push.coding)
            out |= zip(keys.tolist(), values.tolist(), strict=True)
        return out


def batches(seed: int, count: int, *, values: bool = False) -> list[Minibatch]:
    """Return minibatches of up to 24 examples over some hundred keys, hot and rare."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 1 << 63, 300, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    out = []
    for _ in range(count):
        examples: list[Any] = [
            keys[(300 * rng.random(rng.integers(0, 9)) ** 2).astype(int)]
            for _ in range(rng.integers(1, 25))
        ]
        labels = rng.integers(0, 2, len(examples)).tolist()
        weights = rng.choice([1.0, 2.5], len(examples)).tolist()
        x = [rng.normal(0, 1, len(one)).tolist() for one in examples] if values else None
        out.append(minibatch(examples, labels, weights, x))
    return out


@pytest.mark.parametrize("of", [1, 2, 5])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rule", ["ftrl", "adagrad"])
def test_one_worker_with_exact_values_is_the_sequential_algorithm_to_the_bit(of, intercept, rule):
    model = {"l1": 0.3, "l2": 0.1, "alpha": 0.2, "beta": 1.0, "intercept": intercept, "rule": rule}
    made = Learning(job(model=model), of)
    twin = RuleTwin(rule, alpha=0.2, beta=1.0, l1=0.3, l2=0.1, dtype=np.float32)
    bare = INTERCEPT_KEY if intercept else None
    for batch in batches(3, 25, values=True):
        keys = {int(key) for key in batch.keys[: batch.nnz]} | ({1} if intercept else set())
        weights = {key: twin.weight(key, key == bare) for key in keys}
        scores, gradients = logistic(batch, weights, intercept=intercept, sigmoid=sigmoid)
        made.learn(batch)
        assert made.stepper._scores[: batch.rows].tolist() == [float(s) for s in scores]
        twin.push(gradients.keys(), gradients.values(), bare)
    expected = {key: float(twin.weight(key, key == bare)) for key in twin.rows}
    assert made.weights() == expected
    assert any(weight == 0 for weight in expected.values())
    assert sum(weight != 0 for weight in expected.values()) > 20


def test_number_of_shards_makes_no_difference():
    few, many = (Learning(job(model={"l1": 0.2}), of) for of in (1, 7))
    for batch in batches(4, 20):
        few.learn(batch)
        many.learn(batch)
    assert few.weights() == many.weights()
    assert few.validation.totals() == many.validation.totals()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("values", ["float32", "byte"])
def test_number_of_shards_makes_no_difference_to_embeddings(order, values):
    """But to what is rounded: there the dice are each shard's own."""
    model = FM | {"order": order, "l1": 0.05, "v_dropout": 0.2, "v_clip": 0.3}
    made = [Learning(job(model=model, push_values=values), of) for of in (1, 2, 7)]
    for batch in batches(4, 20, values=True):
        for one in made:
            one.learn(batch)
    exact = values == "float32"
    lengths = [[sum(one.vectors(clock)[0]) for clock in range(20)] for one in made]
    assert lengths[0][-1] > lengths[0][3] > lengths[0][0] == 0
    for one in made[1:]:
        assert lengths[0] == lengths[1] or not exact
        assert one.weights() == pytest.approx(made[0].weights(), abs=0 if exact else 0.1)
        if exact:
            assert one.embeddings() == made[0].embeddings()


@pytest.mark.parametrize("order", [2, 3])
def test_one_worker_with_minibatches_of_one_learns_what_one_process_does(order):
    """The one process updates as it goes through an example, so roundings differ, nothing else."""
    of_job = job(model=FM | {"order": order, "l1": 0.02, "v_l2": 0.05})
    made, alone = Learning(of_job, 3), Model.new(of_job, ())
    scratch = alone.solver.scratch(64, NNZ)
    rng = np.random.default_rng(8)
    keys = rng.integers(0, 1 << 63, 40, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for _ in range(150):
        picked = np.unique(keys[(40 * rng.random(rng.integers(0, 9)) ** 2).astype(int)])
        x = [rng.normal(0, 1, len(picked)).tolist()]
        one = minibatch([picked], [int(rng.integers(2))], [1.0], x)
        made.learn(one)
        alone.solver.learn(one, scratch, Nothing(), 0)
    weights, embeddings = made.weights(), made.embeddings()
    del weights[INTERCEPT_KEY], embeddings[INTERCEPT_KEY]
    held = np.array(list(weights), np.uint64)
    assert list(weights.values()) == pytest.approx(alone.weights_at(held).tolist(), abs=1e-4)
    theirs = alone.embeddings_at(held)
    assert np.array(list(embeddings.values())) == pytest.approx(theirs, abs=1e-4)
    # the very same have one, of the very same length
    lengths = [np.count_nonzero(one, axis=1) for one in (list(embeddings.values()), theirs)]
    assert np.array_equal(*lengths)
    assert len(set(lengths[0].tolist())) == 3


def test_embeddings_gradients_that_are_not_sent_come_later():
    """Per key and coordinate, what was sent and what is held add up to all gradients."""
    model = FM | {"l1": 0.0, "dim_by_count": {}, "dim": 5, "threshold": 0}
    made = Learning(job(model=model, push_values="byte"), 2)
    (batch,) = batches(12, 1)
    for _ in range(3):
        made.learn(batch)
    residuals = made.stepper._vector_residuals
    assert residuals is not None
    before = residuals._residuals.copy()
    prepared = made.prepare(batch)
    pulled = made.pulled(prepared)
    twin = Stepper(job(model=model), 64, BinaryValidation(10))
    true, _ = twin.step(prepared, pulled, 5, epoch=0)
    sent, _ = made.stepper.step(prepared, pulled, 5, epoch=0)
    tiers = made.specs[0].job.model.tiers
    keys = prepared.buffers.localized.keys
    checked = 0
    for part, wanted, coded, answer in zip(prepared.parts, true, sent, pulled, strict=True):
        dims = columns.decode_lengths(answer.lengths, part.count, tiers.dims)
        total = int(dims.sum()) * tiers.parts
        whole = columns.decode_values(wanted.vectors, total, columns.FLOAT32)
        short = columns.decode_values(coded.vectors, total, columns.BYTE)
        assert not np.array_equal(whole, short)
        at = 0
        for key, dim in zip(keys[part.first : part.end].tolist(), dims.tolist(), strict=True):
            size = dim * tiers.parts
            entry = int(np.flatnonzero(residuals._held == key)[0]) if size else 0
            held = residuals._residuals[entry, :size] - before[entry, :size]
            found = short[at : at + size] + held
            assert found == pytest.approx(whole[at : at + size], abs=1e-5)
            at += size
            checked += size
    assert checked > 100


def test_parts_share_the_keys_out():
    made = Learning(job(), 3)
    (batch,) = batches(5, 1)
    prepared = made.prepare(batch)
    found: list[int] = []
    for one, part in zip(made.specs, prepared.parts, strict=True):
        keys = columns.decode_keys(part.keys, part.count, one.low, one.high)
        found += keys.tolist()
    assert found == sorted({int(key) for key in batch.keys[: batch.nnz]} | {INTERCEPT_KEY})
    assert [part.first for part in prepared.parts] == [
        0, *(part.end for part in prepared.parts[:-1])
    ]  # fmt: skip


def test_minibatch_without_examples_pushes_nothing_but_its_mark():
    made = Learning(job(), 2)
    totals = made.learn(minibatch([]))
    assert totals == Totals(0, 0, 0, 0, 0)
    assert [push.count for push in made.pushes[0]] == [0, 0]
    assert all(shard.marks["p"].sequence == 1 for shard in made.shards)
    assert made.weights() == {}


def test_examples_without_features_teach_the_constant_feature():
    made = Learning(job(), 2)
    made.learn(minibatch([[], []], [1, 1]))
    weights = made.weights()
    assert list(weights) == [INTERCEPT_KEY]
    assert weights[INTERCEPT_KEY] > 0


def test_occurrences_are_told_where_they_are_asked_for():
    made = Learning(job(), 1)
    prepared = made.prepare(minibatch([[3, 5], [3], []]))
    (with_counts,), _ = made.stepper.step(prepared, made.pulled(prepared), 0, epoch=0)
    assert columns.decode_counts(with_counts.counts, 3).tolist() == [3, 2, 1]
    (without,), _ = made.stepper.step(prepared, made.pulled(prepared), 0, epoch=1)
    assert len(without.counts) == 0


@pytest.mark.parametrize(
    "tables",
    [{"push_values": "byte"}, {"push_values": "byte", "kkt": 0.3}, {"kkt": 0.2}],
    ids=["byte", "byte and kkt", "kkt"],
)
def test_what_is_not_sent_comes_later(tables):
    """What was pushed, and what is held for the next push, add up to all gradients."""
    rule = {"rule": "adagrad", "l1": 0.6}
    made = Learning(job(model=rule, **tables), 2)
    exact: dict[int, float] = {}
    sent: dict[int, float] = {}
    for clock, batch in enumerate(batches(6, 30)):
        weights = made.weights()
        keys = {int(key) for key in batch.keys[: batch.nnz]} | {INTERCEPT_KEY}
        _, gradients = logistic(
            batch, {key: weights.get(key, 0.0) for key in keys}, intercept=True, sigmoid=sigmoid
        )
        made.learn(batch)
        for key, gradient in gradients.items():
            exact[key] = exact.get(key, 0.0) + float(gradient)
        for key, gradient in made.gradients(clock).items():
            sent[key] = sent.get(key, 0.0) + gradient
    residuals = made.stepper._residuals
    assert residuals is not None
    held = dict(zip(residuals._held.tolist(), residuals._residuals.tolist(), strict=True))
    assert any(abs(exact[key] - sent[key]) > 1e-3 for key in exact)
    assert residuals.lost == 0
    for key, total in exact.items():
        assert sent[key] + held.get(key, 0.0) == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_rounding_differs_between_minibatches_and_shards_but_not_between_runs():
    def run() -> list[bytes]:
        made = Learning(job(push_values="byte"), 2)
        for batch in batches(8, 4):
            made.learn(batch)
        return [bytes(push.values) for one in made.pushes for push in one]

    assert run() == run()
    made = Learning(job(push_values="byte"), 1)
    prepared = made.prepare(batches(9, 1)[0])
    pulled = made.pulled(prepared)
    first, second = (
        Stepper(job(push_values="byte"), 64, BinaryValidation(10)).step(
            prepared, pulled, seed, epoch=1
        )[0][0]
        for seed in (1, 2)
    )
    assert bytes(first.values) != bytes(second.values)


def test_kkt_sends_no_gradient_that_would_not_move_a_zero_weight():
    plain = Learning(job(model={"rule": "adagrad", "l1": 5.0}), 1)
    made = Learning(job(model={"rule": "adagrad", "l1": 5.0}, kkt=0.5), 1)
    (batch,) = batches(10, 1)
    plain.learn(batch)
    made.learn(batch)
    full, sparse = plain.gradients(0), made.gradients(0)
    for key, gradient in full.items():
        dropped = key != INTERCEPT_KEY and abs(gradient) < 4.5
        assert sparse[key] == (0 if dropped else gradient)
    assert sum(value == 0 for value in sparse.values()) > 10
    assert len(made.pushes[0][0].values) < len(plain.pushes[0][0].values) / 2


@pytest.mark.parametrize(
    "wrong",
    [
        Pulled(3, 0, memoryview(bytes(8))),
        Pulled(3, 9, memoryview(bytes(12))),
        Pulled(3, 0, memoryview(np.full(3, np.nan, np.float32).tobytes())),
    ],
    ids=["length", "coding", "nan"],
)
def test_weights_that_are_none_are_refused(wrong):
    made = Learning(job(), 1)
    prepared = made.prepare(minibatch([[3, 5]], [1]))
    with pytest.raises(ColumnError):
        made.stepper.step(prepared, [wrong], 0, epoch=0)


ONE = columns.encode_lengths(np.array([3, 0, 0], np.int64), (3, 9, 17))


@pytest.mark.parametrize(
    ("lengths", "vectors"),
    [
        (ONE, bytes(20)),
        (ONE, bytes(28)),
        (ONE, b""),
        (b"", bytes(24)),
        (ONE[:-1], bytes(24)),
        (bytes(ONE[:-1]) + b"\3", bytes(24)),
        (ONE, np.full(6, np.nan, np.float32).tobytes()),
    ],
    ids=["few", "many", "none", "no lengths", "cut", "tier", "nan"],
)
def test_embeddings_that_are_none_are_refused(lengths, vectors):
    made = Learning(job(model=FM), 1)
    prepared = made.prepare(minibatch([[3, 5]], [1]))
    values = memoryview(bytes(12))
    wrong = Pulled(3, 0, values, memoryview(bytes(lengths)), memoryview(vectors))
    with pytest.raises(ColumnError):
        made.stepper.step(prepared, [wrong], 0, epoch=0)
    right = Pulled(3, 0, values, memoryview(bytes(ONE)), memoryview(bytes(24)))
    made.stepper.step(prepared, [right], 0, epoch=0)


def test_every_example_is_scored_before_it_teaches():
    made = Learning(job(), 2)
    total = Totals(0, 0, 0, 0, 0)
    for batch in batches(11, 10):
        one = made.learn(batch)
        assert isinstance(one, Totals)
        total = Totals(*(a + b for a, b in zip(_fields(total), _fields(one), strict=True)))
    after = made.validation.totals()
    assert isinstance(after, Totals)
    assert _fields(total) == pytest.approx(_fields(after))
    assert made.mark.loss == pytest.approx(after.loss)
    assert made.mark.examples == after.examples
    assert made.stepper.last[2] == int(np.diff(batch.indptr[: batch.rows + 1])[-1])


def _fields(totals: Totals) -> Sequence[float]:
    return (totals.loss, totals.label, totals.prediction, totals.weight, totals.examples)


def test_mark_is_where_a_partition_stands():
    batch = minibatch([[3]])
    batch.state[4] = 6
    bad = [BadRecord("u", 1, "label", "", b"")] * 2
    cut = Cut(batch, 500, 42, bad, done=True)
    before = Mark("p", "v", 1, 8, 400, 30, False, 100, 5, 7, 1000, 2000, 1.0, 2.0, 3.0, 4.0)
    after = marked(before, cut, Totals(0.5, 1.0, 0.25, 2.0, 10), 64)
    assert after == Mark("p", "v", 1, 9, 500, 42, True, 110, 7, 13, 1100, 2064, 3.0, 2.5, 4.0, 4.25)


def test_mark_of_ratings_has_their_sums():
    cut = Cut(minibatch([[3]]), 500, 42, [], done=False)
    before = RatingMark("p", "v", 0, 0, 400, 30)
    totals = RatingTotals(
        loss=0.5, absolute_error=0.75, label=4.0, label_square=8.0, prediction=3.5, weight=2.0,
        examples=2,
    )  # fmt: skip
    once = marked(before, cut, totals, 64)
    assert type(once) is RatingMark
    twice = marked(once, cut, totals, 0)
    assert (twice.sequence, twice.examples, twice.bytes) == (2, 4, 100)
    for name, value in totals._asdict().items():
        assert getattr(twice, name) == 2 * value, name


def test_codings_are_those_of_the_job():
    assert codings(job()) == (columns.FLOAT32 | columns.SPARSE, columns.FLOAT32)
    short = job(pull_values="float16", push_values="byte", kkt=0.1)
    assert codings(short) == (columns.FLOAT16 | columns.SPARSE, columns.BYTE | columns.SPARSE)
