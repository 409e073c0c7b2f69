"""Images and arrays of numbers, from the bytes of their files.

Images are decoded by Pillow, which comes with the extra ``deep``. Its limit on pixels stays on, and
:data:`PIXELS_MAX` comes before it. Arrays are NumPy's ``.npy``, never those that hold pickles.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from streamlearn.messages import F32, U8

__all__ = ["PIXELS_MAX", "read_array", "read_image", "require_pillow"]

# 100 MB once it is decoded; a camera's image that is no longer than a record has fewer.
PIXELS_MAX: Final = 1 << 25
_FORMATS: Final = ("PNG", "JPEG", "WEBP")
# What decoders raise on bytes that are none: everything but out of memory and our own mistakes.
_UNDECODABLE: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, Warning, struct.error, zlib.error),
)


def require_pillow() -> ModuleType:
    """Return Pillow's module of images.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            "images are decoded by Pillow, which is not installed",
            cause=str(error),
            hint="pip install 'streamlearn[deep]', or pip install pillow",
        ) from error
    return Image


def read_image(content: bytes, mode: str, size: tuple[int, int] | None) -> U8:
    """Decode a PNG, JPEG or WebP.

    Parameters
    ----------
    mode : str
        ``RGB`` or ``L``: what it is made to.
    size : (int, int), optional
        Height and width that it is resized to (bilinear); None: it stays as it is.

    Returns
    -------
    uint8[channels, height, width]

    Raises
    ------
    DataError
        It cannot be decoded, or has more than :data:`PIXELS_MAX` pixels.
    """
    pillow = require_pillow()
    try:
        with pillow.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > PIXELS_MAX:
                raise DataError(
                    f"{height} x {width} pixels are more than the {PIXELS_MAX:,} of an image"
                )
            made = image.convert(mode)
            if size is not None and (height, width) != size:
                made = made.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
            pixels = np.asarray(made, np.uint8)
    except (*_UNDECODABLE, pillow.DecompressionBombError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"it cannot be decoded ({said[:200]})") from error
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_array(content: bytes) -> F32 | U8:
    """Read an ``.npy`` of numbers.

    Returns
    -------
    uint8[...] or float32[...]
        Unsigned bytes as such; at least one dimension.

    Raises
    ------
    DataError
        It is none, is cut off, or has no numbers; or one is infinite.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except _UNDECODABLE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"it is no .npy ({said[:200]})") from error
    if dtype.kind not in "biuf":
        raise DataError(f"its type is {dtype}, expected numbers")
    data = content[file.tell() :]
    wanted = dtype.itemsize
    for one in shape:
        wanted *= one
    if not shape or min(shape) < 1:
        raise DataError(f"its shape is {shape}, expected at least one number and one dimension")
    if len(data) != wanted:
        raise DataError(f"it has {len(data):,} bytes of numbers, expected {wanted:,}")
    found: NDArray[Any] = np.frombuffer(data, dtype)
    found = found.reshape(shape, order="F" if by_columns else "C")
    if dtype == np.uint8:
        return found
    with np.errstate(over="ignore", invalid="ignore"):
        array: F32 = np.ascontiguousarray(found, np.float32)
    if np.isinf(array).any():
        raise DataError("it has an infinite number")
    return array
