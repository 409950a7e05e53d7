"""Shards on web servers with the habits that other tools' users met."""

import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import load_vectors, rows

from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.formats.shard_patterns import expand_patterns
from curate.stages.embed.stage import embed, num_failures
from curate.stages.export.stage import export
from curate.stages.report.stage import report
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.storage import credentials, files, web

PER_SHARD = 6


@pytest.fixture(scope="module")
def folder(worlds, tmp_path_factory) -> Path:
    """Two sound shards, as all servers here have them."""
    folder = tmp_path_factory.mktemp("served")
    worlds.plain(folder, PER_SHARD)
    return folder


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch) -> list[float]:
    """Pauses are not waited for, but written down."""
    pauses: list[float] = []
    monkeypatch.setattr(web, "_sleep", pauses.append)
    monkeypatch.setattr(credentials, "_addresses", {})
    return pauses


@contextlib.contextmanager
def run_server(server: http.server.HTTPServer) -> Iterator[str]:
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def serve(worlds, folder):
    """From a mode to the URL of a server that has it, for the length of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda mode: stack.enter_context(run_server(worlds.serve(folder, mode)))


def shard_urls(server: str, query: str = "") -> list[str]:
    return [f"{server}/{shard:05d}.tar{query}" for shard in range(2)]


SOUND_MODES = ("noranges", "ranges", "once503", "once429", "cut_once", "chunked", "nolength")


def export_half(catalog: Catalog, out: Path) -> dict[str, bytes]:
    """The shards of a random half, by name."""
    score(catalog, ["random"])
    export(catalog, select(catalog, scoring="random", keep=0.5), out)
    return {path.name: path.read_bytes() for path in out.glob("*.tar")}


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory) -> tuple[Catalog, dict[str, bytes]]:
    """The shards embedded from their folder, and half of them exported."""
    home = tmp_path_factory.mktemp("local")
    catalog = Catalog(home / "catalog")
    embed(catalog, str(folder), encoder="pixels", workers=1)
    return catalog, export_half(catalog, home / "out")


SOUND_MODES = ("noranges", "ranges", "once503", "once429", "cut_once", "chunked", "nolength")


@pytest.mark.parametrize("mode", [*SOUND_MODES, "gzip", "etag", "nohead"])
def test_every_habit_gives_the_same_vectors_once(serve, tmp_path, mode, short_pauses, local):
    """And the same command again does nothing."""
    catalog = Catalog(tmp_path / "catalog")
    urls = shard_urls(serve(mode))
    for _ in range(2):
        embed(catalog, urls, encoder="pixels", workers=1)
    assert rows(catalog, "select count(*) from runs") == [(1,)]
    assert num_failures(catalog) == 0
    assert load_vectors(catalog).tobytes() == load_vectors(local[0]).tobytes()
    sql = "select num_bytes, checksum, complete from shards order by shard_id"
    assert rows(catalog, sql) == rows(local[0], sql)
    assert bool(short_pauses) == (mode in ("once503", "once429", "cut_once"))


@pytest.mark.parametrize("mode", ["noranges", "ranges", "gzip"])
def test_an_export_from_a_web_server_has_the_bytes_of_one_from_a_folder(
    serve, tmp_path, mode, local
):
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shard_urls(serve(mode)), encoder="pixels", workers=1)
    exported = export_half(catalog, tmp_path / "out")
    assert len(exported) == 2
    assert exported == local[1]
    assert list(verify(catalog, [tmp_path / "out"], check_sources=True)) == []


class Overloaded(http.server.BaseHTTPRequestHandler):
    """Always 503; `asked` counts."""

    asked: itertools.count
    retry_after = ""

    def do_GET(self) -> None:
        next(self.asked)
        self.send_response(503)
        self.send_header("Content-Length", "0")
        if self.retry_after:
            self.send_header("Retry-After", self.retry_after)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        pass


def test_an_overloaded_server_is_asked_ten_times_with_growing_pauses(short_pauses):
    handler = type("Handler", (Overloaded,), {"asked": itertools.count()})
    with (
        run_server(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url,
        pytest.raises(OSError, match="503 Service Unavailable"),
    ):
        files.open_binary(f"{url}/a.tar")
    assert next(handler.asked) == 10
    assert len(short_pauses) == 9
    assert short_pauses[0] < 0.4
    assert all(3 * short_pauses[0] < pause < 40 for pause in short_pauses[3:])


def test_a_server_that_names_a_pause_gets_it_but_none_of_hours(short_pauses):
    for seconds, expected in (("7", 7), ("86400", 30)):
        short_pauses.clear()
        attributes = {"asked": itertools.count(), "retry_after": seconds}
        handler = type("Handler", (Overloaded,), attributes)
        with (
            run_server(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url,
            pytest.raises(OSError, match="503"),
        ):
            files.open_binary(f"{url}/a.tar")
        assert short_pauses[0] == pytest.approx(expected, rel=0.3)


def test_the_cause_is_named(serve, tmp_path, worlds, folder):
    def message(url: str) -> str:
        with pytest.raises(CurateError) as caught:
            embed(tmp_path / "catalog", url, encoder="pixels")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "401 Unauthorized" in message(f"{serve('auth')}/00000.tar")
    with run_server(worlds.serve(folder, "ranges")) as closed:
        pass
    assert "connection refused" in message(f"{closed}/00000.tar")
    assert "no such host" in message("http://nosuchhost.invalid/00000.tar")
    assert "no shard at" in message(f"{serve('ranges')}/nothere.tar")
    assert "it is no URL" in message("http://127.0.0.1:99999999/00000.tar")
    assert not (tmp_path / "catalog").exists()


def test_a_certificate_that_nobody_vouches_for_is_named(worlds, folder, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key}"
    try:
        subprocess.run(
            [*command.split(), "-out", str(certificate)], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = worlds.serve(folder, "ranges")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with run_server(server) as url, pytest.raises(OSError, match=r"certificate.*self-signed"):
        files.stat(f"{url.replace('http:', 'https:')}/00000.tar")


SECRET = "4f9c2e"


def test_a_signature_is_stored_nowhere_and_a_new_one_names_the_same_shard(serve, tmp_path):
    catalog, server = Catalog(tmp_path / "catalog"), serve("nohead")
    query = f"?X-Amz-Signature={SECRET}{'0' * 400}"
    embed(catalog, shard_urls(server, query), encoder="pixels", workers=2)
    embed(catalog, shard_urls(server, f"?X-Amz-Signature={SECRET}2"), encoder="pixels")
    assert rows(catalog, "select url from shards order by 1") == [
        (url,) for url in shard_urls(server)
    ]
    assert rows(catalog, "select count(*) from runs") == [(1,)]
    score(catalog, ["random"])
    out = Path(export(catalog, select(catalog, scoring="random", keep=0.5), tmp_path / "out"))
    report(catalog)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    for path in [*catalog.path.rglob("*"), *out.rglob("*")]:
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_password_is_stored_nowhere(tmp_path, folder):
    """A server that takes nobody without one."""

    class Guarded(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") == "Basic dXNlcjo0ZjljMmU=":
                super().do_GET()
            else:
                self.send_error(401)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    handler = functools.partial(Guarded, directory=str(folder))
    with run_server(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        plain_url = f"{url}/00000.tar"
        catalog = Catalog(tmp_path / "catalog")
        embed(catalog, plain_url.replace("//", f"//user:{SECRET}@"), encoder="pixels", workers=1)
        assert rows(catalog, "select url from shards") == [(plain_url,)]
        assert num_failures(catalog) == 0
        wrong = f"http://user:{SECRET}x@{plain_url.removeprefix('http://')}"
        with pytest.raises(CurateError, match="401 Unauthorized") as caught:
            embed(tmp_path / "other", wrong, encoder="pixels")
    assert SECRET not in str(caught.value)
    for path in catalog.path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_what_would_have_to_be_stored_takes_no_password(catalog, tmp_path):
    url = f"sftp://user:{SECRET}@host/folder"
    with pytest.raises(OptionError, match="--files sftp://host/folder") as files_error:
        Catalog(tmp_path / "new").create(url)
    score(catalog, ["random"])
    selection = select(catalog, scoring="random", keep=0.5)
    with pytest.raises(OptionError, match="sftp://host/folder") as export_error:
        export(catalog, selection, url)
    assert SECRET not in str(files_error.value) + str(export_error.value)


def test_an_export_of_what_only_a_signature_opens_says_so_and_leaves_no_folder(
    serve, worlds, folder, tmp_path
):
    """The next process does not know the signature; here the server takes nobody any longer."""
    catalog, server = Catalog(tmp_path / "catalog"), worlds.serve(folder, "nohead")
    with run_server(server) as url:
        embed(catalog, shard_urls(url, "?sig=1"), encoder="pixels", workers=1)
    score(catalog, ["random"])
    selection = select(catalog, scoring="random", keep=0.5)
    with catalog.writing() as connection:
        connection.execute("update shards set url = replace(url, ?, ?)", [url, serve("auth")])
    with pytest.raises(CurateError, match="signatures and passwords are not stored"):
        export(catalog, selection, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]
    # Copies elsewhere are recognised by their bytes.
    embed(catalog, str(folder), encoder="pixels", workers=1)
    assert rows(catalog, "select count(*) from shards") == [(2,)]
    export(catalog, selection, tmp_path / "out")


def test_two_queries_of_one_name_are_refused():
    with pytest.raises(CurateError, match="differ in their query only"):
        expand_patterns(["http://host/get.tar?file=1", "http://host/get.tar?file=2"])


@pytest.mark.parametrize(
    ("given", "identity"),
    [
        ("http://[::1]:80/a.tar", "http://[::1]:80/a.tar"),
        ("http://host/a.tar?b=[*]", "http://host/a.tar"),
        ("https://me:pass@host/a.tar#x", "https://host/a.tar"),
        ("ftp://me:pass@host/a.tar", "ftp://host/a.tar"),
    ],
)
def test_brackets_of_hosts_and_marks_of_queries_are_no_pattern(given, identity):
    assert credentials.hide_credentials(given) == identity
    if given.startswith("http"):
        assert expand_patterns([given]) == [identity]


def test_stores_have_no_users_in_their_urls():
    for url in ("hf://datasets/a/b@main/0.tar", "s3://bucket/a@b/0.tar?x", "/a@b/c?d#e.tar"):
        assert credentials.hide_credentials(url) == url


def test_a_proxy_is_asked_where_the_environment_names_one(serve, folder, tmp_path, monkeypatch):
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = (folder / "00000.tar").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    with run_server(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)) as url:
        monkeypatch.setenv("http_proxy", url)
        embed(tmp_path / "catalog", "http://corpus.invalid/0.tar", encoder="pixels", workers=1)
    assert asked
    assert set(asked) == {"http://corpus.invalid/0.tar"}


def test_a_file_is_read_at_any_place_with_and_without_ranges(serve, folder, monkeypatch):
    monkeypatch.setattr(web, "_LONGEST_SKIP", 1024)
    content = (folder / "00000.tar").read_bytes()
    for mode in ("ranges", "noranges", "nolength", "gzip"):
        with files.open_binary(f"{serve(mode)}/00000.tar", buffered=False) as file:
            for start in (5000, 9000, 100, len(content) - 10, 0):
                assert file.seek(start) == start
                data = b""
                while len(data) < 10 and (more := file.read(10 - len(data))):
                    data += more
                assert data == content[start : start + 10]
            file.seek(len(content) + 5)
            assert file.read(10) == b""


def test_a_large_shard_without_ranges_is_read_in_pieces(worlds, tmp_path):
    """More than 5 MiB, which fsspec's own client refuses."""
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(256)) * (6 << 12))
    with run_server(worlds.serve(tmp_path, "noranges")) as url:
        digest = hashlib.sha256()
        with files.open_binary(f"{url}/large.bin", sequential=True) as file:
            while data := file.read(1 << 20):
                digest.update(data)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_of_a_web_server_lists_its_shards(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with run_server(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        assert expand_patterns([f"{url}/"]) == shard_urls(url)
        assert expand_patterns([f"{url}/*.tar"]) == shard_urls(url)


def test_what_a_run_was_called_with_has_no_secret(serve, tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    url = f"{serve('ranges')}/00000.tar"
    embed(catalog, f"{url}?token={SECRET}", encoder="pixels", workers=1)
    ((arguments,),) = rows(catalog, "select arguments from runs")
    assert json.loads(arguments)["shards"] == [url]
