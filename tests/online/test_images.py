"""Images and arrays from the bytes of their files, and everything that is none."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import ConfigError, DataError
from streamlearn.online import images
from streamlearn.online.images import read_array, read_image, require_pillow

PIXELS = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8)


def npy(array, **options) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), **options)
    return out.getvalue()


def image_of(pixels, format_="PNG", **options) -> bytes:
    """Return the file of an image."""
    pillow = pytest.importorskip("PIL.Image", reason="comes with the extra `deep`")
    out = io.BytesIO()
    pillow.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_an_image_is_bytes_channels_first(format_):
    found = read_image(image_of(PIXELS, format_, lossless=True), "RGB", None)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


def test_a_jpeg_is_about_what_it_was():
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    found = read_image(image_of(smooth, "JPEG", quality=95), "L", None)
    assert found.shape == (1, 64, 48)
    np.testing.assert_allclose(found[0], smooth, atol=4)


def test_modes_are_made_alike():
    assert read_image(image_of(PIXELS), "L", None).shape == (1, 4, 5)
    grey = read_image(image_of(PIXELS[:, :, 0]), "RGB", None)
    np.testing.assert_array_equal(grey, np.stack([PIXELS[:, :, 0]] * 3))
    with_alpha = np.dstack([PIXELS, PIXELS[:, :, 0]])
    np.testing.assert_array_equal(
        read_image(image_of(with_alpha), "RGB", None), read_image(image_of(PIXELS), "RGB", None)
    )


def test_sizes_are_height_and_width():
    assert read_image(image_of(PIXELS), "RGB", (7, 2)).shape == (3, 7, 2)
    same = read_image(image_of(PIXELS), "RGB", (4, 5))
    np.testing.assert_array_equal(same, read_image(image_of(PIXELS), "RGB", None))
    flat = np.full((6, 6, 3), 51, np.uint8)
    np.testing.assert_array_equal(read_image(image_of(flat), "RGB", (3, 9)), 51)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("cut", [0, 1, 30, 100])
def test_an_image_that_is_cut_off_cannot_be_decoded(format_, cut):
    big = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(DataError, match=r"it cannot be decoded \("):
        read_image(image_of(big, format_)[:cut], "RGB", None)


@given(st.data())
def test_damage_is_an_error_or_another_image(data):
    whole = bytearray(image_of(PIXELS, data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_image(bytes(whole), "RGB", (4, 5))
    except DataError:
        return
    assert found.shape == (3, 4, 5)


def test_other_formats_are_not_decoded():
    with pytest.raises(DataError, match="it cannot be decoded"):
        read_image(image_of(PIXELS, "BMP"), "RGB", None)


def test_an_image_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(images, "PIXELS_MAX", 19)
    with pytest.raises(DataError, match="4 x 5 pixels are more than the 19 of an image"):
        read_image(image_of(PIXELS), "RGB", None)


@pytest.mark.parametrize("times", [1.5, 3])
def test_pillows_own_limit_stays_on(monkeypatch, times):
    pillow = pytest.importorskip("PIL.Image", reason="comes with the extra `deep`")
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", int(20 / times))
    with pytest.raises(DataError, match=r"it cannot be decoded \(Image size \(20 pixels\)"):
        read_image(image_of(PIXELS), "RGB", None)


def test_without_pillow_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match="images are decoded by Pillow") as caught:
        require_pillow()
    assert "pip install" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i4", "<i8", "<f2", "<f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_numbers(dtype, order, version):
    array = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype, order=order)
    found = read_array(npy(array, version=version))
    assert found.dtype == (np.uint8 if dtype == "u1" else np.float32)
    np.testing.assert_array_equal(found, array)


def test_nan_is_missing_and_an_infinite_number_is_refused():
    np.testing.assert_array_equal(read_array(npy([1.0, np.nan])), [1, np.nan])
    for array in (np.array([1.0, np.inf]), np.array([1e300])):
        with pytest.raises(DataError, match="it has an infinite number"):
            read_array(npy(array))


def with_head(text: str, data: bytes = b"") -> bytes:
    head = text.encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no .npy"),
        (b"\x93NUMPY\1\0", "it is no .npy"),
        (b"\x93NUMPY\7\0" + npy([1.0])[8:], "it is no .npy"),
        (with_head("{'descr': print}"), "it is no .npy"),
        (npy([1.0, 2.0])[:-1], "it has 15 bytes of numbers, expected 16"),
        (npy([1.0, 2.0]) + b"x", "it has 17 bytes of numbers, expected 16"),
        (npy(np.float32(1)), "its shape is (), expected at least one number"),
        (npy(np.zeros((2, 0))), "its shape is (2, 0), expected at least one number"),
        (npy(["a"]), "its type is <U1, expected numbers"),
        (npy([1j]), "its type is complex128, expected numbers"),
        (npy([None], allow_pickle=True), "its type is object, expected numbers"),
        (
            with_head("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
            "it has 0 bytes of numbers, expected 8,000,000,000,000",
        ),
        (
            with_head("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}", b"x"),
            "its shape is (-1, -1), expected at least one number",
        ),
    ],
)
def test_what_is_no_array_of_numbers(content, said):
    with pytest.raises(DataError) as caught:
        read_array(content)
    assert caught.value.message.startswith(said)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_array_or_refused(tail):
    for content in (tail, npy([1.0, 2.0])[:80] + tail, npy(np.zeros(3, "u1")) + tail):
        with contextlib.suppress(DataError):
            assert read_array(content).ndim
