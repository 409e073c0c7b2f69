"""The table of fixed size."""

import numpy as np

from streamlearn.shards.hashed import HashedTable


def test_a_hashed_row_is_a_keys_top_bits() -> None:
    table = HashedTable(8)
    keys = np.array([1, (1 << 56) - 1, 1 << 56 | 1, (1 << 64) - 1], np.uint64)
    assert table.find(keys).tolist() == [0, 0, 1, 255]
