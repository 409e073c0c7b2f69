"""The manifest of a snapshot: what is in it, of which format version and model, every byte checked.

``manifest.json`` is one JSON document whose first member is the digest of its second, in exactly
these bytes, so that no byte of it can change unnoticed and any JSON tool can still read it. The
envelope is the same in all format versions, to come too: a reader knows damage from novelty.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from streamlearn.errors import SnapshotError
from streamlearn.shards.disk import REAL_DISK, Disk

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_BYTES_MAX",
    "MANIFEST_NAME",
    "PARTIAL",
    "PIECE_BYTES",
    "Blob",
    "Manifest",
    "OtherVersionError",
    "encode",
    "is_blob_name",
    "is_sequence",
    "read",
]

FORMAT_VERSION: Final = 1
# One checksum a piece: what is read, checked and handed on at once. It bounds a reader's scratch
# and keeps the checksums of a terabyte in 3 MB of manifest.
PIECE_BYTES: Final = 4 << 20
# A manifest of 10 TB needs some 30 MB; more than this is no manifest of ours.
MANIFEST_BYTES_MAX: Final = 64 << 20
MANIFEST_NAME: Final = "manifest.json"
# What follows the name of a snapshot that is not whole yet, or no longer.
PARTIAL: Final = ".partial"

_SEQUENCE = re.compile(r"[0-9]{12}")
_BLOB_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ENVELOPE = re.compile(rb'\{"blake2b":"([0-9a-f]{32})","manifest":(.*)\}\n', re.DOTALL)


class OtherVersionError(SnapshotError):
    """A sound manifest, but of a format version that this release does not read."""


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its bytes, and the CRC-32 of each piece of it."""

    size: int
    crc32: tuple[int, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot holds; ``meta`` is the caller's, ``kind`` the model."""

    format_version: int
    sequence: int
    kind: str
    piece_bytes: int
    meta: dict[str, Any]
    blobs: dict[str, Blob]


class _Version(msgspec.Struct, frozen=True):
    format_version: int


def is_sequence(name: str) -> bool:
    """Say whether a directory of this name is a snapshot."""
    return _SEQUENCE.fullmatch(name) is not None


def is_blob_name(name: str) -> bool:
    """Say whether a file of a snapshot may have this name: no path, nothing hidden."""
    return _BLOB_NAME.fullmatch(name) is not None and name != MANIFEST_NAME


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of ``manifest.json``."""
    body = msgspec.json.encode(manifest)
    return b'{"blake2b":"%s","manifest":%s}\n' % (_digest(body), body)


def read(directory: Path, disk: Disk = REAL_DISK) -> Manifest:
    """Read and check the manifest of a snapshot, and that each file has the size that it says.

    Raises
    ------
    SnapshotError
        Not a snapshot, or damaged; says what was expected and found.
    OtherVersionError
        Another format version.
    """
    manifest = _parse(directory, _read_bytes(directory, disk))
    if is_sequence(directory.name) and manifest.sequence != int(directory.name):
        raise SnapshotError(
            f"snapshot {directory} says it is number {manifest.sequence}, "
            f"expected {int(directory.name)}"
        )
    if not 0 < manifest.piece_bytes <= PIECE_BYTES:
        raise SnapshotError(
            f"snapshot {directory} has pieces of {manifest.piece_bytes} bytes, "
            f"expected 1 to {PIECE_BYTES}"
        )
    for name, blob in manifest.blobs.items():
        _check_blob(directory, name, blob, manifest.piece_bytes, disk)
    return manifest


def _read_bytes(directory: Path, disk: Disk) -> bytes:
    try:
        text = disk.read(directory / MANIFEST_NAME, 0, MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise SnapshotError(
            f"{directory} is not a whole snapshot: '{MANIFEST_NAME}' cannot be read",
            cause=error.strerror,
        ) from error
    if len(text) > MANIFEST_BYTES_MAX:
        raise SnapshotError(
            f"snapshot {directory} is damaged: '{MANIFEST_NAME}' is longer than "
            f"{MANIFEST_BYTES_MAX} bytes"
        )
    return text


def _parse(directory: Path, text: bytes) -> Manifest:
    envelope = _ENVELOPE.fullmatch(text)
    if envelope is None:
        raise SnapshotError(
            f"snapshot {directory} is damaged: '{MANIFEST_NAME}' is cut or not a manifest"
        )
    expected, body = envelope.groups()
    if (found := _digest(body)) != expected:
        raise SnapshotError(
            f"snapshot {directory} is damaged: '{MANIFEST_NAME}' has digest {found.decode()}, "
            f"expected {expected.decode()}"
        )
    try:
        version = msgspec.json.decode(body, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise OtherVersionError(
                f"snapshot {directory} has format version {version}, expected {FORMAT_VERSION}",
                hint="load it with the release that wrote it",
            )
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(
            f"snapshot {directory} has a manifest of another make", cause=str(error)
        ) from error


def _check_blob(directory: Path, name: str, blob: Blob, piece_bytes: int, disk: Disk) -> None:
    if not is_blob_name(name):
        raise SnapshotError(f"snapshot {directory} names a file {name!r}, which none can be called")
    pieces = -(-blob.size // piece_bytes)
    if blob.size < 0 or len(blob.crc32) != pieces:
        raise SnapshotError(
            f"snapshot {directory} has {len(blob.crc32)} checksums for '{name}', expected {pieces}"
        )
    try:
        found = disk.size(directory / name)
    except OSError as error:
        raise SnapshotError(
            f"snapshot {directory} is damaged: '{name}' cannot be read", cause=error.strerror
        ) from error
    if found != blob.size:
        raise SnapshotError(
            f"snapshot {directory} is damaged: '{name}' has {found} bytes, expected {blob.size}"
        )


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
