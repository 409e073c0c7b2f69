"""Samples: members of a tar archive that belong together, as WebDataset has them.

Members that stand one behind the other, and whose names agree up to the first dot of their last
part, are one sample: ``a/0001.png`` and ``a/0001.cls``. Each becomes a record, a
:class:`~streamlearn.binary.Sample`. Members that no format has a use for are not kept, and a sample
that is longer than a record may be is named in the place of its content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from streamlearn.binary import Sample
from streamlearn.errors import DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.net.sources.tar import BLOCK_BYTES, Member, TarReader, is_tar

__all__ = ["SamplesUnpacker"]

# Last parts of extensions whose members are kept.
_KEPT: Final = frozenset({"png", "jpg", "jpeg", "webp", "npy", "cls", "json", "txt"})
# What a member adds to a record beside its content and its extension.
_MEMBER_BYTES: Final = 8
_TOO_LONG_NAME: Final = 200


class SamplesUnpacker:
    """Makes records of the samples of an archive.

    Members that are no regular files are passed over, and so are those whose names begin with
    ``.`` or ``_``, or are below such a directory, or have no dot.

    Parameters
    ----------
    uri : str
        The archive, for errors.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._reader = TarReader(uri)
        self._begun = False
        self._member: Member | None = None  # the one that is being read
        self._kept = False
        self._content = bytearray()
        self._key: str | None = None
        self._members: list[tuple[str, bytes | None]] = []
        self._bytes = 0  # of the sample

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the samples that the next bytes show to be complete."""
        if not self._begun:
            self._begun = True
            if not is_tar(data[:BLOCK_BYTES]):
                raise DataError(
                    f"{self._uri} is no tar archive, expected one of samples",
                    hint="pack them: tar cf samples.tar 0001.png 0001.cls 0002.png …",
                )
        for item in self._reader.feed(data):
            member = item if isinstance(item, Member) else self._reader.member
            key, extension = _split(member.name)
            if member.hidden or not extension:
                continue
            if member is not self._member:
                yield from self._begin(member, key, extension)
            if isinstance(item, Member):
                self._end(extension)
            else:
                self._add(item)

    def finish(self) -> Iterator[bytes]:
        """Yield the last sample; raises DataError where the archive may not end here."""
        self._reader.finish()
        yield from self._record()

    def _begin(self, member: Member, key: str, extension: str) -> Iterator[bytes]:
        if key != self._key:
            yield from self._record()
            self._key, self._bytes = key, len(key)
        self._member = member
        self._kept = extension.rpartition(".")[2] in _KEPT
        self._bytes += len(extension) + _MEMBER_BYTES

    def _add(self, piece: bytes) -> None:
        if not self._kept:
            return
        self._bytes += len(piece)
        if self._bytes <= RECORD_BYTES_MAX:
            self._content += piece

    def _end(self, extension: str) -> None:
        content, self._content = bytes(self._content), bytearray()
        if self._bytes <= RECORD_BYTES_MAX:
            self._members.append((extension, content if self._kept else None))
        self._member = None

    def _record(self) -> Iterator[bytes]:
        """Yield the sample that has come to its end, if there is one."""
        if self._key is None:
            return
        key, members, bytes_ = self._key, tuple(self._members), self._bytes
        self._key, self._members = None, []
        record = b""
        if bytes_ <= RECORD_BYTES_MAX:
            record = Sample(key, members).encode()
        if not 0 < len(record) <= RECORD_BYTES_MAX:
            record = Sample(key[:_TOO_LONG_NAME], too_long=bytes_).encode()
        yield record + b"\n"


def _split(name: str) -> tuple[str, str]:
    """Return what of a member's name is its sample's, and its extension in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()
