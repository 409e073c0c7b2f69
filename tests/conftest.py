"""What every test module shares: the full suite allows no skip for want of a program."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

# A first call compiles, and machines are shared: no test asks how long it took. Health checks of
# how fast data is drawn ask the same.
hypothesis.settings.register_profile(
    "streamlearn",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("streamlearn")

# A process that has run hundreds of tests holds gigabytes of garbage: so many objects live as long
# as it does that its collector hardly ever looks at the old ones; what was alive when a run that
# a test makes froze everything (``compute.leftovers``) would never be looked at again.
_GROWTH_BYTES = 1 << 30
_held_bytes = [0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Collect garbage where the process has grown by a gigabyte."""
    if _resident_bytes() > _held_bytes[0] + _GROWTH_BYTES:
        gc.unfreeze()
        gc.collect()
        _held_bytes[0] = _resident_bytes()


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


# Set by .ci/run, which has installed what tests marked `full` want.
FULL = os.environ.get("STREAMLEARN_FULL") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test marked ``full`` into a failure where everything should be there."""
    report = yield
    if FULL and report.skipped and item.get_closest_marker("full"):
        report.outcome = "failed"
        reason = call.excinfo.value if call.excinfo else report.longrepr
        report.longrepr = f"{item.nodeid} must not skip in the full suite: {reason}"
    return report
