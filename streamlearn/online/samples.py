"""Samples of tar archives, as WebDataset has them: an image or an array, and its label.

The source makes a record of the members of each sample (:mod:`streamlearn.net.sources.samples`).

* Its input is the member with the extension ``source.sample``, else the first of ``png``, ``jpg``,
  ``jpeg``, ``webp`` and ``npy`` that there is. An image is made ``source.image_mode`` and, where
  that is given, ``source.image_size``; its numbers are in [0, 1], channels first.
* Its label is the field ``source.label`` of its ``json``; where that is not given the text of its
  ``cls``, else the field ``label`` of its ``json``, else its ``txt``.
* All inputs have one shape: ``source.image_size``, or that of the first sample. Another one is a
  bad record, as is an input that cannot be read, and a sample without input or label.

Python runs for each record here: decoding takes most of the time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from streamlearn.binary import Sample, shape_text
from streamlearn.compute.kernels.records import find_newline
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.dense_labels import DenseLabels
from streamlearn.online.dense_rows import add_rows, nothing_described
from streamlearn.online.images import read_array, read_image, require_pillow
from streamlearn.online.minibatch import REASONS
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.messages import F32, I64, U8
    from streamlearn.online.formats import Deep, Described
    from streamlearn.online.minibatch import Minibatch

__all__ = ["SamplesFormat", "SamplesParser", "read_size"]

_IMAGES: Final = ("png", "jpg", "jpeg", "webp")
_INPUTS: Final = (*_IMAGES, "npy")
_CHANNELS: Final = {"RGB": 3, "L": 1}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SHOWN_MAX: Final = 10


class _Bad(Exception):  # noqa: N818 -- a record that is one, not a failure
    """What is wrong with a record."""

    def __init__(self, reason: str, detail: str, arg: int = 0) -> None:
        super().__init__(detail)
        self.reason = REASONS.index(reason)
        self.arg = arg


class SamplesFormat:
    """Samples of tar archives.

    Parameters
    ----------
    config : SourceConfig
        ``sample``, ``image_size``, ``image_mode``, ``label`` and ``classes`` matter.
    deep : Deep
        What labels are for.
    labelled : bool
        Whether samples need labels. If not, every label is 0.

    Attributes
    ----------
    dense : tuple of int
        Shape of an example; () until it is known.

    Raises
    ------
    ConfigError
        A setting is wrong, or Pillow is wanted and not installed.
    """

    name = "samples"
    fields: tuple[str, ...] = ()
    dense_names: tuple[str, ...] = ()
    has_values = False
    has_fields = False
    has_header = False
    record_rows = 1

    def __init__(self, config: SourceConfig, *, deep: Deep, labelled: bool = True) -> None:
        for setting in ("columns", "cross", "fields"):
            if value := getattr(config, setting):
                raise ConfigError(
                    f"source.{setting}: expected nothing, since samples have an input and a label, "
                    f"got {value!r}"
                )
        self._input = config.sample.lower().removeprefix(".")
        last = self._input.rpartition(".")[2]
        if self._input and last not in _INPUTS:
            raise ConfigError(
                f"source.sample: expected an extension that ends in one of {', '.join(_INPUTS)}, "
                f"got {config.sample!r}"
            )
        self._mode = config.image_mode
        self._size = read_size(config.image_size)
        self._field = config.label
        self._numbers = DenseLabels(deep, config.classes)
        self._labelled = labelled
        self.dense: tuple[int, ...] = ()
        if last != "npy":
            require_pillow()
            if self._size is not None:
                self.dense = (_CHANNELS[self._mode], *self._size)

    @property
    def first_line(self) -> bool:
        """Whether a parser needs the first record: until there is a shape."""
        return not self.dense

    def parser(self, header: bytes | None) -> SamplesParser:
        """Return a parser for an object with this first record; see ``Format``.

        Raises
        ------
        DataError
            The first record of all has no input that can be read, and so no shape.
        """
        if not self.dense:
            assert header is not None, "the shape of examples says the first record"
            try:
                if not header:
                    raise DataError("there is no sample")
                self.dense = self._read_input(Sample.decode(header)).shape
            except (_Bad, DataError) as error:
                raise DataError(
                    "the shape of examples is not known, since the first sample has none: "
                    f"{error.args[0]}",
                    hint="say it: --image-size HEIGHTxWIDTH",
                ) from error
        return SamplesParser(self)

    def read(self, record: bytes) -> tuple[F32 | U8, float]:
        """Return input and label of a record; raises what is wrong with it."""
        try:
            sample = Sample.decode(record)
        except DataError as error:
            raise _Bad("syntax", error.message) from error
        array = self._read_input(sample)
        if array.shape != self.dense:
            hint = "" if self._size else "; --image-size HEIGHTxWIDTH resizes images"
            raise _Bad(
                "shape",
                f"the input of {quoted(sample.key.encode())} is {shape_text(array.shape)}, "
                f"expected {shape_text(self.dense)}{hint}",
            )
        return array, self._read_label(sample) if self._labelled else 0.0

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        try:
            self.read(record)
        except _Bad as bad:
            return str(bad)
        return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"

    def _read_input(self, sample: Sample) -> F32 | U8:
        key = quoted(sample.key.encode())
        if sample.too_long:
            raise _Bad(
                "too_long",
                f"the sample {key} has {sample.too_long:,} bytes or more, longer than the "
                f"{RECORD_BYTES_MAX:,} allowed",
                sample.too_long,
            )
        wanted = (self._input,) if self._input else _INPUTS
        names = [extension for extension, _ in sample.members]
        name = next((one for one in wanted if one in names), "")
        if not name:
            raise _Bad(
                "sample", f"the sample {key} has no {' or '.join(wanted)}, but {_listed(names)}"
            )
        content = _content(sample, name)
        try:
            if name.rpartition(".")[2] == "npy":
                return read_array(content)
            return read_image(content, self._mode, self._size)
        except DataError as error:
            raise _Bad("image", f"{name} of the sample {key}: {error.message}") from error

    def _read_label(self, sample: Sample) -> float:
        key = quoted(sample.key.encode())
        names = [extension for extension, _ in sample.members]
        value: Any = None
        if not self._field and "cls" in names:
            value = _content(sample, "cls").decode(errors="replace")
        elif "json" in names:
            value = _field(_content(sample, "json"), self._field or "label", key)
        if value is None and not self._field and "txt" in names:
            value = _content(sample, "txt").decode(errors="replace")
        if value is None:
            wanted = f"field {self._field!r} in its json" if self._field else "cls, json or txt"
            raise _Bad("sample", f"the sample {key} has no {wanted}, but {_listed(names)}")
        label = self._numbers.number(value)
        if label != label:
            raise _Bad(
                "label",
                f"label {quoted(str(value).encode())} of the sample {key} is not "
                f"{self._numbers.expected_text}",
            )
        return label


class SamplesParser:
    """Parses blocks of one object.

    Parameters
    ----------
    source : SamplesFormat
    """

    def __init__(self, source: SamplesFormat) -> None:
        self._source = source

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``.

        Raises
        ------
        DataError
            ``out`` was made before the shape was known.
        """
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        dense = self._source.dense
        if out.shape != dense:
            raise DataError(
                f"inputs of samples are {shape_text(dense)} numbers, which was not known when "
                "learning began",
                hint="say it: --image-size HEIGHTxWIDTH",
            )
        at = start
        while at < end and not out.full:
            stop = find_newline(buffer, at, end)
            if stop > at:
                self._append(buffer[at:stop].tobytes(), at, out)
            at = stop + 1
        return at

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Describe nothing: there are no features; see ``Parser``."""
        return nothing_described()

    def _append(self, record: bytes, at: int, out: Minibatch) -> None:
        reason, arg, label = 0, 0, 0.0
        try:
            array, label = self._source.read(record)
            into = out.dense[out.rows].reshape(array.shape)
            if array.dtype == np.uint8:
                np.divide(array, np.float32(255), out=into, dtype=np.float32)
            else:
                into[:] = array
        except _Bad as bad:
            reason, arg = bad.reason, bad.arg
        add_rows(
            out, np.array([at]), np.array([label]), np.array([reason], np.int32), np.array([arg])
        )


def read_size(text: str) -> tuple[int, int] | None:
    """Return the height and width that ``HEIGHTxWIDTH`` means; None: as images are.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ConfigError(f"source.image_size: expected HEIGHTxWIDTH (224x224), got {text!r}")
    return int(found[1]), int(found[2])


def _content(sample: Sample, extension: str) -> bytes:
    """Return the content of the one member with an extension."""
    found = [content for name, content in sample.members if name == extension]
    if len(found) != 1 or found[0] is None:
        key = quoted(sample.key.encode())
        raise _Bad("sample", f"the sample {key} has {len(found)} members {extension}, expected one")
    return found[0]


def _field(content: bytes, path: str, key: str) -> Any:
    """Return the value of a field, a path of keys; None where there is none."""
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _Bad("sample", f"json of the sample {key} cannot be read ({error})") from error
    if isinstance(value, dict) and path in value:
        return value[path]
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN_MAX]) + (", …" if len(names) > _SHOWN_MAX else "")
