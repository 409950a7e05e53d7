"""Coverage-guided fuzzing by atheris (libFuzzer): python fuzz.py tar|recipe [libFuzzer's options] FOLDER...

What must hold for any bytes: the reader of shards ends in samples or in DamagedShard, and its ranges lie in the file one after
the other; a recipe loads or is refused by CurateError.
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
    from curate.shards import DamagedShard, samples
    from curate.tar import BLOCK, TarReader


def read_tar(data: bytes) -> None:
    for whole in (data, repaired(data)):
        reader, end = TarReader(io.BytesIO(whole)), 0
        try:
            for sample in samples(reader):
                assert end <= sample.offset, "samples overlap"
                end = sample.offset + sample.length
                assert end <= len(whole), "a sample beyond the end"
                assert sample.key, "a sample without a key"
                assert sample.members, "a sample without members"
                assert sum(map(len, sample.members.values())) < sample.length, "members larger than their range"
        except DamagedShard:
            reader.drain()
        assert reader.num_bytes == len(whole), "not read to the end"


def repaired(data: bytes) -> bytes:
    """With sound checksums in all that looks like a header, so that the fuzzer gets beyond them."""
    found = bytearray(data)
    for at in range(0, len(found) - BLOCK + 1, BLOCK):
        block = found[at : at + BLOCK]
        if block[257:262] == b"ustar":
            found[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(found)


def load_recipe(data: bytes) -> None:
    FILE.write_bytes(data)
    try:
        recipe.load(FILE, [], None)
    except CurateError as error:
        assert str(error), "no reason"


if __name__ == "__main__":
    # libFuzzer's own limit counts the memory of the process that this one was forked from.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    with tempfile.TemporaryDirectory() as folder:
        FILE = Path(folder) / "recipe.toml"
        atheris.Setup([sys.argv[0], *sys.argv[2:]], {"tar": read_tar, "recipe": load_recipe}[sys.argv[1]])
        atheris.Fuzz()
