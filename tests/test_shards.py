import tarfile
from pathlib import Path

import pytest
import webdataset
from conftest import png, write_shard

from curate import shards
from curate.errors import CurateError
from curate.shards import DamagedShard
from curate.tar import TarReader


def read(path: Path) -> list[shards.Sample]:
    with path.open("rb") as file:
        return list(shards.samples(TarReader(file)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves a file open
def test_samples_are_those_webdataset_sees(tmp_path):
    image = png(0)
    path = write_shard(tmp_path / "a.tar", [
        ("plain", {"png": image, "cls": b"1"}), ("folder/deep", {"PNG": image, "json": b"{}"}), ("dots", {"seg.png": image}),
        ("./here", {"jpg": image}), ("sp ace ü", {"jpg": image, "txt": b"x"}),
    ])  # fmt: skip
    theirs = [
        {key: value for key, value in sample.items() if not key.startswith("__")} | {"key": sample["__key__"]}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert [sample.members | {"key": sample.key} for sample in read(path)] == theirs


def test_a_key_twice_in_a_row_is_two_samples(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("a", {"jpg": b"1", "cls": b"1"}), ("a", {"jpg": b"2", "cls": b"2"})])
    assert [sample.members["jpg"] for sample in read(path)] == [b"1", b"2"]


def test_a_cut_member_fails_its_own_sample_only(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("a", {"jpg": b"x" * 600, "cls": b"1"}), ("b", {"jpg": b"y" * 600, "cls": b"2"})])
    path.write_bytes(path.read_bytes()[: 5 * 512 + 700])  # in the middle of b.jpg
    found = []
    with path.open("rb") as file, pytest.raises(DamagedShard) as damage:
        found.extend(sample.key for sample in shards.samples(TarReader(file)))
    assert (found, damage.value.key) == (["a"], "b")


def test_braces_globs_and_folders_name_shards_in_natural_order(tmp_path):
    for number in (1, 2, 10):
        write_shard(tmp_path / f"part-{number}.tar", [])
    wanted = [str(tmp_path / f"part-{number}.tar") for number in (1, 2, 10)]
    for patterns in ([f"{tmp_path}/part-*.tar"], [f"{tmp_path}/part-{{10,2,1}}.tar"], [str(tmp_path)], wanted[::-1] + wanted):
        assert shards.expand(patterns) == wanted


@pytest.mark.parametrize(("pattern", "reason"), [
    ("pipe:cat x.tar", "never runs shell commands"), ("missing/*.tar", "no shard at"), ("nowhere.tar", "check the path"),
    ("wrong://x.tar", "cannot open|no shard"),
])  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_refused(pattern, reason):
    with pytest.raises(CurateError, match=reason):
        for url in shards.expand([pattern]):
            shards.stat(url)


def test_shards_come_from_any_fsspec_url(tmp_path):
    import fsspec

    path = write_shard(tmp_path / "a.tar", [("a", {"jpg": b"1"})])
    fsspec.filesystem("memory").pipe("/corpus/a.tar", path.read_bytes())
    assert shards.expand(["memory://corpus/*.tar"]) == ["memory:///corpus/a.tar"]
    assert shards.fingerprint("memory:///corpus/a.tar", None) == shards.fingerprint(str(path), None)
    assert shards.stat("memory:///corpus/a.tar").num_bytes == path.stat().st_size
    with shards.open_shard("memory:///corpus/a.tar") as stream:
        assert [sample.key for sample in shards.samples(TarReader(stream))] == ["a"]


def test_pax_and_gnu_shards_give_the_same_samples(tmp_path):
    samples = [("x" * 150, {"jpg": b"1", "cls": b"2"}), ("y", {"jpg": b"3"})]
    found = [read(write_shard(tmp_path / f"{kind}.tar", samples, kind)) for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    assert [[sample.members for sample in shard] for shard in found] == [[samples[0][1], samples[1][1]]] * 2
