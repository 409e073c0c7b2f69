"""The logarithmic buckets of numbers as a user reads them: ``[12, 14)``."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from streamlearn.messages import I64, U8

__all__ = ["BUCKETS", "BUCKET_TEXT_BYTES_MAX", "bucket_range", "bucket_texts"]

# What kernels.bits.log_bucket returns lies below.
BUCKETS = 2048
# The longest text of a bucket: two whole numbers of 39 digits and a sign, and what stands around.
BUCKET_TEXT_BYTES_MAX = 96


def bucket_range(code: int) -> tuple[float, float]:
    """Return the two ends of a bucket, the one nearer to zero (which is inside) first."""
    ends = np.array([code << 21, (code + 1) << 21], np.int64).astype(np.uint32).view(np.float32)
    return float(ends[0]), float(ends[1])


@cache
def bucket_texts(*, whole: bool) -> tuple[U8, I64]:
    """Return the texts of all buckets, one after the other, and where each ends.

    Parameters
    ----------
    whole : bool
        Whether only whole numbers fall into the buckets: then the ends are whole, and a bucket
        that holds one number is named by it.

    Returns
    -------
    text : uint8[k]
    ends : int64[2048]
    """
    texts = [_text(code, whole=whole).encode() for code in range(BUCKETS)]
    text = np.frombuffer(b"".join(texts), np.uint8)
    return text, np.cumsum([len(t) for t in texts], dtype=np.int64)


def _text(code: int, *, whole: bool) -> str:
    if code in {0, 1024}:
        return "0"
    near, far = bucket_range(code)
    if not math.isfinite(near):
        return "not finite"
    if whole and abs(far) > 1 and math.isfinite(far):
        # the least whole number inside, and the least one beyond
        near, far = (math.copysign(math.ceil(abs(end)), end) for end in (near, far))
        if abs(far - near) == 1:
            return f"{near:.0f}"
        form = ".0f"
    else:
        form = ".6g"
    if near < 0:
        return f"({far:{form}}, {near:{form}}]"
    return f"[{near:{form}}, {far:{form}})"
