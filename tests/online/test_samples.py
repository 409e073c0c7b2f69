"""Samples of archives as examples: an input and a label each, or what is wrong with them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from streamlearn.binary import Sample, stuff
from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.formats import Deep, open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, REASONS, Minibatch
from tests.online.test_images import PIXELS, image_of, npy

CLASSES = Deep("classes", 10)
ARRAY = npy(np.arange(6.0).reshape(2, 3))
FIRST = Sample("first", (("npy", ARRAY), ("cls", b"0")))


def format_of(deep=CLASSES, *, labelled=True, **options):
    pytest.importorskip("PIL.Image", reason="comes with the extra `deep`")
    return open_format(SourceConfig(format="samples", **options), deep=deep, labelled=labelled)


def parsed(format_, *samples, rows=100, extra=b""):
    """Return labels, inputs and what is wrong, of samples the first of which shows the shape."""
    lines = [sample if isinstance(sample, bytes) else sample.encode() for sample in samples]
    parser = format_.parser(lines[0] if format_.first_line else None)
    records = b"".join(line + b"\n" for line in lines) + extra
    buffer = np.frombuffer(b"\n\n" + records + bytes(BLOCK_TAILROOM_BYTES), np.uint8)
    batch = Minibatch.of(format_, rows, FEATURES_PER_RECORD_MAX)
    at, end = 2, 2 + len(records)
    labels, inputs, bad = [], [], []
    while at < end:
        batch.clear()
        batch.weights[:] = batch.indptr[1:] = -1
        at = parser.parse(buffer, at, end, batch)
        n = batch.rows
        assert (batch.weights[:n] == 1).all()
        assert (batch.indptr[: n + 1] == 0).all()
        assert batch.records == n + batch.bad
        for i in batch.lines[:n]:
            line = buffer[i:].tobytes().split(b"\n")[0]
            assert line in lines
        labels += batch.labels[:n].tolist()
        inputs += list(batch.dense[:n].copy())
        for i in range(batch.bad):
            record = buffer[batch.bad_start[i] :].tobytes().split(b"\n")[0]
            assert record in lines
            reason, arg = int(batch.bad_reason[i]), int(batch.bad_arg[i])
            said = format_.complaint(reason, int(batch.bad_field[i]), arg, record)
            bad.append((REASONS[reason], said))
    return labels, inputs, bad


def sample(key="k", /, **members):
    """Return a sample; members are given in the place of those that it has."""
    whole = {"npy": ARRAY, "cls": b"1", **members}
    return Sample(key, tuple((name, one) for name, one in whole.items() if one != b"none"))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_an_input_and_a_label_are_an_example(rows):
    format_ = format_of()
    labels, inputs, bad = parsed(format_, FIRST, sample(), sample(cls=b" 9\n"), rows=rows)
    assert format_.dense == (2, 3)
    assert labels == [0, 1, 9]
    np.testing.assert_array_equal(inputs, [np.arange(6)] * 3)
    assert not bad


@pytest.mark.parametrize(
    ("mode", "size", "shape"),
    [
        ("RGB", "", (3, 4, 5)),
        ("L", "", (1, 4, 5)),
        ("RGB", "8x9", (3, 8, 9)),
        ("L", "2x3", (1, 2, 3)),
    ],
)
def test_images_are_of_a_mode_and_a_size(mode, size, shape):
    format_ = format_of(image_mode=mode, image_size=size)
    assert format_.first_line == (not size), "with a size nothing needs to be looked at"
    one = Sample("1", (("png", image_of(PIXELS)), ("cls", b"3")))
    labels, inputs, bad = parsed(format_, one)
    assert (labels, bad) == ([3], [])
    assert format_.dense == shape
    assert inputs[0].shape == (np.prod(shape),)
    if size == "" and mode == "RGB":
        expected = PIXELS.transpose(2, 0, 1).ravel() / np.float32(255)
        np.testing.assert_array_equal(inputs[0], expected)


@pytest.mark.parametrize(("dtype", "scale"), [("u1", 255), ("i1", 1), ("f8", 1)])
def test_unsigned_bytes_are_between_0_and_1(dtype, scale):
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    _, inputs, _ = parsed(format_of(), sample(npy=npy(array)))
    np.testing.assert_array_equal(inputs[0], np.arange(6, dtype=np.float32) / np.float32(scale))


def test_the_input_is_the_first_there_is_or_the_one_named():
    picture = image_of(PIXELS)
    members = (("npy", ARRAY), ("left.npy", npy([7.0])), ("jpg", picture), ("cls", b"1"))
    for setting, dense in (
        ("", (3, 4, 5)),
        ("npy", (2, 3)),
        ("left.npy", (1,)),
        (".JPG", (3, 4, 5)),
    ):
        format_ = format_of(sample=setting)
        labels, _, bad = parsed(format_, Sample("k", members))
        assert (labels, bad, format_.dense) == ([1], [], dense)


@pytest.mark.parametrize(
    ("deep", "options", "members", "label"),
    [
        (CLASSES, {}, {"cls": b"7"}, 7),
        (CLASSES, {}, {"cls": b"7", "json": b'{"label": 3}', "txt": b"2"}, 7),
        (CLASSES, {}, {"cls": b"none", "json": b'{"label": 3}', "txt": b"2"}, 3),
        (CLASSES, {}, {"cls": b"none", "json": b'{"x": 3}', "txt": b"2\n"}, 2),
        (CLASSES, {"label": "a.b"}, {"json": b'{"a": {"b": "4"}}'}, 4),
        (CLASSES, {"label": "a.b"}, {"json": b'{"a.b": 5, "a": {"b": "4"}}'}, 5),
        (Deep("classes", 2), {"classes": ("cat", "dog")}, {"cls": b"dog\n"}, 1),
        (
            Deep("classes", 2),
            {"classes": ("cat", "Größe"), "label": "kind"},
            {"json": json.dumps({"kind": "Größe"}).encode()},
            1,
        ),
        (Deep("logistic", 0), {"label": "good"}, {"json": b'{"good": true}'}, 1),
        (Deep("logistic", 0), {}, {"cls": b"no"}, 0),
        (Deep("squared", 0), {"label": "y"}, {"json": b'{"y": -2.5}'}, -2.5),
    ],
)
def test_where_labels_are(deep, options, members, label):
    labels, _, bad = parsed(format_of(deep, **options), sample(**members))
    assert (labels, bad) == ([label], [])


@pytest.mark.parametrize(
    ("wrong", "options", "reason", "said"),
    [
        (sample(npy=b"none"), {}, "sample",
         "the sample 'k' has no png or jpg or jpeg or webp or npy, but cls"),
        (Sample("k"), {}, "sample", "the sample 'k' has no png or jpg or jpeg or webp or npy"),
        (sample(), {"sample": "x.npy"}, "sample", "the sample 'k' has no x.npy, but npy, cls"),
        (sample(cls=b"none", mp4=None), {}, "sample",
         "the sample 'k' has no cls, json or txt, but npy, mp4"),
        (sample(json=b"{}"), {"label": "y"}, "sample",
         "the sample 'k' has no field 'y' in its json, but npy, cls, json"),
        (sample(), {"label": "y"}, "sample", "the sample 'k' has no field 'y' in its json"),
        (sample(json=b"[1]"), {"label": "y"}, "sample", "the sample 'k' has no field 'y'"),
        (sample(json=b"{"), {"label": "y"}, "sample", "json of the sample 'k' cannot be read ("),
        (sample(json=b"\xff"), {"label": "y"}, "sample", "json of the sample 'k' cannot be read ("),
        (sample(json=b"[" * 9999), {"label": "y"}, "sample", "json of the sample 'k' cannot be"),
        (Sample("k", (("npy", ARRAY), ("npy", ARRAY))), {}, "sample",
         "the sample 'k' has 2 members npy, expected one"),
        (sample(cls=b"10"), {}, "label",
         "label '10' of the sample 'k' is not a whole number from 0 to 9"),
        (sample(cls=b"\xff"), {}, "label", "label '\ufffd' of the sample 'k' is not a whole"),
        (sample(json=b'{"y": [1]}'), {"label": "y"}, "label", "label '[1]' of the sample 'k' is"),
        (sample(npy=npy(np.zeros((3, 2)))), {}, "shape", "the input of 'k' is 3 x 2, expected 2 "),
        (sample(npy=ARRAY[:-1]), {}, "image",
         "npy of the sample 'k': it has 47 bytes of numbers, expected 48"),
        (sample(png=b"\x89PNG"), {}, "image", "png of the sample 'k': it cannot be decoded ("),
        (Sample("long", too_long=1 << 21), {}, "too_long",
         "the sample 'long' has 2,097,152 bytes or more, longer than the 1,048,576 allowed"),
        (stuff(b"something else"), {}, "syntax", "expected a sample, found"),
        (b"\xf0", {}, "syntax", "the record is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_example_is_a_bad_record(wrong, options, reason, said):
    good = Sample("good", (("npy", ARRAY), ("x.npy", ARRAY), ("cls", b"2"), ("json", b'{"y": 2}')))
    labels, _, bad = parsed(format_of(**options), good, wrong, good)
    assert labels == [2, 2]
    assert [one for one, _ in bad] == [reason]
    assert bad[0][1].startswith(said)


def test_an_image_of_another_size_is_bad_unless_a_size_is_given():
    small, large = image_of(PIXELS), image_of(np.repeat(PIXELS, 2, axis=0))
    samples = [Sample("a", (("png", small), ("cls", b"1"))),
               Sample("b", (("png", large), ("cls", b"2")))]  # fmt: skip
    labels, _, bad = parsed(format_of(), *samples)
    assert labels == [1]
    assert bad == [
        ("shape", "the input of 'b' is 3 x 8 x 5, expected 3 x 4 x 5; --image-size HEIGHTxWIDTH "
         "resizes images")
    ]  # fmt: skip
    labels, _, bad = parsed(format_of(image_size="4x5"), *samples)
    assert (labels, bad) == ([1, 2], [])


def test_labels_need_not_be_there_where_none_are_wanted():
    labels, inputs, bad = parsed(format_of(labelled=False), sample(cls=b"none"), sample(cls=b"x"))
    assert (labels, len(inputs), bad) == ([0, 0], 2, [])


def test_a_first_sample_without_shape_is_an_error_that_says_the_way_out():
    wrong = sample(npy=b"?").encode()
    with pytest.raises(DataError, match="the shape of examples is not known") as caught:
        format_of().parser(wrong)
    assert "npy of the sample 'k': it is no .npy" in caught.value.message
    assert "--image-size" in str(caught.value.hint)
    assert format_of(image_size="2x2").parser(None)
    with pytest.raises(DataError, match="the first sample has none: there is no sample"):
        format_of().parser(b"")


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\x89PNG  ", "samples"), (b"\xff\xd8\xff\xe0", "samples"), (b"\0\0\x08\3\0", "idx")],
)
def test_auto_says_what_it_is_that_it_cannot_take(start, name):
    with pytest.raises(ConfigError, match="auto cannot tell the format: the first bytes are") as e:
        open_format(SourceConfig(), start + b"...\n", deep=CLASSES)
    assert e.value.hint == f"--format {name}, which --model deep learns"


def test_the_shape_stays_that_of_the_first_object():
    format_ = format_of()
    format_.parser(FIRST.encode())
    format_.parser(sample(npy=npy([1.0])).encode())
    assert format_.dense == (2, 3)
    assert not format_.first_line


def test_minibatches_that_were_made_before_the_shape_was_known_are_refused():
    format_ = format_of()
    batch = Minibatch.of(format_, 4, FEATURES_PER_RECORD_MAX)
    record = FIRST.encode()
    buffer = np.frombuffer(record + b"\n" + bytes(BLOCK_TAILROOM_BYTES), np.uint8)
    with pytest.raises(DataError, match="inputs of samples are 2 x 3 numbers, which was not known"):
        format_.parser(record).parse(buffer, 0, len(record) + 1, batch)


def test_blank_lines_are_no_records():
    labels, _, bad = parsed(format_of(), FIRST, extra=b"\n\n")
    assert (labels, bad) == ([0], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": {"a": "label"}}, "source.columns: expected nothing"),
        ({"cross": ("a*b",)}, "source.cross: expected nothing"),
        ({"fields": ("a",)}, "source.fields: expected nothing"),
        ({"sample": "mp4"}, "source.sample: expected an extension that ends in one of png,"),
        ({"image_size": "12"}, r"source.image_size: expected HEIGHTxWIDTH \(224x224\), got '12'"),
    ],
)
def test_settings_that_are_wrong(options, said):
    with pytest.raises(ConfigError, match=said):
        format_of(**options)


def test_arrays_alone_need_no_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    config = SourceConfig(format="samples", sample="npy")
    assert open_format(config, deep=CLASSES).first_line
    with pytest.raises(ConfigError, match="Pillow, which is not installed"):
        open_format(SourceConfig(format="webdataset"), deep=CLASSES)


def test_samples_have_nothing_to_describe():
    described = format_of(image_size="2x2").parser(None).describe(
        np.zeros(10, np.uint8), np.zeros(1, np.int64), np.ones(1, np.int64)
    )  # fmt: skip
    assert [len(part) for part in (described.keys, described.fields, described.text)] == [0] * 3
