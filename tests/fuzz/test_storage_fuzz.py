"""The fuzz targets themselves, on a fixed set of inputs; the long runs are by atheris."""

import random

import pytest

from tests.fuzz.storage import one_log, one_snapshot

INPUTS = 3000


@pytest.mark.parametrize("target", [one_log, one_snapshot])
def test_readers_end_with_documented_errors_only(target):
    rng = random.Random(40)
    for _ in range(INPUTS):
        target(rng.randbytes(rng.randrange(60)))
