import fsspec
import pytest
from conftest import write_shard

from curate.errors import CurateError
from curate.formats.samples import iterate_samples
from curate.formats.shard_patterns import expand_patterns
from curate.formats.tar import TarReader
from curate.stages.embed.registration import stat_shard
from curate.storage import files
from curate.storage.checksums import file_checksum


def test_braces_globs_and_folders_name_shards_in_natural_order(tmp_path):
    for number in (1, 2, 10):
        write_shard(tmp_path / f"part-{number}.tar", [])
    expected = [str(tmp_path / f"part-{number}.tar") for number in (1, 2, 10)]
    for patterns in (
        [f"{tmp_path}/part-*.tar"],
        [f"{tmp_path}/part-{{10,2,1}}.tar"],
        [str(tmp_path)],
        expected[::-1] + expected,
    ):
        assert expand_patterns(patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("pipe:cat x.tar", "never runs shell commands"),
        ("missing/*.tar", "no shard at"),
        ("nowhere.tar", "check the path"),
        ("wrong://x.tar", "cannot reach the shard .*Protocol not known"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern, reason):
    with pytest.raises(CurateError, match=reason):
        for url in expand_patterns([pattern]):
            stat_shard(url)


def test_shards_come_from_any_fsspec_url(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("a", {"jpg": b"1"})])
    fsspec.filesystem("memory").pipe("/corpus/a.tar", path.read_bytes())
    url = "memory:///corpus/a.tar"
    assert expand_patterns(["memory://corpus/*.tar"]) == [url]
    assert file_checksum(url) == file_checksum(path)
    assert stat_shard(url).num_bytes == path.stat().st_size
    with files.open_binary(url, sequential=True) as stream:
        assert [sample.key for sample in iterate_samples(TarReader(stream))] == ["a"]


def test_a_folder_of_a_store_lists_its_shards_as_one_of_this_machine_does():
    """With and without a slash; a store knows folders by what is below them only."""
    store = fsspec.filesystem("memory")
    for name in ("b-10.tar", "b-9.tar", "readme.txt", "below/c.tar"):
        store.pipe(f"/prefix/{name}", b"x")
    for pattern in ("memory://prefix", "memory://prefix/"):
        assert expand_patterns([pattern]) == ["memory://prefix/b-9.tar", "memory://prefix/b-10.tar"]
    with pytest.raises(CurateError, match="no .tar in 'memory://prefix/below/c', but|no shard at"):
        expand_patterns(["memory://prefix/below/c/"])
    with pytest.raises(OSError, match="it is a folder"):
        files.stat("memory://prefix")


def test_a_folder_without_shards_says_what_it_holds(tmp_path):
    for name in ("a.zip", "b.zip", "c.json", "README"):
        (tmp_path / name).touch()
    with pytest.raises(
        CurateError, match=r"no .tar in .*, but 2 .zip, 1 without an ending, 1 .json"
    ):
        expand_patterns([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("000.tar.gz", "gunzip -k FOLDER/*.gz"),
        ("000.tgz", "gunzip -k FOLDER/*.tgz"),
        ("000.TAR.BZ2", "bunzip2 -k FOLDER/*.BZ2"),
        ("000.tar.xz", "unxz -k FOLDER/*.xz"),
        ("000.tar.zst", "unzstd FOLDER/*.zst"),
    ],
)
def test_compressed_shards_are_refused_with_the_command_that_unpacks_them(tmp_path, name, command):
    (tmp_path / name).touch()
    for pattern in (tmp_path, tmp_path / name, tmp_path / "000*"):
        with pytest.raises(CurateError, match="is compressed") as caught:
            expand_patterns([str(pattern)])
        assert command.replace("FOLDER", str(tmp_path)) in str(caught.value)
    with pytest.raises(CurateError, match="is compressed.*unpack it there"):
        expand_patterns([f"https://host/{name}"])
