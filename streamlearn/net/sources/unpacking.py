"""From stored bytes to records, where a record is not just a line that is stored.

Stored bytes are inflated, then perhaps *unpacked*: a tar archive's members become lines of text, or
a record each, or a record of those that belong together; a whole file becomes a record, or each
item of an idx file; a docword file's lines are put together to a record a document. In a record
that was a file newlines are blanks; one that is too long is split at a blank. Records that are no
text are stuffed (:mod:`streamlearn.binary`). What comes out is a stream of plain bytes like any
other: positions count in it, and it is resumed as compressed data is, by making it once more.

Everything here is synchronous and takes bounded memory. A further kind of archive, or other records
of a tar archive's members, is a further :class:`Unpacker`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np

from streamlearn.compute.kernels import bags
from streamlearn.errors import DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.net.sources.compression import CODECS, Inflater
from streamlearn.net.sources.idx import IdxUnpacker, Labels
from streamlearn.net.sources.samples import SamplesUnpacker
from streamlearn.net.sources.tar import BLOCK_BYTES, Member, TarReader, is_tar

__all__ = ["HEAD_BYTES", "Decoder", "Splits", "Unpacker", "open_decoder", "unpacking_of"]

_log = logging.getLogger("streamlearn.source")

# What must be known of an object to tell an archive.
HEAD_BYTES: Final = BLOCK_BYTES

_STEP_BYTES: Final = 64 << 10
_NO_LINES: Final = bytes.maketrans(b"\n\r", b"  ")
# What a record must leave a document of nothing: a blank line would be no record.
_EMPTY: Final = b" \n"

# Documents that were split are known by name up to here, so that each is counted once; and told of.
_SPLITS_KNOWN_MAX: Final = 10_000
_SPLITS_TOLD_MAX: Final = 20

# Docword: bytes of its longest line, and of what is made at once.
_LINE_BYTES_MAX: Final = 4096
_ROOM_BYTES: Final = 4 * _LINE_BYTES_MAX
_OUT_BYTES: Final = 256 << 10
_WORDS_MAX: Final = RECORD_BYTES_MAX // 2


class Splits:
    """Which documents were too long for one record.

    Attributes
    ----------
    count : int
        How many; each once, however often it is read.
    """

    def __init__(self) -> None:
        self.count = 0
        self._names: set[str] = set()

    def note(self, name: str) -> None:
        """Note that a document is several records."""
        if name in self._names:
            return
        if len(self._names) < _SPLITS_KNOWN_MAX:
            self._names.add(name)
        self.count += 1
        if self.count <= _SPLITS_TOLD_MAX:
            _log.warning(
                "%s is longer than the %s bytes of a record: it is several documents%s",
                name, f"{RECORD_BYTES_MAX:,}",
                "; further ones are counted only" if self.count == _SPLITS_TOLD_MAX else "",
            )  # fmt: skip


class Decoder(Protocol):
    """Makes the plain bytes of one object in steps; see ``Inflater``."""

    damage: DataError | None

    @property
    def stored(self) -> int:
        """Stored bytes consumed so far."""
        ...

    def give(self, raw: memoryview) -> None:
        """Take the next stored bytes; they must stay until :meth:`fill` has come back short."""
        ...

    def fill(self, into: memoryview) -> int:
        """Make plain bytes; fewer than there is room for where more stored bytes are needed."""
        ...

    def finish(self) -> None:
        """Say that there are no more stored bytes; there may be more to :meth:`fill` once more."""
        ...


class Unpacker(Protocol):
    """Turns a stream of bytes into records, each ended by a newline."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes complete; raises DataError where they are damaged."""
        ...

    def finish(self) -> Iterator[bytes]:
        """Yield what is left; raises DataError where the stream may not end here."""
        ...


def open_decoder(
    compression: str, unpacking: str, uri: str, splits: Splits, labels: Labels | None = None
) -> Decoder:
    """Return what makes an object's plain bytes.

    Parameters
    ----------
    compression : str
        Name of a codec, or ``none``.
    unpacking : str
        ``none``, or how bytes become records: see :func:`unpacking_of`.
    uri : str
        The object, for errors.
    splits : Splits
        Told of documents that are too long for one record.
    labels : Labels, optional
        Of an idx object.
    """
    codec = CODECS.get(compression)
    inflater: Decoder = Inflater(codec, uri) if codec else _Stored()
    if unpacking == "none":
        return inflater
    return _Unpacked(inflater, unpacking, uri, splits, labels or Labels())


def unpacking_of(wanted: str, head: bytes) -> str:
    """Return how an object is unpacked that begins with ``head``.

    Parameters
    ----------
    wanted : str
        ``none``, ``docword``, ``idx``, ``samples``, or what a document is where there are
        documents: ``auto``, ``lines`` or ``files``.
    head : bytes
        Its first :data:`HEAD_BYTES` plain bytes.

    Returns
    -------
    str
        ``none``, ``docword``, ``idx``, ``samples``, ``file``, ``tar lines`` or ``tar files``.
    """
    if wanted in {"none", "docword", "idx", "samples"}:
        return wanted
    if is_tar(head):
        return "tar lines" if wanted == "lines" else "tar files"
    return "file" if wanted == "files" else "none"


class _Stored:
    """Bytes as they are stored."""

    def __init__(self) -> None:
        self.stored = 0
        self.damage: DataError | None = None
        self._raw = memoryview(b"")

    def give(self, raw: memoryview) -> None:
        self._raw = raw

    def fill(self, into: memoryview) -> int:
        step = min(len(into), len(self._raw))
        into[:step] = self._raw[:step]
        self._raw = self._raw[step:]
        self.stored += step
        return step

    def finish(self) -> None:
        """Do nothing: any end will do."""


class _Unpacked:
    """An object whose plain bytes are made into records.

    Parameters
    ----------
    inflater : Decoder
        Makes the bytes.
    wanted : str
        As :func:`unpacking_of` takes it; it is asked once there is enough to tell.
    """

    def __init__(
        self, inflater: Decoder, wanted: str, uri: str, splits: Splits, labels: Labels
    ) -> None:
        self.damage: DataError | None = None
        self._inflater = inflater
        self._wanted = wanted
        self._uri = uri
        self._splits = splits
        self._labels = labels
        self._unpacker: Unpacker | None = None
        self._head = b""
        self._scratch = memoryview(bytearray(_STEP_BYTES))
        self._making: Iterator[bytes] = iter(())
        self._made = memoryview(b"")
        self._over = False
        self._as_is = False  # whether what is inflated is handed on

    @property
    def stored(self) -> int:
        """Stored bytes consumed so far."""
        return self._inflater.stored

    def give(self, raw: memoryview) -> None:
        self._inflater.give(raw)

    def fill(self, into: memoryview) -> int:
        filled = 0
        while filled < len(into):
            if not self._made:
                if self._as_is:
                    filled += self._inflater.fill(into[filled:])
                    self.damage = self._inflater.damage
                    break
                if not self._step():
                    break
                continue
            step = min(len(into) - filled, len(self._made))
            into[filled : filled + step] = self._made[:step]
            self._made = self._made[step:]
            filled += step
        return filled

    def finish(self) -> None:
        self._inflater.finish()
        self._over = True

    def _step(self) -> bool:
        """Make something, or find out that there is nothing to make; say whether to go on."""
        if self.damage is not None:
            return False
        try:
            made = next(self._making, None)
        except DataError as error:
            self.damage = error
            return False
        if made is not None:
            self._made = memoryview(made)
            return True
        if isinstance(self._unpacker, _Lines):
            self._as_is = True
            return True
        count = self._inflater.fill(self._scratch)
        if count:
            self._making = self._feed(bytes(self._scratch[:count]))
        elif self._inflater.damage is not None and self._head:
            head, self._head = self._head, b""
            self._unpacker = self._open(head)
            self._making = self._unpacker.feed(head)
        elif self._inflater.damage is not None:
            self.damage = self._inflater.damage
            return False
        elif self._over:
            self._over = False
            self._making = self._finish()
        else:
            return False
        return True

    def _feed(self, data: bytes) -> Iterator[bytes]:
        if self._unpacker is None:
            data = self._head + data
            self._head = b""
            if len(data) < HEAD_BYTES:
                self._head = data
                return iter(())
            self._unpacker = self._open(data)
        return self._unpacker.feed(data)

    def _finish(self) -> Iterator[bytes]:
        if self._unpacker is None:
            self._unpacker = self._open(self._head)
            yield from self._unpacker.feed(self._head)
        yield from self._unpacker.finish()

    def _open(self, head: bytes) -> Unpacker:
        match unpacking_of(self._wanted, head[:HEAD_BYTES]):
            case "none":
                return _Lines()
            case "docword":
                return _Docword(self._uri, self._splits)
            case "idx":
                return IdxUnpacker(self._uri, self._labels)
            case "samples":
                return SamplesUnpacker(self._uri)
            case "file":
                return _File(self._uri, self._splits)
            case kind:
                return _Tar(self._uri, self._splits, whole=kind == "tar files")


class _Lines:
    """Lines as they are."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        return iter((data,))

    def finish(self) -> Iterator[bytes]:
        return iter(())


class _Document:
    """A text that comes in pieces, as one record, or several where it is too long."""

    def __init__(self) -> None:
        self._text = b""
        self.records = 0  # of this document so far

    def add(self, data: bytes) -> Iterator[bytes]:
        self._text += data.translate(_NO_LINES)
        while len(self._text) > RECORD_BYTES_MAX:
            cut = self._cut()
            record, self._text = self._text[:cut], self._text[cut:]
            self.records += 1
            yield record + b"\n"

    def end(self) -> bytes:
        """Return the rest; whatever comes next is another document."""
        record, self._text = self._text, b""
        self.records = 0
        return record + b"\n" if record else _EMPTY

    def _cut(self) -> int:
        """Return where to cut: behind a blank, else between two characters."""
        cut = self._text.rfind(b" ", 0, RECORD_BYTES_MAX) + 1
        if cut == 0:
            cut = RECORD_BYTES_MAX
            while cut > RECORD_BYTES_MAX - 4 and self._text[cut] & 0xC0 == 0x80:
                cut -= 1
        return cut


class _File:
    """A file that is a document."""

    def __init__(self, uri: str, splits: Splits) -> None:
        self._uri = uri
        self._splits = splits
        self._document = _Document()

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._document.add(data)

    def finish(self) -> Iterator[bytes]:
        if self._document.records:
            self._splits.note(self._uri)
        yield self._document.end()


class _Tar:
    """An archive whose members are documents, or have one a line.

    Members that are no regular files are passed over, and so are those whose names begin with
    ``.`` or ``_``, or are below such a directory, as in directories.
    """

    def __init__(self, uri: str, splits: Splits, *, whole: bool) -> None:
        self._reader = TarReader(uri)
        self._uri = uri
        self._splits = splits
        self._whole = whole
        self._document = _Document()
        self._last = b"\n"

    def feed(self, data: bytes) -> Iterator[bytes]:
        for item in self._reader.feed(data):
            if isinstance(item, Member):
                if not item.hidden:
                    yield from self._ended(item)
            elif self._reader.member.hidden:
                continue
            elif self._whole:
                yield from self._document.add(item)
            else:
                self._last = item[-1:]
                yield item

    def finish(self) -> Iterator[bytes]:
        self._reader.finish()
        return iter(())

    def _ended(self, member: Member) -> Iterator[bytes]:
        """Yield what ends a member."""
        if self._whole:
            if self._document.records:
                self._splits.note(f"{self._uri}: {member.name}")
            yield self._document.end()
        elif self._last != b"\n":
            self._last = b"\n"
            yield b"\n"


class _Docword:
    """UCI's docword: ``document word count`` a line, put together to a record a document.

    The first record is that of the three numbers at the beginning.
    """

    def __init__(self, uri: str, splits: Splits) -> None:
        self._uri = uri
        self._splits = splits
        self._rest = b""
        self._promised: list[int] = []
        self._state = np.zeros(bags.N_STATE, np.int64)
        self._out = np.zeros(_OUT_BYTES, np.uint8)
        self._at = 0  # plain bytes before the rest

    def feed(self, data: bytes) -> Iterator[bytes]:
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        if len(self._rest) > _LINE_BYTES_MAX:
            raise DataError(
                f"{self._uri}: the line at plain byte {self._at + end} is longer than "
                f"{_LINE_BYTES_MAX} bytes, expected document, word and count"
            )
        yield from self._lines(data[:end])

    def finish(self) -> Iterator[bytes]:
        yield from self._lines(self._rest + b"\n" if self._rest else b"")
        if len(self._promised) < 3:
            raise DataError(
                f"{self._uri} ends after {len(self._promised)} lines, expected the numbers of "
                "documents, words and entries on the first three"
            )
        yield from self._regroup(b"", final=True)
        found, promised = int(self._state[bags.R_ENTRIES]), self._promised[2]
        if found != promised:
            raise DataError(
                f"{self._uri} has {found:,} entries, but its third line says {promised:,}",
                hint="everything before its end has been read; fetch it anew if it was cut off",
            )

    def _lines(self, lines: bytes) -> Iterator[bytes]:
        self._at += len(lines)
        while lines and len(self._promised) < 3:
            line, _, lines = lines.partition(b"\n")
            name = ("documents", "words", "entries")[len(self._promised)]
            if not line.strip().isdigit() or len(line.strip()) > 18:
                raise DataError(
                    f"{self._uri}: line {len(self._promised) + 1} is {line[:60]!r}, expected the "
                    f"number of {name}"
                )
            self._promised.append(int(line))
            if len(self._promised) == 3:
                self._state[bags.R_DOCUMENTS] = self._promised[0]
                yield b" ".join(b"%d" % number for number in self._promised) + b"\n"
        if lines:
            yield from self._regroup(lines, final=False)

    def _regroup(self, lines: bytes, *, final: bool) -> Iterator[bytes]:
        data = np.frombuffer(lines + bytes(64), np.uint8)
        at, state = 0, self._state
        while at >= 0 and (final or at < len(lines)):
            at = bags.regroup(
                data, at, len(lines), final, state, self._out, _ROOM_BYTES, RECORD_BYTES_MAX,
                _WORDS_MAX,
            )  # fmt: skip
            if state[bags.R_SPLIT]:
                self._splits.note(f"{self._uri}: document {state[bags.R_DOCUMENT]}")
                state[bags.R_SPLIT] = 0
            made = int(state[bags.R_TO])
            state[bags.R_TO] = 0
            yield self._out[:made].tobytes()
