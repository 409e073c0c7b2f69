"""What a feature's key means: the one place where the name of a field becomes part of a key.

Keys depend on the field's name and on what stands in it, never on the format that it came in: a
model that was learned from CSV predicts from JSON. With ``seed = field_seed(name)`` and the
functions of :mod:`streamlearn.compute.kernels.bits`:

==============================  =================================  ==============================
feature                         key                                name of the field
==============================  =================================  ==============================
category                        ``token_key(token, seed)``         the column (``origin``)
user or item of a rating        ``token_key(token, seed)``         ``user``, ``item``
number, log-bucketed            ``mix(log_bucket(value), seed)``   the column (``distance``)
number, raw (key has a value)   ``mix(0, seed)``                   the column (``distance``)
hour of a time, 0 to 23         ``mix(hour, seed)``                ``when.hour``
weekday of a time, Monday is 0  ``mix(weekday, seed)``             ``when.weekday``
cross of two                    ``cross_key(a, b, seed)``          the cross, no spaces (``a*b``)
cross of three or more          ``cross_key(cross_key(a, b, s),    the cross (``a*b*c``)
                                c, s)``
index of svmlight               ``mix(index, seed)``               empty
index of libffm                 ``mix(index, mix(field, seed))``   empty
==============================  =================================  ==============================

A cross is made of the keys of its parts in the order in which the job names them, so ``a*b`` and
``b*a`` are two fields. A missing token (an empty one) is no feature, and neither is a cross with a
missing part. Indices and fields of svmlight and libffm that are no numbers of at most 18 digits are
tokens: ``token_key`` takes the place of ``mix``.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["field_seed"]


def field_seed(name: str) -> np.uint64:
    """Return the seed of a field: the BLAKE2b-64 of its name (little-endian), made odd."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"streamlearn").digest()
    return np.uint64(int.from_bytes(digest, "little") | 1)
