"""What every test module shares: the full suite allows no skip for want of a program."""

from __future__ import annotations

import os
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
