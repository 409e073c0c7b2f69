import hashlib
import json

import pytest

from streamlearn.errors import SnapshotError
from streamlearn.shards import manifest as manifests
from streamlearn.shards.manifest import Blob, Manifest, OtherVersionError

WHOLE = Manifest(
    format_version=manifests.FORMAT_VERSION,
    sequence=7,
    kind="lr",
    piece_bytes=4,
    meta={"kind": "lr"},
    blobs={"keys": Blob(5, (1, 2))},
)


def put(tmp_path, manifest, name="000000000007"):
    directory = tmp_path / name
    directory.mkdir()
    (directory / "keys").write_bytes(b"12345")
    (directory / "manifest.json").write_bytes(manifests.encode(manifest))
    return directory


def changed(**fields):
    names = WHOLE.__struct_fields__
    return Manifest(**({name: getattr(WHOLE, name) for name in names} | fields))


def test_read_gives_what_was_encoded(tmp_path):
    assert manifests.read(put(tmp_path, WHOLE)) == WHOLE


def test_manifest_is_plain_json(tmp_path):
    document = json.loads((put(tmp_path, WHOLE) / "manifest.json").read_bytes())
    assert document["manifest"]["kind"] == "lr"


def test_other_format_version_is_told_from_damage(tmp_path):
    with pytest.raises(OtherVersionError, match="has format version 2, expected 1"):
        manifests.read(put(tmp_path, changed(format_version=2)))


def test_snapshot_under_a_name_of_its_own_is_read(tmp_path):
    assert manifests.read(put(tmp_path, WHOLE, "kept")).sequence == 7


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"sequence": 8}, "says it is number 8, expected 7"),
        ({"piece_bytes": 0}, "has pieces of 0 bytes, expected 1 to"),
        ({"piece_bytes": 1 << 40}, "has pieces of 1099511627776 bytes, expected 1 to"),
        ({"blobs": {"keys": Blob(5, (1,))}}, "has 1 checksums for 'keys', expected 2"),
        ({"blobs": {"keys": Blob(-5, ())}}, "has 0 checksums for 'keys'"),
        ({"blobs": {"keys": Blob(6, (1, 2))}}, "'keys' has 5 bytes, expected 6"),
        ({"blobs": {"values": Blob(0, ())}}, "'values' cannot be read"),
        ({"blobs": {"../keys": Blob(5, (1, 2))}}, "names a file '../keys'"),
        ({"blobs": {"manifest.json": Blob(5, (1, 2))}}, "names a file 'manifest.json'"),
        ({"kind": 3}, "has a manifest of another make"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(tmp_path, fields, complaint):
    with pytest.raises(SnapshotError, match=complaint):
        manifests.read(put(tmp_path, changed(**fields)))


def test_file_of_absurd_length_is_not_taken_into_memory(tmp_path):
    directory = put(tmp_path, WHOLE)
    with (directory / "manifest.json").open("r+b") as file:
        file.truncate(manifests.MANIFEST_BYTES_MAX + 1)
    with pytest.raises(SnapshotError, match="is longer than"):
        manifests.read(directory)


def test_directory_without_manifest_is_not_whole(tmp_path):
    with pytest.raises(SnapshotError, match="is not a whole snapshot") as refused:
        manifests.read(tmp_path)
    assert refused.value.cause == "No such file or directory"


@pytest.mark.parametrize("body", [b'{"kind":"\xff"}', b"[" * 5000, b"7", b""])
def test_manifest_of_any_bytes_with_the_right_digest_is_refused(tmp_path, body):
    directory = put(tmp_path, WHOLE)
    digest = hashlib.blake2b(body, digest_size=16).hexdigest().encode()
    text = b'{"blake2b":"%s","manifest":%s}\n' % (digest, body)
    (directory / "manifest.json").write_bytes(text)
    with pytest.raises(SnapshotError, match="has a manifest of another make"):
        manifests.read(directory)
