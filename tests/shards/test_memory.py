"""Reserved address space: zero until written, zero again where it is cleared."""

import re
from pathlib import Path

import numpy as np
import pytest

from streamlearn.errors import ResourceError
from streamlearn.shards import memory
from streamlearn.shards.memory import HUGE_BYTES, Reservation


@pytest.mark.parametrize("size", [1, HUGE_BYTES, HUGE_BYTES + 8, 5 * HUGE_BYTES])
def test_a_reservation_is_whole_aligned_zero_pages(size: int) -> None:
    reservation = Reservation(size)
    assert reservation.size_bytes == -(-size // HUGE_BYTES) * HUGE_BYTES
    assert reservation.words.nbytes == reservation.size_bytes
    assert reservation.words.dtype == np.uint64
    assert reservation.words.ctypes.data % HUGE_BYTES == 0
    assert not reservation.words[:: 512 * 8].any()
    reservation.words[-1] = 7
    assert reservation.words[-1] == 7


def test_addresses_cost_no_memory_until_they_are_written() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("nobody here says how much memory a process holds")

    def resident() -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) * 1024

    before = resident()
    reservation = Reservation(64 << 30)
    reservation.words[:: 1 << 30] = 1
    assert resident() - before < 64 << 20


@pytest.mark.parametrize("advises", [True, False])
@pytest.mark.parametrize(
    ("first", "end"),
    [
        (0, 8),
        (0, HUGE_BYTES),
        (HUGE_BYTES, 2 * HUGE_BYTES + 64),
        (0, 3 * HUGE_BYTES - 8),
        (HUGE_BYTES, 4 * HUGE_BYTES),
        (3 * HUGE_BYTES, 4 * HUGE_BYTES - 32),
    ],
)
def test_clearing_touches_nothing_before_or_behind_it(
    monkeypatch: pytest.MonkeyPatch, first: int, end: int, advises: bool
) -> None:
    if not advises:  # a system without such advice
        monkeypatch.setattr(memory, "_HUGEPAGE", None)
    reservation = Reservation(4 * HUGE_BYTES)
    reservation.advise_huge(0, 4 * HUGE_BYTES)
    reservation.words[:] = 9
    reservation.clear(first, end)
    assert not reservation.words[first // 8 : end // 8].any()
    assert (reservation.words[: first // 8] == 9).all()
    assert (reservation.words[end // 8 :] == 9).all()
    reservation.words[:] = 9
    reservation.clear(first, first)
    assert (reservation.words == 9).all()


def test_advice_for_less_than_a_huge_page_or_beyond_the_end_is_no_error() -> None:
    reservation = Reservation(HUGE_BYTES)
    reservation.advise_huge(8, 64)
    reservation.advise_huge(0, HUGE_BYTES)
    reservation.advise_huge(8, 2 * HUGE_BYTES - 8)
    assert not reservation.words.any()


def test_more_addresses_than_there_are_is_a_clear_error() -> None:
    with pytest.raises(ResourceError, match=r"cannot reserve .* GB of addresses for a table") as e:
        Reservation(1 << 60)
    assert e.value.cause
    assert "tables.features_max" in str(e.value.hint)
