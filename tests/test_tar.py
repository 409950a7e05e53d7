"""Our reader against the standard library's writer and reader."""

import hashlib
import io
import subprocess
import tarfile

import pytest
import xxhash

from curate.tar import TarError, TarReader

LONG = "folder/" * 20 + "a" * 120 + ".jpg"
MEMBERS = {"a.jpg": b"x" * 700, LONG: b"long", "ünïcode/späte.cls": b"7", "empty.txt": b"", "full.bin": b"y" * 1024}


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
    assert (reader.num_bytes, reader.fingerprint) == (len(data), f"xxh3:{xxhash.xxh3_128(data).hexdigest()}")
    old = TarReader(io.BytesIO(data), like="0" * 64)
    assert len(list(old)) == len(MEMBERS)
    assert old.fingerprint == hashlib.sha256(data).hexdigest(), "as in catalogs of older versions"


def test_ustar_prefix_is_part_of_the_name():
    name = "p" * 90 + "/" + "n" * 90 + ".jpg"
    assert [member.name for member in TarReader(io.BytesIO(tar_bytes({name: b"1"}, tarfile.USTAR_FORMAT)))] == [name]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ranges_cover_the_headers_and_touch_each_other(format):
    data = tar_bytes(MEMBERS, format)
    found = list(TarReader(io.BytesIO(data)))
    assert [member.offset for member in found[1:]] == [member.offset + member.length for member in found[:-1]]
    for member in found:
        alone = data[member.offset : member.offset + member.length] + bytes(1024)
        with tarfile.open(fileobj=io.BytesIO(alone)) as tar:
            assert tar.getnames() == [member.name]


def test_folders_links_and_devices_are_no_members():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind, name in (
            (tarfile.DIRTYPE, "d"),
            (tarfile.SYMTYPE, "s.jpg"),
            (tarfile.LNKTYPE, "l.jpg"),
            (tarfile.FIFOTYPE, "f.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("a.jpg")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    file.seek(0)
    assert [member.name for member in TarReader(file)] == ["a.jpg"]


def test_a_size_in_base_256_is_read():
    data = bytearray(tar_bytes({"a.jpg": b"x" * 600}, tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    assert [len(member.data) for member in TarReader(io.BytesIO(bytes(data)))] == [600]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [(512 + 300, "cut short in a member"), (1536 + 100, "cut short in a header"), (1536, "without an end-of-archive mark")],
)
def test_a_cut_archive_gives_what_is_whole_and_then_the_reason(cut, reason):
    reader = TarReader(io.BytesIO(tar_bytes({"a.jpg": b"x" * 700, "b.jpg": b"y"}, tarfile.GNU_FORMAT)[:cut]))
    found = []
    with pytest.raises(TarError, match=reason):
        found.extend(iter(reader)) if cut < 1536 else [found.append(member) for member in reader]
    assert [member.name for member in found] == (["a.jpg"] if cut >= 1536 else [])


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
    data = bytearray(tar_bytes({"a.jpg": b"x" * 600}, tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (1 << 60).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(TarError, match="cut short in a member of 1,152,921,504,606,846,976 bytes"):
        list(TarReader(io.BytesIO(bytes(data))))


def test_a_member_longer_than_a_piece_is_whole(monkeypatch):
    monkeypatch.setattr("curate.tar._PIECE", 512)
    assert {member.name: member.data for member in TarReader(io.BytesIO(tar_bytes(MEMBERS, tarfile.PAX_FORMAT)))} == MEMBERS


@pytest.mark.parametrize("size", [b"-0000020000\0", b"0000000008\0\0", b"0x10\0\0\0\0\0\0\0\0"])
def test_a_size_that_is_no_number_is_damage(size):
    data = bytearray(tar_bytes({"a.jpg": b"x" * 600}, tarfile.GNU_FORMAT))
    data[124:136] = size
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(TarError, match="no octal number"):
        list(TarReader(io.BytesIO(bytes(data))))


def test_an_absurd_pax_size_is_damage():
    file = io.BytesIO()
    record = b"size=" + b"9" * 5000 + b"\n"
    record = b"%d " % (len(record) + 5) + record
    for name, kind, data in (("pax", b"x", record), ("a.jpg", b"0", b"x")):
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(data)
        file.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    with pytest.raises(TarError, match="a size that is no number"):
        list(TarReader(io.BytesIO(file.getvalue() + bytes(1024))))


@pytest.mark.parametrize("format", ["oldgnu", "gnu", "pax"])
def test_sparse_files_are_no_members_and_hide_no_others(format, tmp_path):
    with open(tmp_path / "sparse.bin", "wb") as file:
        for place in range(30):  # more holes than the first header has room for
            file.seek(place << 17)
            file.write(b"x")
    for name in ("a.jpg", "z.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    names = ["a.jpg", "sparse.bin", "z.jpg"]
    subprocess.run(["tar", "--sparse", f"--format={format}", "-cf", "all.tar", *names], cwd=tmp_path, check=True)
    with open(tmp_path / "all.tar", "rb") as file:
        assert {member.name: member.data for member in TarReader(file)} == {"a.jpg": b"a.jpg", "z.jpg": b"z.jpg"}
