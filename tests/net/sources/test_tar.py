"""Archives read as a stream: every way to write one, every way to break one."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.net.sources.tar import Member, TarReader, is_tar

LONG = "a/" * 70 + "b" * 120 + ".txt"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(members, format=tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of (name, bytes, or the type of what has none)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type = content.encode()
                info.linkname = "elsewhere"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def read(data: bytes, step: int = 1 << 20):
    """Return the members of an archive that comes in pieces, and their bytes."""
    reader, found, content = TarReader("x.tar"), [], b""
    for at in range(0, len(data), step):
        for item in reader.feed(data[at : at + step]):
            if isinstance(item, Member):
                found.append((item.name, item.hidden, content))
                content = b""
            else:
                content += item
    reader.finish()
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 1 << 20])
def test_members_of_any_format_come_in_order(format, step):
    members = [
        ("one.txt", b"1" * 1000),
        ("empty.txt", b""),
        ("d/block.txt", b"2" * 512),
        ("d/größe.txt", b"3"),
    ]
    if format != "ustar":
        members.append((LONG, b"long"))
    data = archive(members, FORMATS[format])
    assert is_tar(data)
    assert read(data, step) == [(name, False, content) for name, content in members]


def test_a_name_may_stand_in_two_parts():
    name = "x" * 90 + "/" + "y" * 90
    assert read(archive([(name, b"z")], tarfile.USTAR_FORMAT)) == [(name, False, b"z")]


def test_what_is_no_file_is_passed_over():
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    members = [(f"n{i}", kind.decode()) for i, kind in enumerate(kinds)]
    assert read(archive([*members, ("f", b"text")])) == [("f", False, b"text")]


def test_hidden_members_are_told_apart():
    names = ["a/._x", ".hidden/x", "_SUCCESS", "./a/x", "../a/x", "a_b/.x/y", "a.b"]
    found = read(archive([(name, b"x") for name in names]))
    assert [name for name, hidden, _ in found if not hidden] == ["./a/x", "../a/x", "a.b"]


def test_numbers_may_be_large():
    data = bytearray(archive([("f", b"x" * 600)], tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    _seal(data)
    assert read(bytes(data)) == [("f", False, b"x" * 600)]


def test_old_archives_have_no_mark():
    data = bytearray(archive([("f", b"old")], tarfile.USTAR_FORMAT))
    data[257:512] = bytes(255)
    data[156] = 0
    _seal(data)
    assert is_tar(bytes(data))
    assert read(bytes(data)) == [("f", False, b"old")]


def test_signed_checksums_are_right_as_well():
    data = bytearray(archive([("größe", b"x")], tarfile.GNU_FORMAT))
    _seal(data, signed=True)
    assert read(bytes(data))[0][2] == b"x"


def test_archives_one_after_another_are_one():
    data = archive([("a", b"1")]) + archive([("b", b"2")])
    assert [name for name, _, _ in read(data)] == ["a", "b"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_239))
def test_an_archive_that_is_cut_off_says_where(cut):
    data = archive([("one.txt", b"1" * 3000), ("two.txt", b"2" * 700)], tarfile.USTAR_FORMAT)
    # two members in 8 and 3 blocks, then zeros
    if cut > 11 * 512:
        if cut % 512 == 0:
            assert len(read(data[:cut])) == 2
        return
    with pytest.raises(DataError) as error:
        read(data[:cut])
    assert error.value.message.startswith(
        f"x.tar: the tar archive ends too early at plain byte {cut}, "
    )
    if 512 < cut < 512 + 3000:
        assert error.value.message.endswith(
            f"within 'one.txt', {3512 - cut:,} bytes before its end"
        )
    if cut == 11 * 512:
        assert error.value.message.endswith("without the mark of its end")


def test_a_wrong_checksum_is_an_error():
    data = bytearray(archive([("one", b"1"), ("two", b"2")], tarfile.USTAR_FORMAT))
    data[1024 + 3] ^= 1
    reader, found = TarReader("x.tar"), []
    with pytest.raises(DataError) as error:
        found.extend(reader.feed(bytes(data)))
    assert error.value.message == (
        "x.tar: the tar archive has a header whose checksum is wrong, at plain byte 1024"
    )


def test_a_size_that_is_no_number_is_an_error():
    data = bytearray(archive([("one", b"1")], tarfile.USTAR_FORMAT))
    data[124:128] = b"9xyz"
    _seal(data)
    with pytest.raises(DataError, match="has a header with the size b'9xyz"):
        read(bytes(data))


def test_sparse_files_are_refused():
    data = bytearray(archive([("holes", b"1")], tarfile.GNU_FORMAT))
    data[156:157] = b"S"
    _seal(data)
    with pytest.raises(DataError, match="has the sparse file 'holes', which is not read"):
        read(bytes(data))
    for key in ("GNU.sparse.major", "GNU.sparse.map"):
        with pytest.raises(DataError, match="has the sparse file"):
            read(_with_pax({key: "1"}))


@pytest.mark.parametrize("record", [b"", b"x", b"5 a=b", b"999 a=b\n", b"-1 a=b\n", b"3 \n"])
def test_an_extended_header_that_cannot_be_read(record):
    data = bytearray(_with_pax({"comment": "x" * 20}))
    if not record:
        data[124:136] = b"%011o\0" % (2 << 20)
        message = "has an extended header of 2,097,152 bytes"
    else:
        data[512 : 512 + len(record)] = record
        data[124:136] = b"%011o\0" % len(record)
        message = "has an extended header that cannot be read"
    _seal(data)
    with pytest.raises(DataError, match=message):
        read(bytes(data))


def test_an_extended_header_gives_the_size():
    data = bytearray(_with_pax({"size": "3", "path": "real/name"}))
    data[1024 + 124 : 1024 + 136] = b"%011o\0" % 1
    _seal(data, 1024)
    assert read(bytes(data))[0][:2] == ("real/name", False)


def test_text_is_no_archive():
    assert not is_tar(b"a b c\n" * 100)
    assert not is_tar(b"7" * 512)
    assert not is_tar(bytes(512))
    assert not is_tar(archive([("a", b"")])[:511])


def _seal(data: bytearray, at: int = 0, *, signed: bool = False) -> None:
    """Write the checksum that a header should have."""
    data[at + 148 : at + 156] = b" " * 8
    total = sum(b - 256 if signed and b > 127 else b for b in data[at : at + 512])
    data[at + 148 : at + 156] = b"%06o\0 " % total


def _with_pax(headers: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("f")
        info.pax_headers = headers
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8 * 512), st.integers(0, 255)), max_size=6),
    st.booleans(),
    st.integers(1, 700),
)
def test_any_damage_is_a_clear_error_or_another_archive(changes, seal, step):
    data = bytearray(_with_pax({"path": "größe" * 30, "size": "3"}))
    for at, byte in changes:
        data[at] = byte
    if seal:
        for at in range(0, 3 * 512, 512):
            _seal(data, at)
    try:
        read(bytes(data), step)
    except DataError as error:
        assert error.message.startswith("x.tar: the tar archive ")  # noqa: PT017
