"""Topics of documents on the command line: how they read, a line a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamlearn.topic_mixtures import Mixture

__all__ = ["MixtureLines"]


class MixtureLines:
    """Writes the topics of documents, a line each.

    ``17:0.412 3:0.25 ...``, the largest share first; all shares in the order of topics, between
    tabs, where all are wanted; or an object of JSON. A bad record is ``nan`` (JSON: ``null``).

    Parameters
    ----------
    write : callable
        Takes text.
    top : int
        Topics of each document; 0: all.
    as_json : bool
    """

    def __init__(self, write: Callable[[str], None], top: int, *, as_json: bool) -> None:
        self.top = top
        self._write = write
        self._line = self._json if as_json else self._text if top else self._all

    def __call__(self, mixtures: Sequence[Mixture | None]) -> None:
        """Write the next documents."""
        self._write("".join(map(self._line, mixtures)))

    @staticmethod
    def _text(mixture: Mixture | None) -> str:
        if mixture is None:
            return "nan\n"
        pairs = zip(mixture.topics, mixture.shares, strict=True)
        return " ".join([f"{topic}:{share:.4g}" for topic, share in pairs]) + "\n"

    @staticmethod
    def _all(mixture: Mixture | None) -> str:
        if mixture is None:
            return "nan\n"
        return "\t".join([f"{share:.6g}" for share in mixture.shares]) + "\n"

    def _json(self, mixture: Mixture | None) -> str:
        if mixture is None:
            return "null\n"
        shares = ", ".join(
            [f"[{k}, {share:.6g}]" for k, share in zip(mixture.topics, mixture.shares, strict=True)]
            if self.top
            else [f"{share:.6g}" for share in mixture.shares]
        )
        name = "topics" if self.top else "shares"
        return (
            f'{{"{name}": [{shares}], "tokens": {mixture.tokens}, '
            f'"unknown_tokens": {mixture.unknown}}}\n'
        )
