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
from conftest import make_catalog, png, rows, run_curate, write_corpus, write_shard

from curate.catalog.catalog import Catalog
from curate.cli.commands import COMMANDS
from curate.metrics import metrics

README = Path(__file__).resolve().parents[2] / "README.md"


def curate(
    *words: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return run_curate(*words, cwd=cwd, env={**os.environ, **environment})


def assert_fails(run: subprocess.CompletedProcess[str], reason: str, status: int = 1) -> None:
    assert run.returncode == status, run.stderr
    assert reason in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_the_chain_prints_one_name_a_command_so_that_shells_can_chain(tmp_path):
    write_corpus(tmp_path / "corpus")

    def run(*words: object) -> str:
        return curate(*words, cwd=tmp_path, CURATE_CATALOG="my-catalog").stdout

    assert run("embed", "corpus/{000..002}.tar", "--encoder", "pixels") == "pixels\n"
    assert run("cluster", "--k", 3) == "kmeans\n"
    assert run("score", "ssl_prototypes", "random") == "ssl_prototypes\nrandom\n"
    selection = run("select", "--keep", 0.8).strip()
    assert selection == "ssl_prototypes-hardest-0.8"
    assert run("export", selection, "out") == "out\n"
    picture = run("gallery", "--scoring", "random", "--count", 3).strip()
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"
    listing = curate("list", cwd=tmp_path, CURATE_CATALOG="my-catalog")
    assert listing.returncode == 0
    assert "ssl_prototypes-hardest-0.8" in listing.stdout


def test_broken_samples_give_status_3_and_strict_makes_it_1(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [("good", {"png": png(1)}), ("torn", {"jpg": b"\xff\xd8\xff\xe0broken"})],
    )
    words = ("embed", tmp_path / "a.tar", "--encoder", "pixels", "-c", tmp_path / "catalog")
    for options, status in (((), 3), (("--strict",), 1)):
        run = curate(*words, *options)
        assert (run.returncode, run.stdout) == (status, "pixels\n")
        assert "curate query failures" in run.stderr
        assert "1 samples embedded, 1 failed" in run.stderr
    assert "Truncated File Read" in curate("query", "failures", "-c", tmp_path / "catalog").stdout


def test_a_truncated_tar_gives_status_3_and_keeps_what_is_whole(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    path.write_bytes(path.read_bytes()[: 20 * 512 + 700])
    run = curate("embed", path, "--encoder", "pixels", "-c", tmp_path / "catalog")
    assert run.returncode == 3
    assert "000.tar: the file is cut short in a member of" in run.stderr
    assert len(rows(Catalog(tmp_path / "catalog"), "select * from samples")) == 3


@pytest.fixture(scope="module")
def small_catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog that no test changes."""
    return make_catalog(tmp_path_factory.mktemp("cli"))


# {corpus} are the shards of the catalog, which has no scorings; {folder} is the test's own.
FAILURES = [
    (["embed", "{folder}/missing.tar"], 1, "no shard at"),
    (
        ["embed", "{corpus}", "--encoder", "nosuch"],
        2,
        "no encoder called 'nosuch'; there are: efficientnet_lite0",
    ),
    (
        ["embed", "{corpus}", "--encoder", "pixels@4", "--name", "pixels"],
        1,
        "choose another --name",
    ),
    (["embed", "{corpus}", "--encoder", "pixels@0"], 2, "in pixels, from 1 to 4096"),
    (
        ["embed", "{corpus}", "--encoder", "pixels", "-c", "{folder}/file"],
        1,
        "choose a folder with -c",
    ),
    (["cluster", "-c", "{folder}/nowhere"], 1, "make one with `curate embed SHARDS"),
    (["select", "--keep", "0.5"], 1, "make one with `curate score METRIC`"),
    (["export", "nothing", "{folder}/out"], 1, "make one with `curate select --keep F`"),
    (["gallery", "-o", "{folder}/x.png"], 1, "no scoring yet"),
    (["gallery", "-o", "{folder}/x.jpg"], 2, "give --out a name that ends in .png"),
    (["validate", "--strategy", "easiest"], 2, "for --keep: give that too"),
    (["list", "things"], 2, "SUBJECT things: choose one of encoders, "),
    (["query", "select"], 2, "no saved query called 'select'"),
    (["query", "select * from nothing"], 1, "There are: assignments, "),
    (
        ["query", "select * from read_csv('/etc/passwd')"],
        1,
        "--allow-files lets a query read files",
    ),
    (["query", "nearest"], 1, "curate: which sample? give --param sample_id=ID"),
]


@pytest.mark.parametrize(("words", "status", "reason"), FAILURES)
def test_a_mistake_is_one_line_and_a_status(small_catalog, tmp_path, words, status, reason):
    (tmp_path / "file").write_text("")
    corpus = small_catalog.path.with_name("corpus")
    words = [word.format(corpus=corpus, folder=tmp_path) for word in words]
    assert_fails(curate(*words, CURATE_CATALOG=str(small_catalog.path)), reason, status)
    assert rows(small_catalog, "select count(*) from samples") == [(30,)]


def test_verify_of_an_export_that_is_not_there_prints_the_issue(small_catalog, tmp_path):
    run = curate("verify", tmp_path / "nothing", "-c", small_catalog.path)
    assert run.returncode == 1
    issue = f"{tmp_path}/nothing: there is no such folder; check the path of the export\n"
    assert run.stdout == issue


def test_a_mistake_makes_no_catalog(tmp_path):
    to_catalog = ("-c", tmp_path / "catalog")
    assert_fails(curate("plan", *to_catalog), "no catalog at")
    for words in (("plan",), ("embed", "--encoder", "pixels")):
        run = curate(*words, "http://127.0.0.1:9/000.tar", *to_catalog)
        assert_fails(run, "connection refused")
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("select",),
        ("cluster", "--k", "many"),
        ("polish",),
        ("embed",),
        ("query", "sets", "--param", "x"),
        ("select", "--kep", "0.5"),
    ],
)
def test_wrong_usage_gives_status_2(tmp_path, words):
    run = curate(*words, cwd=tmp_path)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_quiet_says_nothing_and_debug_shows_the_traceback(tmp_path):
    shards = write_corpus(tmp_path / "corpus")
    to_catalog = ("-c", tmp_path / "catalog")
    run = curate("embed", *shards, "--encoder", "pixels", *to_catalog, "--quiet")
    assert (run.returncode, run.stdout, run.stderr) == (0, "pixels\n", "")
    run = curate("select", "--keep", 0.5, *to_catalog, "--debug")
    assert run.returncode == 1
    assert "CurateError" in run.stderr


def test_a_hub_out_of_reach_names_the_checkpoint_option(tmp_path):
    """The proxy leads nowhere, so no request leaves the machine, and none waits for an answer."""
    shards = write_corpus(tmp_path / "corpus", 1)
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    for encoder in ("open_clip:ViT-B-32/laion2b_s34b_b79k", "timm:vit_tiny_patch16_224"):
        words = ("embed", *shards, "--encoder", encoder, "-c", tmp_path / "catalog")
        run = curate(*words, **offline)
        assert_fails(run, "give the file with --checkpoint")
        *announced, error = run.stderr.splitlines()
        assert announced == [f"embed: loading the encoder {encoder} …"], run.stderr
        assert error.startswith("curate: ")


def test_ctrl_c_ends_politely_and_the_same_command_goes_on(tmp_path):
    # So many that the end is far when the signal comes.
    shards = write_corpus(tmp_path / "corpus", 48, 60, (96, 96))
    catalog = Catalog(tmp_path / "catalog")
    words = ["embed", *shards, "--encoder", "pixels@48", "-c", str(catalog.path), "-j", "1"]
    vectors = catalog.path / "embeddings" / "pixels@48"
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "curate", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background may ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        num_files, deadline = len(list(vectors.glob("[0-9]*"))), time.monotonic() + 60
        while len(list(vectors.glob("[0-9]*"))) <= num_files:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal_number)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert errors.splitlines()[-1] == (
            "curate: interrupted; what was finished is kept, "
            "and the same command goes on with the rest"
        )
        assert all(line.endswith(" …") for line in errors.splitlines()[:-1]), errors
        status = rows(catalog, "select last(status order by run_id) from runs")
        assert status == [("interrupted",)]
    assert "2,880 samples embedded, 0 failed" in curate(*words).stderr
    names = [path.name for path in catalog.path.rglob("*")]
    assert not [name for name in names if name.startswith((".tmp", ".lock", "pending"))]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


def test_shards_come_over_http_and_a_server_that_fails_is_one_line(tmp_path):
    """A real server on the loopback; python's own http.server, which knows no byte ranges."""
    write_corpus(tmp_path / "corpus")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "corpus"))
    options = ("--encoder", "pixels", "-c", tmp_path / "catalog")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        run = curate("embed", f"{url}/{{000..002}}.tar", *options)
        assert (run.returncode, run.stdout) == (0, "pixels\n"), run.stderr
        assert "3 shards, 30 samples embedded, 0 failed" in run.stderr
        assert_fails(curate("embed", f"{url}/nothere.tar", *options), "no shard at")
        server.shutdown()
    run = curate("embed", f"{url}/000.tar", *options)
    assert_fails(run, "connection refused")
    assert len(run.stderr.splitlines()) == 1


def test_a_recipe_whose_samples_failed_ends_with_3(tmp_path):
    write_shard(tmp_path / "a.tar", [("good", {"png": png(1)}), ("torn", {"png": b"broken"})])
    (tmp_path / "r.toml").write_text(
        'catalog = "c"\n[embed]\nshards = "a.tar"\nencoder = "pixels"\n'
    )
    for options, status in (((), 3), (("--strict",), 1), (("--dry-run",), 0)):
        assert curate("run", "r.toml", *options, cwd=tmp_path).returncode == status


def test_the_readmes_metric_is_a_metric():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = (text for text in blocks if "@metric" in text)
    names = set(metrics)
    try:
        exec(compile(block, "length.py", "exec"), {})
        (name,) = set(metrics) - names
        scores = metrics[name](np.array([[3.0, 4.0]]))
        assert (name, scores.tolist()) == ("length", [5.0])
    finally:
        metrics.pop("length", None)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    run = curate(command, "--help")
    assert run.returncode == 0
    assert f"curate {command}" in run.stdout.rpartition("Example")[2]
