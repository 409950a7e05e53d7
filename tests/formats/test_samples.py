import tarfile
from pathlib import Path

import pytest
import webdataset
from conftest import png, write_shard

from curate.formats.samples import CorruptShardError, Sample, iterate_samples
from curate.formats.tar import TarReader


def read_samples(path: Path) -> list[Sample]:
    with path.open("rb") as file:
        return list(iterate_samples(TarReader(file)))


# webdataset leaves a file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples_are_those_webdataset_sees(tmp_path):
    image = png(0)
    path = write_shard(
        tmp_path / "a.tar",
        [
            ("plain", {"png": image, "cls": b"1"}),
            ("folder/deep", {"PNG": image, "json": b"{}"}),
            ("dots", {"seg.png": image}),
            ("./here", {"jpg": image}),
            ("sp ace ü", {"jpg": image, "txt": b"x"}),
        ],
    )
    theirs = [
        {key: value for key, value in sample.items() if not key.startswith("__")}
        | {"key": sample["__key__"]}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert [sample.members | {"key": sample.key} for sample in read_samples(path)] == theirs


def test_a_key_twice_in_a_row_is_two_samples(tmp_path):
    path = write_shard(
        tmp_path / "a.tar", [("a", {"jpg": b"1", "cls": b"1"}), ("a", {"jpg": b"2", "cls": b"2"})]
    )
    assert [sample.members["jpg"] for sample in read_samples(path)] == [b"1", b"2"]


def test_a_cut_member_fails_its_own_sample_only(tmp_path):
    path = write_shard(
        tmp_path / "a.tar",
        [("a", {"jpg": b"x" * 600, "cls": b"1"}), ("b", {"jpg": b"y" * 600, "cls": b"2"})],
    )
    path.write_bytes(path.read_bytes()[: 5 * 512 + 700])  # in the middle of b.jpg
    keys = []
    with path.open("rb") as file, pytest.raises(CorruptShardError) as damage:
        keys.extend(sample.key for sample in iterate_samples(TarReader(file)))
    assert (keys, damage.value.key) == (["a"], "b")


def test_pax_and_gnu_shards_give_the_same_samples(tmp_path):
    samples = [("x" * 150, {"jpg": b"1", "cls": b"2"}), ("y", {"jpg": b"3"})]
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = read_samples(write_shard(tmp_path / f"{tar_format}.tar", samples, tar_format))
        assert [sample.members for sample in shard] == [members for _, members in samples]
