"""The libffm format: ``label field:index:value ...``.

As svmlight, but each feature says its field, and the same index in two fields is two features: the
key is ``mix(index, seed)`` with ``seed = mix(field, field_seed(""))`` for whole numbers of up to 18
digits, and ``token_key`` takes the place of ``mix`` where a field or an index is a name.

A deep model must know the fields before it meets the first record: ``source.fields`` names them,
with ``0-38`` for all numbers from 0 to 38. Any other makes a bad record.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from streamlearn.errors import ConfigError
from streamlearn.online.formats import refuse_other_losses
from streamlearn.online.pairs import PairsParser, complain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlearn.config import SourceConfig
    from streamlearn.online.formats import Deep

__all__ = ["FIELDS_MAX", "LibffmFormat"]

# A net has inputs for each field, whether a record has a feature of it or not.
FIELDS_MAX: Final = 4096
_RANGE: Final = re.compile(r"(\d{1,9})-(\d{1,9})")


class LibffmFormat:
    """Sparse lines of ``field:index:value``.

    Parameters
    ----------
    config : SourceConfig
        ``fields`` matters to deep models.
    deep : Deep, optional
        What a deep model wants.

    Raises
    ------
    ConfigError
        For a deep model: the fields are not named, or the model's labels are others than 0 and 1.
    """

    name = "libffm"
    has_values = True
    has_header = False
    first_line = False
    record_rows = 1
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()

    def __init__(self, config: SourceConfig, *, deep: Deep | None = None) -> None:
        self.has_fields = deep is not None
        self.fields: tuple[str, ...] = ()
        self._told = ""
        if deep is not None:
            refuse_other_losses(self.name, deep)
            self.fields = _read_fields(config.fields)
            self._told = ", ".join(config.fields)
        self._parser = PairsParser(fields=True, names=self.fields)

    def parser(self, header: bytes | None) -> PairsParser:
        """Return the parser, which is the same for every object."""
        return self._parser

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        return complain(reason, field, arg, record, "field:index:value", fields=self._told)


def _read_fields(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the fields that the settings name, ranges of numbers spelt out."""
    names: list[str] = []
    for text in texts:
        numbers = _RANGE.fullmatch(text)
        if numbers is None:
            if not text or re.search(r"[:\s]", text):
                raise ConfigError(
                    f"source.fields: expected a field of libffm, or a range 0-38, got {text!r}"
                )
            names.append(text)
            continue
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise ConfigError(f"source.fields: the range {text} ends before it begins")
        names += map(str, range(first, min(last, first + FIELDS_MAX) + 1))
    if not names:
        raise ConfigError(
            "source.fields: expected the fields, which a deep model must know beforehand, got none",
            hint="--field 0-38 where libffm's fields are 0 to 38",
        )
    if len(names) > FIELDS_MAX:
        raise ConfigError(
            f"source.fields: expected at most {FIELDS_MAX} fields, got {len(names)} or more"
        )
    return tuple(names)
