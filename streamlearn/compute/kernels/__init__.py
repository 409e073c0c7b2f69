"""Numba functions of arrays; nothing here imports the rest of the package.

Numba's on-disk cache looks only at the file that a kernel stands in. A kernel that uses a helper of
another file would go stale unnoticed, so the cache directory is named after a digest of all files
here: change any of them and every kernel is compiled anew. ``NUMBA_CACHE_DIR``, where set, is the
parent of that directory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numba

__all__ = ["CACHE_DIR"]


def _digest() -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cache_dir() -> Path:
    """Return a writable directory: the user's choice, the user's cache, or a temporary one."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    parents = [Path(home) / "streamlearn" / "kernels"]
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        parents.insert(0, Path(chosen))
    parents.append(Path(tempfile.gettempdir()) / f"streamlearn-kernels-{os.getuid()}")
    for parent in parents:
        path = parent / _digest()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK):
            return path
    return parents[-1]


CACHE_DIR = _cache_dir()
# Read when a kernel is decorated, hence set before any is imported.
numba.config.CACHE_DIR = str(CACHE_DIR)  # type: ignore[attr-defined]
