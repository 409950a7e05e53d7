"""Our reader against the standard library's writer and reader."""

import hashlib
import io
import subprocess
import tarfile

import pytest
import xxhash

from curate.formats.tar import TarError, TarReader

LONG = "folder/" * 20 + "a" * 120 + ".jpg"
MEMBERS = {
    "a.jpg": b"x" * 700,
    LONG: b"long",
    "ünïcode/späte.cls": b"7",
    "empty.txt": b"",
    "full.bin": b"y" * 1024,
}


def tar_bytes(members: dict[str, bytes], format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_bytes_are_those_the_standard_library_wrote(format):
    data = tar_bytes(MEMBERS, format)
    reader = TarReader(io.BytesIO(data))
    assert {member.name: member.data for member in reader} == MEMBERS
    assert reader.num_bytes == len(data)
    assert reader.checksum == f"xxh3:{xxhash.xxh3_128(data).hexdigest()}"


def test_the_checksum_is_of_the_kind_that_an_old_catalog_has():
    data = tar_bytes(MEMBERS, tarfile.GNU_FORMAT)
    reader = TarReader(io.BytesIO(data), checksum_like="0" * 64)
    assert len(list(reader)) == len(MEMBERS)
    assert reader.checksum == hashlib.sha256(data).hexdigest()


def test_ustar_prefix_is_part_of_the_name():
    name = "p" * 90 + "/" + "n" * 90 + ".jpg"
    reader = TarReader(io.BytesIO(tar_bytes({name: b"1"}, tarfile.USTAR_FORMAT)))
    assert [member.name for member in reader] == [name]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ranges_cover_the_headers_and_touch_each_other(format):
    data = tar_bytes(MEMBERS, format)
    members = list(TarReader(io.BytesIO(data)))
    ends = [member.offset + member.length for member in members]
    assert [member.offset for member in members[1:]] == ends[:-1]
    for member in members:
        alone = data[member.offset : member.offset + member.length] + bytes(1024)
        with tarfile.open(fileobj=io.BytesIO(alone)) as tar:
            assert tar.getnames() == [member.name]


def test_folders_links_and_devices_are_no_members():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for typeflag, name in (
            (tarfile.DIRTYPE, "d"),
            (tarfile.SYMTYPE, "s.jpg"),
            (tarfile.LNKTYPE, "l.jpg"),
            (tarfile.FIFOTYPE, "f.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = typeflag, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("a.jpg")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    file.seek(0)
    assert [member.name for member in TarReader(file)] == ["a.jpg"]


def tar_with_size(size_field: bytes) -> bytes:
    """A tar of one member of 600 bytes, whose header has this text for the size."""
    data = bytearray(tar_bytes({"a.jpg": b"x" * 600}, tarfile.GNU_FORMAT))
    data[124:136] = size_field
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    return bytes(data)


def test_a_size_in_base_256_is_read():
    data = tar_with_size(b"\x80" + (600).to_bytes(11, "big"))
    assert [len(member.data) for member in TarReader(io.BytesIO(data))] == [600]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (512 + 300, "cut short in a member"),
        (1536 + 100, "cut short in a header"),
        (1536, "without an end-of-archive mark"),
    ],
)
def test_a_cut_archive_gives_what_is_whole_and_then_the_reason(cut, reason):
    data = tar_bytes({"a.jpg": b"x" * 700, "b.jpg": b"y"}, tarfile.GNU_FORMAT)
    names = []
    with pytest.raises(TarError, match=reason):
        for member in TarReader(io.BytesIO(data[:cut])):
            names.append(member.name)  # noqa: PERF401 - what comes before the error counts
    assert names == (["a.jpg"] if cut >= 1536 else [])


def test_damage_is_named():
    data = bytearray(tar_bytes({"a.jpg": b"x"}, tarfile.GNU_FORMAT))
    data[0] ^= 1
    with pytest.raises(TarError, match="checksum"):
        list(TarReader(io.BytesIO(bytes(data))))
    with pytest.raises(TarError, match="gzip file"):
        list(TarReader(io.BytesIO(b"\x1f\x8b" + bytes(600))))
    whole = tar_bytes({"a.jpg": b"x"}, tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match="after the end-of-archive mark"):
        list(TarReader(io.BytesIO(whole + whole)))


def test_a_claimed_size_takes_no_memory():
    data = tar_with_size(b"\x80" + (1 << 60).to_bytes(11, "big"))
    with pytest.raises(TarError, match="cut short in a member of 1,152,921,504,606,846,976 bytes"):
        list(TarReader(io.BytesIO(data)))


@pytest.mark.parametrize("max_read", [512, 1024])
def test_a_member_longer_than_what_is_read_at_once_is_whole(monkeypatch, max_read):
    monkeypatch.setattr("curate.formats.tar._CHUNK", 512)
    monkeypatch.setattr("curate.formats.tar._MAX_READ", max_read)
    reader = TarReader(io.BytesIO(tar_bytes(MEMBERS, tarfile.PAX_FORMAT)))
    assert {member.name: member.data for member in reader} == MEMBERS


@pytest.mark.parametrize("size", [b"-0000020000\0", b"0000000008\0\0", b"0x10\0\0\0\0\0\0\0\0"])
def test_a_size_that_is_no_number_is_damage(size):
    with pytest.raises(TarError, match="no octal number"):
        list(TarReader(io.BytesIO(tar_with_size(size))))


def test_an_absurd_pax_size_is_damage():
    file = io.BytesIO()
    record = b"size=" + b"9" * 5000 + b"\n"
    record = b"%d " % (len(record) + 5) + record
    for name, typeflag, data in (("pax", b"x", record), ("a.jpg", b"0", b"x")):
        member = tarfile.TarInfo(name)
        member.type, member.size = typeflag, len(data)
        file.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    with pytest.raises(TarError, match="a size that is no number"):
        list(TarReader(io.BytesIO(file.getvalue() + bytes(1024))))


@pytest.mark.parametrize("format", ["oldgnu", "gnu", "pax"])
def test_sparse_files_are_no_members_and_hide_no_others(format, tmp_path):
    with open(tmp_path / "sparse.bin", "wb") as file:
        for hole in range(30):  # more than the first header has room for
            file.seek(hole << 17)
            file.write(b"x")
    for name in ("a.jpg", "z.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    names = ["a.jpg", "sparse.bin", "z.jpg"]
    command = ["tar", "--sparse", f"--format={format}", "-cf", "all.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    with open(tmp_path / "all.tar", "rb") as file:
        members = {member.name: member.data for member in TarReader(file)}
    assert members == {"a.jpg": b"a.jpg", "z.jpg": b"z.jpg"}
