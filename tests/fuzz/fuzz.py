"""Coverage-guided fuzzing by atheris, which is libFuzzer.

    python fuzz.py tar|recipe [libFuzzer's options] FOLDER...

What must hold for any bytes: the reader of shards ends in samples or in CorruptShardError, and its
ranges lie in the file one after the other; a recipe loads or is refused by CurateError.
"""

import io
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["curate"]):
    from curate import recipe
    from curate.errors import CurateError
    from curate.formats.samples import CorruptShardError, iterate_samples
    from curate.formats.tar import BLOCK, TarReader


def read_tar(data: bytes) -> None:
    for archive in (data, repair_checksums(data)):
        reader, end = TarReader(io.BytesIO(archive)), 0
        try:
            for sample in iterate_samples(reader):
                assert end <= sample.offset, "samples overlap"
                end = sample.offset + sample.length
                assert end <= len(archive), "a sample beyond the end"
                assert sample.key, "a sample without a key"
                assert sample.members, "a sample without members"
                num_bytes = sum(map(len, sample.members.values()))
                assert num_bytes < sample.length, "members larger than their range"
        except CorruptShardError:
            reader.drain()
        assert reader.num_bytes == len(archive), "not read to the end"


def repair_checksums(data: bytes) -> bytes:
    """With sound checksums in all that looks like a header, so that the fuzzer gets beyond them."""
    repaired = bytearray(data)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        block = data[start : start + BLOCK]
        if block[257:262] == b"ustar":
            checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
            repaired[start + 148 : start + 156] = b"%06o\0 " % checksum
    return bytes(repaired)


def load_recipe(data: bytes) -> None:
    FILE.write_bytes(data)
    try:
        recipe.load_recipe(FILE, [], None)
    except CurateError as error:
        assert str(error), "no reason"


if __name__ == "__main__":
    # libFuzzer's own limit counts the memory of the process that this one was forked from.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    with tempfile.TemporaryDirectory() as folder:
        FILE = Path(folder) / "recipe.toml"
        target = {"tar": read_tar, "recipe": load_recipe}[sys.argv[1]]
        atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
        atheris.Fuzz()
