"""Errors, split by whose fault they are.

An error that a user can cause is a :class:`StreamlearnError`: one sentence that says what failed,
optionally the other side's own words (``cause``) and the next step (``hint``). The command line
prints exactly these three and exits with ``exit_code``; nothing else prints a traceback away. Our
own mistakes stay ``AssertionError``.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ClusterError",
    "ColumnError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "LogError",
    "ObjectChangedError",
    "PeerLostError",
    "ProtocolError",
    "RefusedError",
    "ResourceError",
    "RunError",
    "SnapshotError",
    "SourceError",
    "SourceMissingError",
    "StreamlearnError",
    "TableFullError",
]


class StreamlearnError(Exception):
    """A failure that a user, an operator or a peer can understand and mend.

    Parameters
    ----------
    message : str
        One sentence: what failed, with expected and actual.
    cause : str, optional
        The other side's own words (an S3 error code, an ``errno`` text).
    hint : str, optional
        The next step to take.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        """Join message, cause and hint as the command line prints them."""
        lines = [self.message]
        if self.cause:
            lines.append(f"cause: {self.cause}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword arguments kept (errors cross lanes and processes)."""
        return (_rebuild, (type(self), self.message, self.cause, self.hint))


def _rebuild(
    kind: type[StreamlearnError], message: str, cause: str | None, hint: str | None
) -> StreamlearnError:
    return kind(message, cause=cause, hint=hint)


class ConfigError(StreamlearnError):
    """The command line, job file or environment asks for something that is not allowed."""

    exit_code = 2


class SourceError(StreamlearnError):
    """A source cannot be listed, opened or read."""


class SourceMissingError(SourceError):
    """Nothing is there: no such bucket, prefix, key or file, no credentials, nothing matched."""

    exit_code = 2


class ObjectChangedError(SourceError):
    """An object is no longer the one that was listed (another ETag, size or modification time)."""


class DataError(StreamlearnError):
    """Bytes of a source are damaged, or too many of its records are bad."""


class SnapshotError(StreamlearnError):
    """A snapshot cannot be written, or is damaged, of another format version or another model."""


class ResourceError(StreamlearnError):
    """A named limit of this machine or process is reached."""


class TableFullError(ResourceError):
    """A table holds as many features as its limit allows."""


class LogError(StreamlearnError):
    """A shard's log cannot be written, or is damaged where that would lose acknowledged data."""


class ClusterError(StreamlearnError):
    """Shards, workers or followers do not fit together: another job, a range missing or twice."""


class AccessError(StreamlearnError):
    """A peer has no right: a wrong or missing token or certificate, or a role that may not."""


class ProtocolError(StreamlearnError):
    """A peer sent what the protocol does not allow; it costs that peer its connection."""


class ColumnError(ProtocolError):
    """A column's bytes are not what its count and coding say."""


class PeerLostError(StreamlearnError):
    """The connection to a peer ended or fell silent; requests without an answer are open."""


class RefusedError(StreamlearnError):
    """A peer answered a request with a Fault.

    Parameters
    ----------
    code : str
        As in ``protocol.Fault``.
    again : bool
        Whether the same request may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        code: str = "invalid",
        again: bool = False,
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.code = code
        self.again = again


class DivergedError(StreamlearnError):
    """What was learned has become no number: the model is of no use, the snapshot before it is."""


class RunError(StreamlearnError):
    """The run failed in a way that no other class names."""
