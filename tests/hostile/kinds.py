"""Shards that nobody should make, or that somebody made on purpose: one of each kind.

Every shard also holds a sound sample `sound`, first, so that a test sees that one bad neighbour
spoils nothing. Run as a program, this prints the table of docs/inputs.md.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

BLOCK = 512


class Kind(NamedTuple):
    """How a shard is made, and what becomes of it.

    `outcome` is the line of docs/inputs.md. `num_used` samples get a vector, `num_failed` ones a
    row in `failures`, one of which has the `reason`. `is_unreadable` means that nothing can be read
    from the shard.
    """

    make: Callable[[], bytes]
    outcome: str
    num_used: int
    num_failed: int = 0
    reason: str = ""
    is_unreadable: bool = False


def image(
    seed: int = 0,
    size: tuple[int, int] = (12, 10),
    format: str = "JPEG",
    mode: str = "RGB",
    **options: object,
) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=format, **options)
    return file.getvalue()


SOUND = [("sound.jpg", image(1)), ("sound.cls", b"1")]


def tar(members: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as out:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return file.getvalue()


def with_sound(
    *members: tuple[str, bytes], format: int = tarfile.GNU_FORMAT
) -> Callable[[], bytes]:
    return lambda: tar([*SOUND, *members], format)


def sample(
    key: str = "a", data: bytes | None = None, extension: str = "jpg", **others: bytes
) -> list[tuple[str, bytes]]:
    """The members of a sample: an image, and others by their extensions."""
    return [
        (f"{key}.{extension}", image(2) if data is None else data),
        *((f"{key}.{name}", content) for name, content in others.items()),
    ]


WHOLE = tar([*SOUND, *sample("a", cls=b"0"), *sample("b", cls=b"1")])


def member_offsets() -> list[int]:
    """Where each member of WHOLE begins, and its end mark."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        return [member.offset for member in archive] + [archive.offset]


OFFSETS = member_offsets()
SOUND_MEMBERS = WHOLE[: OFFSETS[2]]  # of the sample `sound`, without an end mark


def cut(length: int) -> Callable[[], bytes]:
    return lambda: WHOLE[:length]


def wrong_checksum() -> bytes:
    data = bytearray(WHOLE)
    data[OFFSETS[2] + 1] ^= 1  # in the name of the second sample
    return bytes(data)


def special(typeflag: bytes) -> Callable[[], bytes]:
    """A shard with a member that is no regular file."""

    def make() -> bytes:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = typeflag, "/etc/passwd"
        return SOUND_MEMBERS + member.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK)

    return make


def sparse() -> bytes:
    """A shard with a sparse file, as PAX writes them."""
    member = tarfile.TarInfo("a.jpg")
    member.size = BLOCK
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "9999",
    }
    data = b"1\n0\n1\n".ljust(BLOCK, b"\0")
    return SOUND_MEMBERS + member.tobuf(tarfile.PAX_FORMAT) + data + bytes(2 * BLOCK)


def header(name: bytes, size: bytes) -> bytes:
    """A tar header with these texts for the name and the size."""
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    block[0:100], block[124:136] = name.ljust(100, b"\0"), size
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    return bytes(block)


def claimed_size(size: bytes) -> Callable[[], bytes]:
    """A shard with a member that claims to be of this size, with nothing behind it."""
    return lambda: SOUND_MEMBERS + header(b"a.jpg", size)


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image(3, exif=exif)


def bomb() -> bytes:
    """A PNG that claims to have 50,000 × 50,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def animated(format: str) -> bytes:
    frames = [Image.fromarray(np.full((10, 10, 3), 60 * number, np.uint8)) for number in range(3)]
    file = io.BytesIO()
    frames[0].save(file, format=format, save_all=True, append_images=frames[1:])
    return file.getvalue()


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 600).save(file, format="PNG")
    return file.getvalue()


class TouchFile:
    """Unpickled, it would make a file; see the test."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("curate-was-here"),))


PICKLE = pickle.dumps(TouchFile())
KINDS: dict[str, Kind] = {
    # the archive
    "cut in a header": Kind(
        cut(OFFSETS[2] + 100),
        "what is whole is used, but for the sample just before the damage, which may lack a member",
        0,
        2,
        "cut short in a header",
    ),
    "cut in an image": Kind(
        cut(OFFSETS[2] + 600),
        "what is whole is used; the sample that was cut is a failure",
        1,
        2,
        "cut short in a member",
    ),
    "cut between the members of a sample": Kind(
        cut(OFFSETS[3]),
        "what is whole is used; the last sample may be incomplete, and is used",
        2,
        1,
        "without an end-of-archive mark",
    ),
    "cut between samples": Kind(
        cut(OFFSETS[4]),
        "all samples are used; the missing end is a failure",
        2,
        1,
        "without an end-of-archive mark",
    ),
    "cut in the end mark": Kind(
        cut(OFFSETS[6] + 100),
        "what is whole is used, but for the sample just before the damage, which may lack a member",
        2,
        2,
        "cut short in a header",
    ),
    "cut after the first end block": Kind(
        cut(OFFSETS[6] + BLOCK), "used: one block of zeros is an end", 3
    ),
    "a checksum that does not hold": Kind(
        wrong_checksum,
        "what is whole is used, but for the sample just before the damage, which may lack a member",
        0,
        2,
        "its checksum does not hold",
    ),
    "bytes after the end": Kind(
        lambda: WHOLE + b"x" * BLOCK,
        "all samples are used; what follows is a failure",
        3,
        1,
        "data after the end-of-archive mark",
    ),
    "two tars put together": Kind(
        lambda: WHOLE + WHOLE,
        "the first is used; that another follows is a failure",
        3,
        1,
        "are these tars put together",
    ),
    "gzip": Kind(
        lambda: gzip.compress(WHOLE),
        "nothing is read, a failure: byte offsets need a plain tar",
        0,
        1,
        "a gzip file",
        is_unreadable=True,
    ),
    "zstd": Kind(
        lambda: b"\x28\xb5\x2f\xfd" + bytes(600),
        "nothing is read, a failure: byte offsets need a plain tar",
        0,
        1,
        "a zstd file",
        is_unreadable=True,
    ),
    "no tar at all": Kind(
        lambda: b"<html>404</html>" * 100,
        "nothing is read, a failure",
        0,
        1,
        "not a tar header",
        is_unreadable=True,
    ),
    "an empty file": Kind(
        lambda: b"",
        "nothing is read, a failure",
        0,
        1,
        "without an end-of-archive mark",
        is_unreadable=True,
    ),
    "an empty tar": Kind(lambda: bytes(20 * BLOCK), "used: a shard of no samples", 0),
    "a size that is a lie": Kind(
        claimed_size(b"77777777777\0"),
        "what is whole is used; the sample is a failure, "
        "and memory is taken only for what is there",
        1,
        2,
        "cut short in a member of 8,589,934,591 bytes",
    ),
    "a size in base 256 that is a lie": Kind(
        claimed_size(b"\x80" + (1 << 60).to_bytes(11, "big")),
        "what is whole is used; the sample is a failure",
        1,
        2,
        "cut short in a member",
    ),
    "a size that is no number": Kind(
        claimed_size(b"-0000000777\0"),
        "what is whole is used, but for the sample just before the damage, which may lack a member",
        0,
        2,
        "no octal number",
    ),
    # names
    "GNU name of 300 characters": Kind(with_sound(*sample("k" * 300)), "used", 2),
    "PAX name of 300 characters": Kind(
        with_sound(*sample("k" * 300), format=tarfile.PAX_FORMAT), "used", 2
    ),
    "folders in names": Kind(
        with_sound(*sample("train/cat/a")), "used: folders belong to the key", 2
    ),
    "dots in names": Kind(
        with_sound(*sample("v1.2/a", extension="seg.jpg")),
        "used: the key ends at the first dot of the file's name",
        2,
    ),
    "Unicode names": Kind(with_sound(*sample("späte-猫-🐈", cls="猫".encode())), "used", 2),
    "names that are no Unicode": Kind(
        lambda: SOUND_MEMBERS + header(b"\xff\xfe.jpg", b"%011o\0" % 0) + bytes(2 * BLOCK),
        "the key is shown with escapes; here the image is empty, and so a failure",
        1,
        1,
        "no image of a format",
    ),
    "absolute names": Kind(
        with_sound(*sample("/etc/passwd")), "used: a name is a key, never a path to write to", 2
    ),
    "names with ..": Kind(
        with_sound(*sample("../../etc/passwd")),
        "used: a name is a key, never a path to write to",
        2,
    ),
    "names without a dot, and hidden ones": Kind(
        with_sound(("README", b"x"), (".hidden", b"x")), "passed over: they belong to no sample", 1
    ),
    "SQL in names": Kind(
        with_sound(*sample("'); drop table samples; --", cls=b"'); drop table samples; --")),
        "used: a key is a value, never a part of a statement",
        2,
    ),
    "HTML in names and captions": Kind(
        with_sound(
            *sample("<script>alert(1)<", txt=b"<img src=x onerror=alert(1)>", cls=b"<u>cat")
        ),
        "used, and escaped in the report",
        2,
    ),
    "capital endings": Kind(
        with_sound(*sample("a", extension="JPG")), "used: endings are compared without case", 2
    ),
    # samples
    "interleaved members of two samples": Kind(
        with_sound(("a.jpg", image(2)), ("b.jpg", image(3)), ("a.cls", b"0"), ("b.cls", b"1")),
        "neighbours of one key are a sample, as in webdataset: "
        "the images are used without a label, the labels alone are failures",
        3,
        2,
        "no image among its members (.cls)",
    ),
    "a key twice in a row": Kind(
        with_sound(*sample("a"), *sample("a")), "two samples, both used", 3
    ),
    "a key twice, apart": Kind(
        with_sound(*sample("a"), *sample("b"), *sample("a")), "two samples, both used", 4
    ),
    "no image": Kind(
        with_sound(("a.cls", b"1"), ("a.txt", b"hello")),
        "a failure",
        1,
        1,
        "no image among its members (.cls, .txt)",
    ),
    "two images": Kind(
        with_sound(*sample("a"), ("a.png", image(3, format="PNG"))),
        "the first is used, and this is said",
        2,
    ),
    "an image only": Kind(with_sound(*sample("a")), "used, without a label", 2),
    "an empty image": Kind(
        with_sound(*sample("a", b"")), "a failure", 1, 1, "no image of a format"
    ),
    "a label that is no number": Kind(
        with_sound(*sample("a", cls=b"tabby cat\n")), "used: labels are texts", 2
    ),
    "an empty label": Kind(with_sound(*sample("a", cls=b"")), "used, without a label", 2),
    "a label that is no Unicode": Kind(
        with_sound(*sample("a", cls=b"\xff\xfd")), "a failure", 1, 1, "cannot read the label"
    ),
    "a caption that is no Unicode": Kind(
        with_sound(*sample("a", txt=b"caf\xe9")),
        "used: the caption has a mark where the byte was",
        2,
    ),
    "an empty caption": Kind(with_sound(*sample("a", txt=b" \n")), "used, without a caption", 2),
    "a caption that is one long word": Kind(
        with_sound(*sample("a", txt=b"curate" * 100_000)),
        "used: of a caption, the first 2,000 characters are embedded",
        2,
    ),
    "JSON that is none": Kind(
        with_sound(*sample("a", json=b"{not json")),
        "used with `--label cls`; a failure with `--label json:FIELD`",
        2,
    ),
    "JSON nested without end": Kind(
        with_sound(*sample("a", json=b"[" * 100_000)),
        "used with `--label cls`; a failure with `--label json:FIELD`",
        2,
    ),
    "a link": Kind(special(tarfile.SYMTYPE), "passed over: what it points to is never opened", 1),
    "a hard link": Kind(special(tarfile.LNKTYPE), "passed over", 1),
    "a device": Kind(special(tarfile.CHRTYPE), "passed over", 1),
    "a named pipe": Kind(special(tarfile.FIFOTYPE), "passed over", 1),
    "a folder": Kind(special(tarfile.DIRTYPE), "passed over", 1),
    "a sparse file": Kind(sparse, "passed over", 1),
    "a pickle beside the image": Kind(
        with_sound(*sample("a", pickle=PICKLE, pyd=PICKLE, pth=PICKLE)),
        "used; the others are never opened",
        2,
    ),
    "a pickle for an image": Kind(
        with_sound(*sample("a", PICKLE)),
        "a failure; it is never unpickled",
        1,
        1,
        "no image of a format",
    ),
    # images
    "JPEG cut short": Kind(
        with_sound(*sample("a", image(2, (200, 200))[:3000])), "a failure", 1, 1, "truncated"
    ),
    "JPEG of noise": Kind(
        with_sound(*sample("a", b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(500))),
        "a failure",
        1,
        1,
        "",
    ),
    "grey JPEG": Kind(with_sound(*sample("a", image(2, mode="L"))), "used as RGB", 2),
    "CMYK JPEG": Kind(with_sound(*sample("a", image(2, mode="CMYK"))), "used as RGB", 2),
    "16-bit PNG": Kind(
        with_sound(*sample("a", sixteen_bits(), "png")), "used, scaled to 8 bits", 2
    ),
    "palette PNG": Kind(
        with_sound(*sample("a", image(2, format="PNG", mode="P"), "png")), "used as RGB", 2
    ),
    "transparent PNG": Kind(
        with_sound(*sample("a", image(2, format="PNG", mode="RGBA"), "png")),
        "used; transparency is dropped",
        2,
    ),
    "animated GIF": Kind(
        with_sound(*sample("a", animated("GIF"), "gif")), "the first frame is used", 2
    ),
    "animated WebP": Kind(
        with_sound(*sample("a", animated("WEBP"), "webp")), "the first frame is used", 2
    ),
    "EXIF rotation": Kind(with_sound(*sample("a", exif_rotated())), "used as it is stored", 2),
    "ICC profile": Kind(
        with_sound(*sample("a", image(2, icc_profile=b"x" * 3000))),
        "used; the profile is ignored",
        2,
    ),
    "1 × 1 pixel": Kind(with_sound(*sample("a", image(2, (1, 1), "PNG"), "png")), "used", 2),
    "1 × 20,000 pixels": Kind(
        with_sound(*sample("a", image(2, (1, 20_000), "PNG"), "png")),
        "used: what no crop keeps goes before it is resized",
        2,
    ),
    "a decompression bomb": Kind(
        with_sound(*sample("a", bomb(), "png")), "a failure", 1, 1, "DecompressionBomb"
    ),
    "a PNG called .jpg": Kind(
        with_sound(*sample("a", image(2, format="PNG"))), "used: images are told by their bytes", 2
    ),
    "PostScript called .jpg": Kind(
        with_sound(*sample("a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        "a failure: nothing that runs a program is opened",
        1,
        1,
        "no image of a format",
    ),
    "SVG called .png": Kind(
        with_sound(*sample("a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "png")),
        "a failure",
        1,
        1,
        "no image of a format",
    ),
}


def table() -> str:
    """The table of docs/inputs.md."""
    lines = ["| input | what becomes of it |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {kind.outcome} |" for name, kind in KINDS.items())])


if __name__ == "__main__":
    print(table())
