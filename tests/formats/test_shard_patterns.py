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
