"""The command line as a shell sees it: stdout, stderr, exit status."""

import functools
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_catalog, png, rows, write_corpus, write_shard

from curate.catalog import Catalog
from curate.metrics import metrics


def curate(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "curate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})


def fails(asked: subprocess.CompletedProcess, reason: str, status: int = 1) -> None:
    assert asked.returncode == status, asked.stderr
    assert reason in asked.stderr
    assert "Traceback" not in asked.stderr
    assert asked.stdout == ""


def test_the_chain_prints_one_name_a_command_so_that_shells_can_chain(tmp_path):
    write_corpus(tmp_path / "corpus")
    place = {"cwd": tmp_path, "CURATE_CATALOG": "my-catalog"}
    assert curate("embed", "corpus/{000..002}.tar", "--encoder", "pixels", **place).stdout == "pixels\n"
    assert curate("cluster", "--k", 3, **place).stdout == "kmeans\n"
    assert curate("score", "ssl_prototypes", "random", **place).stdout == "ssl_prototypes\nrandom\n"
    selection = curate("select", "--keep", 0.8, **place).stdout.strip()
    assert selection == "ssl_prototypes-hardest-0.8"
    assert curate("export", selection, "out", **place).stdout == "out\n"
    picture = curate("gallery", "--scoring", "random", "--count", 3, **place).stdout.strip()
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"
    sets = curate("list", **place)
    assert (sets.returncode, "ssl_prototypes-hardest-0.8" in sets.stdout) == (0, True)


def test_broken_samples_give_status_3_and_strict_makes_it_1(tmp_path):
    write_shard(tmp_path / "a.tar", [("good", {"png": png(1)}), ("torn", {"jpg": b"\xff\xd8\xff\xe0broken"})])
    words = ("embed", tmp_path / "a.tar", "--encoder", "pixels", "-c", tmp_path / "catalog")
    for options, status in (((), 3), (("--strict",), 1)):
        asked = curate(*words, *options)
        assert (asked.returncode, asked.stdout) == (status, "pixels\n")
        assert "curate query failures" in asked.stderr
        assert "1 samples embedded, 1 failed" in asked.stderr
    assert "Truncated File Read" in curate("query", "failures", "-c", tmp_path / "catalog").stdout


def test_a_truncated_tar_gives_status_3_and_keeps_what_is_whole(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    path.write_bytes(path.read_bytes()[: 20 * 512 + 700])
    asked = curate("embed", path, "--encoder", "pixels", "-c", tmp_path / "catalog")
    assert asked.returncode == 3
    assert "000.tar: the file is cut short in a member of" in asked.stderr
    assert len(rows(Catalog(tmp_path / "catalog"), "select * from samples")) == 3


def test_mistakes_give_one_line_and_status_1(tmp_path):
    catalog = make_catalog(tmp_path)
    where = ("-c", catalog.path)
    fails(curate("embed", tmp_path / "missing.tar", *where), "no shard at")
    fails(
        curate("embed", tmp_path / "corpus", "--encoder", "nosuch", *where),
        "no encoder called 'nosuch'; there are: efficientnet_lite0",
    )
    fails(curate("embed", tmp_path / "corpus", "--encoder", "pixels@4", "--name", "pixels", *where), "choose another --name")
    fails(curate("select", "--keep", 0.5, *where), "make one with `curate score METRIC`")
    fails(curate("export", "nothing", tmp_path / "out", *where), "make one with `curate select --keep F`")
    fails(curate("query", "select", *where), "no saved query called 'select'")
    fails(curate("query", "select * from nothing", *where), "There are: assignments, ")
    fails(curate("query", "select * from read_csv('/etc/passwd')", *where), "--allow-files lets a query read files")
    fails(curate("query", "nearest", *where), "curate: which sample? give --param sample_id=ID")
    fails(curate("validate", "--strategy", "easiest", *where), "for --keep: give that too")
    asked = curate("verify", tmp_path / "nothing", *where)
    assert asked.returncode == 1
    assert asked.stdout == f"{tmp_path}/nothing: there is no such folder; check the path of the export\n"
    fails(curate("cluster", "-c", tmp_path / "nowhere"), "make one with `curate embed SHARDS")
    fails(curate("list", "things", *where), "no list of 'things'; there are: encoders")
    fails(curate("gallery", "-o", tmp_path / "x.jpg", *where), "no scoring yet")
    fails(curate("embed", tmp_path / "corpus", "--encoder", "pixels@0", *where), "in pixels, from 1 to 4096")
    (tmp_path / "file").write_text("")
    fails(curate("embed", tmp_path / "corpus", "--encoder", "pixels", "-c", tmp_path / "file"), "choose a folder with -c")
    assert rows(catalog, "select count(*) from samples") == [(30,)]


def test_a_mistake_makes_no_catalog(tmp_path):
    where = ("-c", tmp_path / "catalog")
    fails(curate("plan", *where), "no catalog at")
    for words in (("plan",), ("embed", "--encoder", "pixels")):
        fails(curate(*words, "http://127.0.0.1:9/000.tar", *where), "no shard at")
    assert not (tmp_path / "catalog").exists()


def test_wrong_usage_gives_status_2(tmp_path):
    for words in (("select",), ("cluster", "--k", "many"), ("polish",), ("embed",), ("query", "sets", "--param", "x")):
        asked = curate(*words, cwd=tmp_path)
        assert asked.returncode == 2, words
        assert "Traceback" not in asked.stderr


def test_quiet_says_nothing_and_debug_shows_the_traceback(tmp_path):
    asked = curate("embed", *write_corpus(tmp_path / "corpus"), "--encoder", "pixels", "-c", tmp_path / "catalog", "--quiet")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "pixels\n", "")
    asked = curate("select", "--keep", 0.5, "-c", tmp_path / "catalog", "--debug")
    assert asked.returncode == 1
    assert "CurateError" in asked.stderr


def test_a_hub_that_cannot_be_reached_names_the_checkpoint_option(tmp_path):
    """The proxy of the environment leads nowhere, so no request leaves the machine and none waits for an answer."""
    shards = write_corpus(tmp_path / "corpus", 1)
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    for encoder in ("open_clip:ViT-B-32/laion2b_s34b_b79k", "timm:vit_tiny_patch16_224"):
        asked = curate("embed", *shards, "--encoder", encoder, "-c", tmp_path / "catalog", **offline)
        fails(asked, "give the file with --checkpoint")
        assert len(asked.stderr.splitlines()) == 1, asked.stderr


def test_ctrl_c_ends_politely_and_the_same_command_goes_on(tmp_path):
    # So many that the end is far when the signal comes.
    shards = write_corpus(tmp_path / "corpus", 48, 60, (96, 96))
    words = ["embed", *shards, "--encoder", "pixels@48", "-c", str(tmp_path / "catalog"), "-j", "1"]
    for signal_, name in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "interrupted")):
        process = subprocess.Popen(
            [sys.executable, "-m", "curate", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background may ignore it
        )  # fmt: skip
        folder = tmp_path / "catalog" / "embeddings" / "pixels@48"
        ready, deadline = len(list(folder.glob("[0-9]*"))), time.monotonic() + 60
        while len(list(folder.glob("[0-9]*"))) <= ready:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal_)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err == "curate: interrupted; what was finished is kept, and the same command goes on with the rest\n"
        assert rows(Catalog(tmp_path / "catalog"), "select last(status order by run_id) from runs") == [(name,)]
    assert "2,880 samples embedded, 0 failed" in curate(*words).stderr
    left = [path.name for path in (tmp_path / "catalog").rglob("*") if path.name.startswith((".tmp", ".lock", "pending"))]
    assert not left


def test_shards_come_over_http_and_a_server_that_fails_is_one_line(tmp_path):
    """A real server on the loopback; python's own http.server, which knows no byte ranges."""
    write_corpus(tmp_path / "corpus")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "corpus"))
    handler.func.log_message = lambda *words: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, words = f"http://127.0.0.1:{server.server_port}", ("--encoder", "pixels", "-c", tmp_path / "catalog")
        asked = curate("embed", f"{url}/{{000..002}}.tar", *words)
        assert (asked.returncode, asked.stdout) == (0, "pixels\n"), asked.stderr
        assert "3 shards, 30 samples embedded, 0 failed" in asked.stderr
        fails(curate("embed", f"{url}/nothere.tar", *words), "no shard at")
        server.shutdown()
    asked = curate("embed", f"{url}/000.tar", *words)
    fails(asked, "no shard at")
    assert len(asked.stderr.splitlines()) == 1


def test_a_recipe_whose_samples_failed_ends_with_3(tmp_path):
    write_shard(tmp_path / "a.tar", [("good", {"png": png(1)}), ("torn", {"png": b"broken"})])
    (tmp_path / "r.toml").write_text('catalog = "c"\n[embed]\nshards = "a.tar"\nencoder = "pixels"\n')
    for options, status in (((), 3), (("--strict",), 1), (("--dry-run",), 0)):
        assert curate("run", "r.toml", *options, cwd=tmp_path).returncode == status


def test_the_readmes_metric_is_a_metric(catalog):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "@metric" in text)
    names = set(metrics)
    try:
        exec(compile(block, "length.py", "exec"), {})
        (name,) = set(metrics) - names
        found = metrics[name](np.array([[3.0, 4.0]]))
        assert (name, found.tolist()) == ("length", [5.0])
    finally:
        metrics.pop("length", None)


@pytest.mark.parametrize(
    "command", ["embed", "cluster", "score", "select", "query", "export", "gallery", "run", "list", "demo"]
)
def test_every_command_has_help_with_an_example(command):
    asked = curate(command, "--help")
    assert asked.returncode == 0
    assert f"curate {command}" in asked.stdout.split("Example")[1]
