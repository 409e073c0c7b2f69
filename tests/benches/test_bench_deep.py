"""The bench of nets: what its figures are made of."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import deep_plain  # noqa: E402 - stands beside the package
import deep_trace  # noqa: E402


def test_busy_is_the_share_of_time_that_spans_cover() -> None:
    spans = deep_trace.union([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)])
    assert spans == [(0.0, 3.0), (5.0, 6.0)]
    assert deep_trace.busy(spans, [(0.0, 10.0)]) == pytest.approx(0.4)
    assert deep_trace.busy(spans, [(2.0, 5.5), (7.0, 8.0)]) == pytest.approx(1.5 / 4.5)
    assert deep_trace.busy([], [(0.0, 1.0)]) == 0


def test_the_plain_way_reads_images(tmp_path: Path) -> None:
    x = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, *x.shape)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + x.tobytes()))
    assert np.array_equal(deep_plain.idx(path), x)


def test_the_plain_way_knows_tokens_of_learning_alone(tmp_path: Path) -> None:
    row = "39, State-gov, 7, Bachelors, 13, Single, Clerical, Own, White, Male, 2174, 0, 40, US, "
    learn, judge = tmp_path / "learn", tmp_path / "judge"
    learn.write_text(f"{row}<=50K\n{row}>50K\n")
    judge.write_text("|a comment\n" + row.replace("Single", "Never-met") + ">50K.\n")
    known: dict[tuple[int, str], int] = {}
    dense, indexes, labels = deep_plain.adult(learn, known)
    assert labels.tolist() == [0.0, 1.0]
    assert dense[0].tolist() == [39.0, 7.0, 13.0, 2174.0, 0.0, 40.0]
    assert indexes[0].tolist() == list(range(1, 9))
    _, unseen, truth = deep_plain.adult(judge, known)
    assert truth.tolist() == [1.0]
    assert unseen[0].tolist() == [1, 2, 0, 4, 5, 6, 7, 8]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own optimizer
def test_a_plain_step_learns() -> None:
    given = deep_plain.argparse.Namespace(net="wide_deep", settings="{}", seed=0, lr=0.01, v_lr=0.1)
    plain = deep_plain.Plain(given, deep_plain.Sizes((2,), 3, 1), 10, "logistic")
    dice = torch.Generator().manual_seed(1)
    dense = torch.randn(64, 2, generator=dice)
    indexes = torch.randint(0, 10, (64, 3), generator=dice)
    labels = (dense[:, 0] > 0).float()
    losses = [float(plain.step(dense, indexes, labels).mean()) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
