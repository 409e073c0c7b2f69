from __future__ import annotations

import sys

import numpy as np
import pytest

import process

# Says two lines, between which it works for 50 ms of CPU and holds 50 MB.
WORKS = """
import sys, time
print("one", file=sys.{stream}, flush=True)
held = bytearray(b"x" * 50_000_000)
end = time.process_time() + 0.05
while time.process_time() < end: pass
print("two", file=sys.{stream}, flush=True)
time.sleep(0.2)
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_lines_are_stamped_with_what_was_used_until_then(stream: str) -> None:
    program = WORKS.format(stream=stream)
    used, lines = process.run_stamped([sys.executable, "-c", program], stderr=stream == "stderr")
    assert [line.text for line in lines] == ["one\n", "two\n"]
    assert getattr(used, stream) == "one\ntwo\n"
    one, two = lines
    assert 0 < one.seconds < two.seconds <= used.seconds
    assert two.cpu_seconds - one.cpu_seconds > 0.04
    assert used.peak_rss_bytes > 50_000_000


def test_peak_is_of_the_command_alone() -> None:
    held = np.ones(200_000_000, np.uint8)
    program = "import time; print(1, flush=True); time.sleep(0.2)"
    used, _ = process.run_stamped([sys.executable, "-S", "-c", program])
    assert 0 < used.peak_rss_bytes < 100_000_000
    assert process.peak_rss_bytes() > held.nbytes


def test_failure_is_told_in_its_own_words() -> None:
    command = [sys.executable, "-c", "import sys; print('said'); sys.exit('why it failed')"]
    for stderr in (False, True):
        with pytest.raises(RuntimeError, match=r"exit status 1\nwhy it failed"):
            process.run_stamped(command, stderr=stderr)


def test_between_lines_are_medians_of_differences() -> None:
    lines = [process.Line("", *stamp) for stamp in ((1.0, 0.5), (2.0, 1.0), (5.0, 1.1), (7.0, 1.4))]
    assert process.between(lines) == pytest.approx({"epoch_seconds": 2.0, "epoch_cpu_seconds": 0.3})
    assert process.between(lines[:1]) == {}
