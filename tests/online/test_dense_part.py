"""The dense part: numbers that are none, too little memory, other workers, odd nets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
from torch import nn  # noqa: E402

from streamlearn.errors import ConfigError, ResourceError  # noqa: E402
from streamlearn.online.nets import Needs, Sizes  # noqa: E402
from tests.deep_steps import (  # noqa: E402
    COLUMNS,
    DIM,
    Examples,
    Tables,
    by_key,
    examples,
    learn,
    snapshot,
    stepping,
)

MODULE = __name__


def but_counters(state: Mapping[str, bytes]) -> dict[str, bytes]:
    """A snapshot without what counts steps, and minibatches' dense parts."""
    kept = ("net.", "optimizer.")
    return {name: one for name, one in state.items() if name.startswith(kept)}


# --- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adagrad"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_step_that_is_no_number_is_skipped(
    first: bool, on_device: bool, bad: float, optimizer: str
) -> None:
    one = Examples([[(0, 3, 1.0)], [(0, 5, 1.0)]], [1, 0], dense=np.ones((2, COLUMNS)))
    with stepping(optimizer=optimizer) as step:
        if optimizer != "adagrad":
            step._dense.parts[0]._asks_device = on_device  # as on a GPU
        tables = Tables()
        if not first:
            learn(step, tables, examples(1))
        before = but_counters(snapshot(step))
        tables.know([3, 5])
        tables.weights[3] = np.float32(bad)
        scores = np.full(2, 7, np.float32)
        gradients = step.step(one.batch, one.localized, tables.pull(one.keys), scores)
        assert np.isfinite(scores).all()
        assert scores[1] != 7
        assert gradients.dropped == 2
        assert not gradients.weights.any()
        assert gradients.vectors.shape == (2 * DIM,)
        assert not gradients.vectors.any()
        assert (step.skipped, step.steps) == (1, 1 + (not first))
        assert but_counters(snapshot(step)) == before
        assert step.state()["skipped"].tolist() == [1]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("on_device", [False, True])
def test_what_follows_a_skipped_step_is_as_if_it_had_not_been(
    on_device: bool, optimizer: str
) -> None:
    model: dict[str, Any] = {"standardize": False, "optimizer": optimizer}
    with stepping(**model) as step, stepping(**model) as other:
        step._dense.parts[0]._asks_device = on_device
        tables, others = Tables(), Tables()
        for number in range(4):
            if number == 2:
                one = examples(9)
                values = tables.pull(one.keys)
                values.weights[:] = np.nan
                step.step(one.batch, one.localized, values, np.zeros(6, np.float32))
            mine, _ = learn(step, tables, examples(number))
            theirs, _ = learn(other, others, examples(number))
            assert mine.tobytes() == theirs.tobytes()
        assert but_counters(snapshot(step)) == but_counters(snapshot(other))


def test_examples_without_weight_teach_nothing() -> None:
    with stepping() as step:
        tables = Tables()
        learn(step, tables, examples(1))
        before = but_counters(snapshot(step))
        scores, gradients = learn(step, tables, examples(2, weights=[0.0] * 6))
        assert scores.all()
        assert not gradients.weights.any()
        assert not gradients.vectors.any()
        assert gradients.dropped == 0
        assert but_counters(snapshot(step)) == before


def test_a_minibatch_of_nothing_steps_nothing() -> None:
    with stepping() as step:
        before = but_counters(snapshot(step))
        scores, gradients = learn(step, Tables(), Examples([], [], dense=np.ones((0, COLUMNS))))
        assert scores.tolist() == [7]
        assert gradients.weights.shape == gradients.vectors.shape == (0,)
        assert but_counters(snapshot(step)) == before
        one = Examples([], [], dense=np.ones((0, COLUMNS)))
        assert step.score(one.batch, one.localized, Tables().pull([])).shape == (0,)


# --- memory ---------------------------------------------------------------------------------------


def with_memory_for(step: Any, rows: int) -> list[int]:
    """Have the net run out of memory beyond so many rows; return the rows it is called with."""
    called: list[int] = []

    def look(_: Any, given: Any) -> None:
        called.append(len(given[0]))
        if len(given[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    step.net.register_forward_pre_hook(look)
    return called


@pytest.mark.parametrize("rows", [5, 3, 1])
def test_halves_are_one_whole(rows: int, caplog: pytest.LogCaptureFixture) -> None:
    with stepping() as step, stepping() as whole:
        called = with_memory_for(step, rows)
        tables, others = Tables(), Tables()
        with caplog.at_level(logging.WARNING, "streamlearn"):
            for number in range(3):
                one = examples(number, rows=10)
                values = others.pull(one.keys)
                scores, gradients = learn(step, tables, one)
                expected, theirs = learn(whole, others, one)
                np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(
                    np.stack(by_key(values, gradients)), np.stack(by_key(values, theirs)),
                    rtol=1e-3, atol=1e-6,
                )  # fmt: skip
        assert step.rows_at_once <= rows
        assert next(n for n in called if n > rows) == 10
        assert sum(n > rows for n in called) <= 4  # what there is memory for is remembered
        told = [one.getMessage() for one in caplog.records]
        assert len(told) == 1
        assert "no memory for a minibatch of 10 examples" in told[0]
        score = step.score(one.batch, one.localized, values)
        np.testing.assert_allclose(
            score, whole.score(one.batch, one.localized, values), rtol=1e-3, atol=1e-4
        )


def test_memory_for_not_even_one_row_is_an_error_that_says_so() -> None:
    with stepping() as step:
        with_memory_for(step, 0)
        before = but_counters(snapshot(step))
        with pytest.raises(ResourceError, match="no memory for one example") as caught:
            learn(step, Tables(), examples(0))
        assert caught.value.cause == "CUDA out of memory. Tried to allocate 2 GiB."
        assert but_counters(snapshot(step)) == before


# --- other workers --------------------------------------------------------------------------------


class Workers:
    """An exchange with another worker whose gradient is always 1; it skips what is no number."""

    def __init__(self, named: Sequence[tuple[str, Any]]) -> None:
        self.named = named
        self.seen: list[bool] = []
        self.owed = torch.zeros(3)

    def step(self) -> bool:
        fine = all(bool(one.grad.isfinite().all()) for _, one in self.named if one.grad is not None)
        self.seen.append(fine)
        for _, one in self.named:
            one.grad = torch.ones_like(one) if fine else None
        return fine

    def state_dict(self) -> dict[str, Any]:
        return {"residual.0": self.owed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.owed = state["residual.0"]


def test_the_net_moves_by_the_workers_mean_and_tables_by_the_own_gradient() -> None:
    with (
        stepping(exchange_with=Workers, optimizer="sgd", momentum=0.0, lr=0.5) as step,
        stepping() as alone,
    ):
        before = step.state()
        _, gradients = learn(step, Tables(), examples(1))
        _, own = learn(alone, Tables(), examples(1))
        for name, array in step.state().items():
            if name.startswith("net."):
                np.testing.assert_allclose(array, before[name] - 0.5, rtol=1e-6)
        assert gradients.vectors.tobytes() == own.vectors.tobytes()


def test_a_loss_that_is_no_number_is_told_to_other_workers() -> None:
    with stepping(exchange_with=Workers) as step:
        before = but_counters(snapshot(step))
        one = examples(1)
        values = Tables().pull(one.keys)
        values.weights[:] = np.inf
        step.step(one.batch, one.localized, values, np.zeros(6, np.float32))
        exchange = step._dense.parts[0]._exchange
        assert isinstance(exchange, Workers)
        assert exchange.seen == [False]
        assert but_counters(snapshot(step)) == before
        assert step.skipped == 1


def test_what_workers_owe_is_kept_with_the_net() -> None:
    with stepping(exchange_with=Workers) as step, stepping(exchange_with=Workers) as resumed:
        exchange = step._dense.parts[0]._exchange
        assert isinstance(exchange, Workers)
        exchange.owed = torch.tensor([1.0, 2, 3])
        kept = step.state()
        assert kept["exchange.residual.0"].tolist() == [1, 2, 3]
        resumed.restore(kept)
        other = resumed._dense.parts[0]._exchange
        assert isinstance(other, Workers)
        assert other.owed.tolist() == [1, 2, 3]
    with stepping() as alone:
        alone.restore(kept)  # what was owed to others is gone with them
        assert snapshot(alone).keys() == kept.keys() - {"exchange.residual.0"}


# --- nets of users --------------------------------------------------------------------------------


class Normed(nn.Module):
    """Batch norm, a parameter that is never used, one that is frozen, a gradient without strides.

    Parameters
    ----------
    scale : float
    """

    def __init__(self, sizes: Sizes, *, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(sizes.fields * dim)
        self.shift = nn.Parameter(torch.zeros(4))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((1,), scale), requires_grad=False)
        self.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
        self.dim = dim

    def needs(self) -> Needs:
        return Needs(self.dim, wide=False, outputs=1)

    def forward(self, dense: Any, embeddings: Any, wide: None) -> Any:
        flat = self.norm(embeddings.flatten(1)).sum(1, keepdim=True)
        return flat * self.frozen + self.shift.sum()


def test_a_users_net_steps_scores_and_resumes() -> None:
    model: dict[str, Any] = {"net": f"{MODULE}:Normed", "settings": {"scale": 0.5}}
    with stepping(**model, optimizer="sgd", momentum=0.0, lr=0.5) as step:
        one, tables = examples(1), Tables()
        scores, _ = learn(step, tables, one)
        state = step.state()
        weights, labels = one.batch.weights[:6], one.batch.labels[:6]
        slope = ((1 / (1 + np.exp(-scores)) - labels) * weights).sum() / weights.sum()
        # the gradient of a sum is one number spread out: it must not be read as four
        np.testing.assert_allclose(state["net.shift"], [-0.5 * slope] * 4, rtol=1e-5)
        assert state["net.unused"].tolist() == [1, 1]
        assert state["net.frozen"] == 0.5
        assert state["net.narrow"].dtype == np.float32
        assert state["net.norm.num_batches_tracked"] == 1
        values = tables.pull(one.keys)
        by_running = step.score(one.batch, one.localized, values)
        assert step.net.training
        assert snapshot(step) == {name: array.tobytes() for name, array in state.items()}
        with stepping(**model) as other:
            other.restore(state)
            again = other.score(one.batch, one.localized, values)
            assert again.tobytes() == by_running.tobytes()


class Sums(nn.Module):
    """No parameter at all."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def needs(self) -> Needs:
        return Needs(0, wide=True, outputs=1)

    def forward(self, dense: Any, embeddings: None, wide: Any) -> Any:
        return wide.sum(1, keepdim=True)


def test_a_net_without_parameters_teaches_the_tables() -> None:
    with stepping(net=f"{MODULE}:Sums", settings={}) as step:
        tables, one = Tables(), Examples([[(0, 3, 1.0)]], [1], dense=np.ones((1, COLUMNS)))
        values = tables.pull(one.keys)
        _, gradients = learn(step, tables, one)
        expected = 1 / (1 + np.exp(-values.weights[0])) - 1
        np.testing.assert_allclose(gradients.weights, [expected], rtol=1e-6)
        assert gradients.vectors.tolist() == [0] * DIM
        step.restore(step.state())


class Twins(nn.Module):
    """Two parameters whose gradients autograd hands out as one tensor."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(COLUMNS))
        self.other = nn.Parameter(torch.zeros(COLUMNS))

    def needs(self) -> Needs:
        return Needs(0, wide=False, outputs=1)

    def forward(self, dense: Any, embeddings: None, wide: None) -> Any:
        return (dense * (self.one + self.other)).sum(1, keepdim=True)


def test_who_scales_one_gradient_does_not_scale_another() -> None:
    class Halved(Workers):
        def step(self) -> bool:
            for _, one in self.named:
                one.grad.mul_(0.5)
            return True

    model: dict[str, Any] = {
        "net": f"{MODULE}:Twins", "settings": {}, "optimizer": "sgd", "momentum": 0.0, "lr": 1.0,
    }  # fmt: skip
    with stepping(**model) as whole, stepping(exchange_with=Halved, **model) as step:
        learn(whole, Tables(), examples(1))
        learn(step, Tables(), examples(1))
        for name in ("net.one", "net.other"):
            np.testing.assert_allclose(step.state()[name], whole.state()[name] / 2, rtol=1e-6)
            assert step.state()[name].all()


# --- compiling ------------------------------------------------------------------------------------


def test_a_net_is_compiled_once_and_for_any_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def compile(net: Any, **settings: Any) -> Any:
        asked.append(settings)
        return net

    monkeypatch.setattr(torch, "compile", compile)
    with stepping(compile=True) as step, stepping() as plain:
        assert asked == []  # who only looks at a net need not wait for that
        for number in range(2):
            mine, _ = learn(step, Tables(), examples(number, rows=5 + number))
            theirs, _ = learn(plain, Tables(), examples(number, rows=5 + number))
            assert mine.tobytes() == theirs.tobytes()
        assert asked == [{"dynamic": True}]
        assert snapshot(step) == snapshot(plain)


def test_what_cannot_be_compiled_is_told_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    class CompilerError(RuntimeError):
        pass

    CompilerError.__module__ = "torch._inductor.exc"

    def compile(net: Any, **_: Any) -> Any:
        def call(*_: Any) -> Any:
            raise CompilerError("No working C++ compiler found\nin many places")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    with stepping(compile=True) as step:
        with pytest.raises(ConfigError, match="could not be compiled") as caught:
            learn(step, Tables(), examples(0))
        assert caught.value.cause == "CompilerError: No working C++ compiler found"
        assert "C++ compiler" in str(caught.value.hint)
