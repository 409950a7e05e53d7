"""Object storage, by a real S3-compatible server on the loopback: what comes out is what comes out of folders."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import rows, write_corpus

from curate import storage
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.workspaces import locked

pytest.importorskip("moto", reason="no moto: pip install -e '.[dev]'")
pytest.importorskip("s3fs", reason="no s3fs: pip install -e '.[s3]'")


@pytest.fixture(params=[0, 10], ids=["sound", "failing every tenth request"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import s3fs

    words = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("object_store.py")), str(request.param)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{int(server.stdout.readline())}")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        for bucket in ("corpus", "files", "out"):
            storage.at(f"s3://{bucket}").mkdir()
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.communicate()


def curate(*words: object) -> str:
    run = subprocess.run([sys.executable, "-m", "curate", *map(str, words)], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def chain(catalog: Path, corpus: str, out: str, *files: str) -> None:
    place = ("-c", catalog)
    curate("embed", f"{corpus}/*.tar", "--encoder", "pixels@16", "-j", 2, *files, *place)
    curate("cluster", "--k", 3, *place)
    curate("score", "ssl_prototypes", *place)
    curate("select", "--keep", 0.5, "--name", "half", *place)
    curate("export", "half", f"{out}/mirror", "-j", 2, *place)
    curate("export", "half", f"{out}/repacked", "--samples-per-shard", 7, *place)


def contents(folder: str) -> dict[str, bytes]:
    """All files of a folder or a URL but those that hold times."""
    top = storage.at(folder)
    files = [path for path in top.rglob("*") if path.is_file() and path.name not in ("manifest.json", "index.parquet", ".lock")]
    return {str(path).removeprefix(str(top)).strip("/"): path.read_bytes() for path in files}


def test_the_whole_chain_is_the_same_over_s3(store, tmp_path):
    for path in map(Path, write_corpus(tmp_path / "corpus", 4, 12)):
        storage.upload(path, storage.at(f"s3://corpus/{path.name}"))
    chain(tmp_path / "local", str(tmp_path / "corpus"), str(tmp_path / "out"))
    chain(tmp_path / "remote", "s3://corpus", "s3://out", "--files", "s3://files/here")
    assert contents("s3://out") == contents(str(tmp_path / "out"))
    for name in ("mirror", "repacked"):  # where from is what must differ
        found = [pq.read_table(io.BytesIO((storage.at(top) / name / "index.parquet").read_bytes())).to_pylist()
                 for top in ("s3://out", tmp_path / "out")]  # fmt: skip
        for row in itertools.chain(*found):
            row["url"] = Path(row["url"]).name
        assert found[0] == found[1]
    for kind in ("embeddings", "clusterings"):
        assert contents(f"s3://files/here/{kind}") == contents(str(tmp_path / "local" / kind))
        assert not (tmp_path / "remote" / kind).exists()
    assert not storage.listed(storage.at("s3://files/here/work"), "*")
    for table in ("samples", "assignments", "scores", "members"):
        found = [rows(Catalog(tmp_path / name), f"select * from {table} order by all") for name in ("remote", "local")]
        assert found[0] == found[1]
    assert curate("verify", "--sources", "-c", tmp_path / "remote") == ""
    assert "already" in subprocess.run(
        [sys.executable, "-m", "curate", "export", "half", "s3://out/mirror", "-c", str(tmp_path / "remote")],
        capture_output=True, text=True,
    ).stderr  # fmt: skip


@pytest.mark.parametrize("store", [0], indirect=True)
def test_a_file_of_a_store_appears_when_it_is_whole(store, tmp_path):
    path = storage.at("s3://files/some/file")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not path.exists()
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(60 << 20))  # in several parts
    assert path.stat().st_size == 60 << 20


def test_a_url_of_this_machine_is_a_path_of_it(tmp_path):
    assert storage.at(f"file://{tmp_path}/out") == tmp_path / "out"
    with locked(storage.at(f"file://{tmp_path}/out")):
        pass


def test_what_cannot_be_is_said_in_a_line(tmp_path):
    with pytest.raises(CurateError, match="a catalog lies in a folder of this machine"):
        Catalog("s3://bucket/catalog")
    with pytest.raises(CurateError, match="--files other: give a URL"):
        Catalog(tmp_path / "catalog").create("other")
    catalog = Catalog(tmp_path / "catalog").create()
    with pytest.raises(CurateError, match="lie at .* already"):
        catalog.create("s3://bucket/files")
