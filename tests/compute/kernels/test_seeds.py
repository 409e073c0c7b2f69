import numpy as np
import pytest

from streamlearn.compute.kernels.seeds import name_seed
from streamlearn.online.features import field_seed


@pytest.mark.parametrize("length", [*range(20), 63, 64, 127, 128, 129, 255, 256, 257, 5000])
def test_seed_of_a_name_is_the_one_that_a_schema_gives(length):
    name = bytes(np.random.default_rng(length).integers(32, 127, length, np.uint8))
    text = np.frombuffer(name + bytes(64), np.uint8)
    assert name_seed(text.ctypes.data, length) == field_seed(name.decode())
