"""The libffm format: ``label field:index:value ...``.

As svmlight, but each feature says its field, and the same index in two fields is two features: the
key is ``mix(index, seed)`` with ``seed = mix(field, field_seed(""))`` for whole numbers of up to 18
digits, and ``token_key`` takes the place of ``mix`` where a field or an index is a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.online.pairs import PairsParser, complain

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig

__all__ = ["LibffmFormat"]


class LibffmFormat:
    """Sparse lines of ``field:index:value``.

    Parameters
    ----------
    config : SourceConfig
        None of its settings matters here.
    """

    name = "libffm"
    fields: tuple[str, ...] = ()
    has_values = True
    has_header = False
    first_line = False
    record_rows = 1
    has_fields = False
    dense: tuple[int, ...] = ()

    def __init__(self, config: SourceConfig) -> None:
        self._parser = PairsParser(fields=True)

    def parser(self, header: bytes | None) -> PairsParser:
        """Return the parser, which is the same for every object."""
        return self._parser

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        return complain(reason, field, arg, record, "field:index:value")
