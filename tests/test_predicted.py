"""Predictions are lines: numbers, texts of classes, or the probabilities of all classes."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from streamlearn.config import DeepConfig, JobConfig, LdaConfig, MfConfig, ModelConfig
from streamlearn.errors import ConfigError
from streamlearn.online.class_validation import ClassValidation, probabilities
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.predicted import prediction_lines
from streamlearn.scoring import _printer

NAMES = ("airplane", "cat\nor dog", "back\\slash")
SCORES = np.array([[0, math.log(3), -1e9], [2, 1, 1], [0, 0, 80]], np.float32)


def job_of(model: ModelConfig, classes: tuple[str, ...] = ()) -> JobConfig:
    job = JobConfig(model=model)
    return msgspec.structs.replace(job, source=msgspec.structs.replace(job.source, classes=classes))


def written(job: JobConfig, values: list[Any], *, shares: bool = False) -> list[str]:
    said: list[str] = []
    prediction_lines(said.append, job, probabilities=shares)(values)
    text = "".join(said)
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.mark.parametrize(
    "model", [DeepConfig(), DeepConfig(loss="squared"), MfConfig(), LdaConfig()], ids=repr
)
def test_numbers_are_written_as_they_are(model: ModelConfig) -> None:
    assert written(job_of(model), [0.25, math.nan, -1e-9, 3.0]) == ["0.25", "nan", "-1e-09", "3"]


def test_a_class_is_written_as_its_text_on_one_line_or_as_its_number() -> None:
    model = DeepConfig(loss="classes", classes=5)
    values = [2.0, 0.0, 1.0, math.nan, 4.0]
    expected = ["back\\\\slash", "airplane", "cat\\nor dog", "nan", "4"]
    assert written(job_of(model, NAMES), values) == expected
    assert written(job_of(model), values) == ["2", "0", "1", "nan", "4"]


def test_probabilities_of_all_classes_stand_between_tabs() -> None:
    job = job_of(DeepConfig(loss="classes"), NAMES)
    values = [*probabilities(SCORES).tolist(), math.nan, [math.nan] * 3]
    lines = written(job, values, shares=True)
    assert lines[0] == "0.25\t0.75\t0"
    assert [float(share) for share in lines[1].split("\t")] == pytest.approx(
        [0.576117, 0.211942, 0.211942]
    )
    assert lines[3:] == ["nan", "nan"]


def test_only_probabilities_that_there_are_may_be_asked_for() -> None:
    # that of a label of 1 is the prediction itself
    assert written(job_of(DeepConfig()), [0.25], shares=True) == ["0.25"]
    for model in (DeepConfig(loss="squared"), MfConfig()):
        with pytest.raises(ConfigError, match="--probabilities is for classes"):
            prediction_lines(lambda _: None, job_of(model), probabilities=True)


@pytest.mark.parametrize("shares", [False, True])
def test_bad_records_stand_between_the_good_ones(shares: bool) -> None:
    batch = Minibatch(8, 2 * FEATURES_PER_RECORD_MAX, has_values=False)
    batch.lines[:3] = [10, 20, 40]
    batch.bad_start[:3] = [0, 30, 50]
    batch.state[0], batch.state[2] = 3, 3
    said: list[str] = []
    out = prediction_lines(
        said.append, job_of(DeepConfig(loss="classes"), NAMES), probabilities=shares
    )
    _printer(out, probabilities if shares else ClassValidation.predictions)(SCORES, batch)
    firsts = [line.split("\t")[0] for line in "".join(said).splitlines()]
    good = ["0.25", "0.576117", "1.80485e-35"] if shares else ["cat\\nor dog", "airplane"]
    good = good if shares else [*good, "back\\\\slash"]
    assert firsts == ["nan", *good[:2], "nan", good[2], "nan"]
