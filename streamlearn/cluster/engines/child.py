"""A process of a cluster that ends with the one that started it.

``python -m streamlearn.cluster.engines.child PARENT ARGUMENTS...`` runs ``streamlearn
ARGUMENTS...``, and the kernel kills it when the thread that started it ends, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


def main() -> None:
    """Tie this process to its parent, then run the command line."""
    parent = int(sys.argv.pop(1))
    # killed, and not asked to drain: a state that a crash may leave is one to go on from
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        sys.exit(1)
    runpy.run_module("streamlearn", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
