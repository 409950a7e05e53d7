"""Object storage, by a real S3-compatible server on the loopback: it gets what folders get."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from conftest import rows, run_curate, write_corpus

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.formats.shard_patterns import expand_patterns
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.locks import lock_folder

pytest.importorskip("moto", reason="no moto: pip install -e '.[dev]'")
pytest.importorskip("s3fs", reason="no s3fs: pip install -e '.[s3]'")

SERVER = Path(__file__).resolve().parents[1] / "object_store.py"


@pytest.fixture(params=[0, 10], ids=["sound", "failing every tenth request"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with three empty buckets: corpus, files and out."""
    import s3fs

    command = [sys.executable, "-W", "ignore", str(SERVER), str(request.param)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        for bucket in ("corpus", "files", "out"):
            fsspec.filesystem("s3").mkdir(bucket)
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.communicate()


def run_chain(catalog: Path, corpus: str, out: str, **options: str) -> Catalog:
    pattern = f"{corpus}/*.tar"
    curate.embed(catalog, pattern, encoder="pixels@16", captions=True, workers=2, **options)
    curate.cluster(catalog, k=3)
    curate.score(catalog, "ssl_prototypes")
    curate.select(catalog, keep=0.5, name="half")
    curate.export(catalog, "half", f"{out}/mirror", workers=2)
    curate.export(catalog, "half", f"{out}/repacked", samples_per_shard=7)
    return Catalog(catalog)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The chain on the files of this machine: corpus/, catalog/ and out/ side by side."""
    folder = tmp_path_factory.mktemp("local")
    write_corpus(folder / "corpus", 4, 12)
    return run_chain(folder / "catalog", str(folder / "corpus"), str(folder / "out"))


def read_folder(location: str | Path) -> dict[str, bytes]:
    """All files below a folder or a URL, except those that hold times or URLs, and locks."""
    filesystem, folder = fsspec.core.url_to_fs(str(location))
    filesystem.invalidate_cache()  # other processes write
    return {
        path.removeprefix(folder): filesystem.cat_file(path)
        for path in filesystem.find(folder)
        if files.filename(path) not in ("manifest.json", "index.parquet", ".lock")
    }


def read_index(export: str) -> list[dict[str, object]]:
    """The index of an export, with the names of the shards instead of their URLs."""
    content = files.read_bytes(files.join(export, ".curate", "index.parquet"))
    index = pq.read_table(io.BytesIO(content)).to_pylist()
    return [row | {"url": files.filename(row["url"])} for row in index]


def test_the_whole_chain_is_the_same_over_s3(store, local, tmp_path):
    folder = local.path.parent
    for path in (folder / "corpus").iterdir():
        files.upload(path, f"s3://corpus/{path.name}")
    remote = run_chain(tmp_path / "remote", "s3://corpus", "s3://out", files="s3://files/folder")
    assert read_folder("s3://out") == read_folder(folder / "out")
    for name in ("mirror", "repacked"):
        assert read_index(f"s3://out/{name}") == read_index(str(folder / "out" / name))
    for kind in ("embeddings", "clusterings"):
        remote_files = read_folder(f"s3://files/folder/{kind}")
        assert remote_files
        assert remote_files == read_folder(local.path / kind)
        assert not (remote.path / kind).exists()
    assert files.list_files("s3://files/folder/work") == []
    for table in ("samples", "assignments", "scores", "members"):
        sql = f"select * from {table} order by all"
        assert rows(remote, sql) == rows(local, sql)
    assert curate.verify(remote, check_sources=True) == []
    again = run_curate("export", "half", "s3://out/mirror", "-c", remote.path)
    assert "already" in again.stderr


@pytest.mark.parametrize("store", [0], indirect=True)
def test_a_file_of_a_store_appears_when_it_is_whole(store):
    url = "s3://files/some/file"
    with pytest.raises(ZeroDivisionError), atomic_write(url) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not files.is_file(url)
    with atomic_write(url) as temporary:
        temporary.write_bytes(bytes(60 << 20))  # uploaded in several parts
    assert files.stat(url).num_bytes == 60 << 20


@pytest.mark.parametrize("store", [0], indirect=True)
def test_a_prefix_of_a_store_lists_its_shards(store, tmp_path):
    for path in map(Path, write_corpus(tmp_path / "corpus", 2, 2)):
        files.upload(path, f"s3://corpus/some/folder/{path.name}")
    urls = [f"s3://corpus/some/folder/{shard:03d}.tar" for shard in range(2)]
    for prefix in ("s3://corpus/some/folder", "s3://corpus/some/folder/"):
        assert expand_patterns([prefix]) == urls
    with pytest.raises(CurateError, match="no .tar in 's3://corpus/some', but 1"):
        expand_patterns(["s3://corpus/some"])
    with pytest.raises(OSError, match="it is a folder"):
        files.stat("s3://corpus/some/folder")


def test_a_file_url_is_a_path_of_this_machine(tmp_path):
    assert files.resolve(f"file://{tmp_path}/out") == f"{tmp_path}/out"
    with lock_folder(Path(files.resolve(f"file://{tmp_path}/out"))):
        pass


def test_what_cannot_be_at_a_url_is_one_line(tmp_path):
    with pytest.raises(CurateError, match="a catalog is a folder of this machine"):
        Catalog("s3://bucket/catalog")
    with pytest.raises(CurateError, match="--files other: give a URL"):
        Catalog(tmp_path / "catalog").create("other")
    catalog = Catalog(tmp_path / "catalog").create()
    with pytest.raises(CurateError, match="are stored at .* already"):
        catalog.create("s3://bucket/files")
