"""The svmlight (libsvm) format: ``label index:value ...``.

A label is -1, 0 or 1 (-1 counts as 0). ``qid:n`` after it and a comment from a token that begins
with ``#`` are passed over, a feature without a value has the value 1, and an index may be a name. A
feature's key is ``mix(index, field_seed(""))`` for a whole number of up to 18 digits and
``token_key(name, field_seed(""))`` for anything else.

For deep models all features are of one field, and a label is what their loss asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamlearn.online.pairs import PairsParser, complain
from streamlearn.online.schema import label_of

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.online.formats import Deep

__all__ = ["FIELD", "SvmlightFormat"]

# What the one field is called that a deep model sees.
FIELD: Final = "features"


class SvmlightFormat:
    """Sparse lines of ``index:value``.

    Parameters
    ----------
    config : SourceConfig
        ``classes`` matters to deep models.
    deep : Deep, optional
        What a deep model wants.
    """

    name = "svmlight"
    has_values = True
    has_header = False
    first_line = False
    record_rows = 1
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()

    def __init__(self, config: SourceConfig, *, deep: Deep | None = None) -> None:
        self.has_fields = deep is not None
        self.fields: tuple[str, ...] = (FIELD,) if self.has_fields else ()
        binary = deep is None or deep.loss == "logistic"
        self._label = None if binary else label_of("label", config, deep)
        self._parser = PairsParser(fields=False, label=self._label)

    def parser(self, header: bytes | None) -> PairsParser:
        """Return the parser, which is the same for every object."""
        return self._parser

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        return complain(reason, field, arg, record, "index:value", label=self._label)
