"""The svmlight (libsvm) format: ``label index:value ...``.

A label is -1, 0 or 1 (-1 counts as 0). ``qid:n`` after it and a comment from a token that begins
with ``#`` are passed over, a feature without a value has the value 1, and an index may be a name. A
feature's key is ``mix(index, field_seed(""))`` for a whole number of up to 18 digits and
``token_key(name, field_seed(""))`` for anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.online.pairs import PairsParser, complain

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig

__all__ = ["SvmlightFormat"]


class SvmlightFormat:
    """Sparse lines of ``index:value``.

    Parameters
    ----------
    config : SourceConfig
        None of its settings matters here.
    """

    name = "svmlight"
    fields: tuple[str, ...] = ()
    has_values = True
    has_header = False
    first_line = False
    record_rows = 1
    has_fields = False
    dense: tuple[int, ...] = ()

    def __init__(self, config: SourceConfig) -> None:
        self._parser = PairsParser(fields=False)

    def parser(self, header: bytes | None) -> PairsParser:
        """Return the parser, which is the same for every object."""
        return self._parser

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        return complain(reason, field, arg, record, "index:value")
