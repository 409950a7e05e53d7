"""A full disk, a read-only folder, shards that vanish or change, workers that die.

Each is one line, and what was finished stays.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from conftest import members, rows, write_corpus

from curate.catalog.catalog import Catalog
from curate.stages.cluster.stage import cluster
from curate.stages.embed import worker as embed_worker
from curate.stages.embed.stage import embed
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.storage import files
from curate.storage.mapped import create_array

# The limit holds for this process and its workers only; the signal that would end them becomes an
# error, as on a full disk.
FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from curate.cli.app import main
main(sys.argv[2:])
"""
# The command runs once in another folder, which imports all that it needs; then the process becomes
# the user nobody, who may write nowhere.
NOBODY = """
import os, sys
from curate.cli.app import main
try:
    main([sys.argv[1] if word == sys.argv[2] else word for word in sys.argv[3:]])
except SystemExit:
    pass
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
main(sys.argv[3:])
"""


def run_program(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_one_line(run: subprocess.CompletedProcess[str], reason: str) -> None:
    assert run.returncode == 1, run.stderr
    last_line = run.stderr.splitlines()[-1]
    assert last_line.startswith("curate: "), run.stderr
    assert reason in last_line
    assert "Traceback" not in run.stderr


def test_a_full_disk_ends_embed_in_one_line_and_what_was_finished_stays(tmp_path):
    shards = write_corpus(tmp_path / "corpus", 3, 40)
    catalog = Catalog(tmp_path / "catalog").create()
    embed(catalog, shards[:1], encoder="pixels@32", workers=1)
    words = ("embed", *shards, "--encoder", "pixels@32", "-c", catalog.path, "-j", 1)
    run = run_program(FULL_DISK, 100_000, *words)
    assert run.returncode == 3, run.stderr
    assert "cannot be read" not in run.stderr
    assert "File too large" in run.stderr
    assert verify(catalog) == []
    embed(catalog, shards, encoder="pixels@32", workers=1)
    assert rows(catalog, "select sum(num_embedded) from embedded_shards") == [(120,)]
    assert verify(catalog, check_sources=True) == []


def test_what_is_mapped_is_on_the_disk_before_it_is_written(tmp_path):
    """Else a full disk ends the process by SIGBUS."""
    path = tmp_path / "rows.npy"
    array = create_array(path, np.float16, (1000, 500))
    status = path.stat()
    assert 512 * status.st_blocks >= status.st_size > 1_000_000
    array[-1] = 1
    del array
    assert np.load(path)[-1].tolist() == [1] * 500


def test_a_full_disk_ends_a_probe_in_one_line(tmp_path):
    """On a small file system, where this process may mount one."""
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_corpus(tmp_path / "corpus", 2, 400), encoder="pixels", workers=1)
    (tmp_path / "small").mkdir()
    program = f"""
mount -t tmpfs -o size=9m none {tmp_path}/small || exit 77
cp -r {catalog.path} {tmp_path}/small/catalog || exit 77
dd if=/dev/zero of={tmp_path}/small/rest bs=1k count=10000 2>/dev/null
truncate -s -40k {tmp_path}/small/rest
{sys.executable} -m curate probe --model ridge -c {tmp_path}/small/catalog
"""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip(f"no file system can be mounted: {run.stderr}")
    assert_one_line(run, "No space left on device")


def test_a_full_disk_at_the_commit_of_a_selection_keeps_the_old_one(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_corpus(tmp_path / "corpus"), encoder="pixels", workers=1)
    score(catalog, "random")
    select(catalog, keep=0.5, scoring="random", name="half")
    kept = members(catalog, "half")
    words = ("select", "--keep", 0.3, "--scoring", "random", "--name", "half", "-c", catalog.path)
    run = run_program(FULL_DISK, 256, *words)
    assert_one_line(run, "")
    assert members(catalog, "half") == kept
    assert verify(catalog) == []


@pytest.mark.skipif(os.name != "posix", reason="users are those of POSIX")
def test_a_folder_where_one_may_not_write_is_assert_one_line(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    shards = write_corpus(tmp_path / "corpus")
    embed(catalog, shards, encoder="pixels", workers=1)
    score(catalog, "random")
    for path in (tmp_path, *tmp_path.rglob("*")):  # everybody may read, nobody write
        path.chmod(0o555 if path.is_dir() else 0o444)
    for folder in tmp_path.parents[:2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    try:
        new, elsewhere = tmp_path / "new", tmp_path.with_name(f"{tmp_path.name}-elsewhere")
        words = ("embed", *shards, "--encoder", "pixels", "-c", new)
        assert_one_line(run_program(NOBODY, elsewhere, new, *words), "ermission denied")
        shutil.copytree(catalog.path, elsewhere, dirs_exist_ok=True)
        words = ("select", "--keep", 0.5, "--scoring", "random", "-c", catalog.path)
        assert_one_line(run_program(NOBODY, elsewhere, catalog.path, *words), "ermission denied")
    finally:
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert verify(catalog) == []


def test_a_shard_that_vanishes_under_embed_is_a_failure_and_is_read_when_it_is_back(
    tmp_path, monkeypatch
):
    shards = write_corpus(tmp_path / "corpus")
    open_binary, data = files.open_binary, Path(shards[1]).read_bytes()

    def open_too_late(location: str, **options: bool) -> BinaryIO:
        if location == shards[1]:
            Path(location).unlink(missing_ok=True)
        return open_binary(location, **options)

    catalog = Catalog(tmp_path / "catalog")
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_binary", open_too_late)
        embed(catalog, shards, encoder="pixels", workers=1)
    ((error,),) = rows(catalog, "select error from failures")
    assert "No such file" in error
    assert rows(catalog, "select sum(num_embedded) from embedded_shards") == [(20,)]
    Path(shards[1]).write_bytes(data)
    embed(catalog, shards, encoder="pixels", workers=1)
    assert rows(catalog, "select sum(num_embedded) from embedded_shards") == [(30,)]
    assert rows(catalog, "select count(*) from failures") == [(0,)]


def test_a_shard_that_changes_under_embed_is_not_taken_for_what_it_was(tmp_path, monkeypatch):
    shards = write_corpus(tmp_path / "corpus", 2)
    decode_members = embed_worker._decode_members

    def touch_and_decode(*arguments: Any) -> None:
        os.utime(shards[0], ns=(time.time_ns(), time.time_ns()))
        decode_members(*arguments)

    monkeypatch.setattr(embed_worker, "_decode_members", touch_and_decode)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shards[:1], encoder="pixels", workers=1)
    assert rows(catalog, "select error from failures") == [("it changed while it was read",)]
    assert rows(catalog, "select count(*) from embedded_shards") == [(0,)]
    assert Path(shards[0]).stat().st_size > 0


def list_children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def list_workers(pid: int) -> list[int]:
    """The workers of a command: started by it, or forked from a process that it has started."""
    workers = []
    for child in list_children(pid):
        command = Path(f"/proc/{child}/cmdline")
        is_spawned = command.exists() and "spawn_main" in command.read_text()
        workers += [child] if is_spawned else list_children(child)
    return workers


def wait_for_workers(process: subprocess.Popen[str], count: int) -> list[int]:
    """The worker processes of a command as soon as there are so many; none if it ends before."""
    while process.poll() is None:
        workers = list_workers(process.pid)
        if len(workers) >= count:
            return workers
        time.sleep(0.005)
    return []


def kill_a_worker(process: subprocess.Popen[str]) -> bool:
    """Kill one of the two workers of a command; False where none start."""
    for worker in wait_for_workers(process, 2)[:1]:
        os.kill(worker, signal.SIGKILL)
        return True
    return False


@pytest.mark.parametrize("encoder", ["pixels@32", "pixels@96"], ids=["spawned", "forked"])
def test_nothing_runs_on_when_a_command_is_killed(tmp_path, encoder):
    shards = write_corpus(tmp_path / "corpus", 8, 40, (64, 64))
    command = [sys.executable, "-m", "curate", "embed", *shards, "--encoder", encoder, "-j", "2"]
    process = subprocess.Popen([*command, "-c", str(tmp_path / "catalog")], start_new_session=True)
    assert len(wait_for_workers(process, 2)) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while True:  # every process of its session
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("encoder", ["pixels@32", "pixels@96"], ids=["spawned", "forked"])
def test_files_of_the_users_folder_are_not_run_for_pythons_modules(tmp_path, encoder):
    shards = write_corpus(tmp_path / "corpus", 4, 10, (64, 64))
    folder = tmp_path / "here"
    folder.mkdir()
    for module in ("types", "random", "queue", "signal", "socket", "pickle", "torch"):
        (folder / f"{module}.py").write_text("open('was-run', 'w')")
    # The command `curate` begins with its own folder in place of this one.
    program = "import sys; sys.path.pop(0); from curate.cli.app import main; main()"
    words = ["embed", *shards, "--encoder", encoder, "-j", "2", "-c", str(tmp_path / "catalog")]
    run = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize("encoder", ["pixels@32", "pixels@96"], ids=["spawned", "forked"])
@pytest.mark.parametrize("verb", ["embed", "cluster"])
def test_a_worker_that_is_killed_is_one_line_and_the_same_command_goes_on(tmp_path, verb, encoder):
    """As the kernel does where memory runs out."""
    shards = write_corpus(tmp_path / "corpus", 8, 40, (64, 64))
    catalog = Catalog(tmp_path / "catalog")
    words = ["embed", *shards, "--encoder", encoder]
    if verb == "cluster":
        embed(catalog, shards, encoder="pixels", workers=1)
        words = ["cluster", "--k", "3"]
    command = [sys.executable, "-m", "curate", *words, "-c", str(catalog.path), "-j", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_a_worker, process)
        out, errors = process.communicate(timeout=120)
        assert killing.result()
    run = subprocess.CompletedProcess(command, process.returncode, out, errors)
    assert_one_line(run, "a worker process died, possibly out of memory")
    if verb == "embed":
        embed(catalog, shards, encoder="pixels@32", workers=1)
        assert rows(catalog, "select sum(num_embedded) from embedded_shards") == [(320,)]
    else:
        cluster(catalog, k=3)
    assert verify(catalog) == []


def test_two_clusterings_of_one_name_at_once_leave_one_whole(tmp_path):
    """Both commit; whoever is last replaces the other, in one transaction."""
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, write_corpus(tmp_path / "corpus", 3, 40), encoder="pixels", workers=1)
    command = [sys.executable, "-m", "curate", "cluster", "-c", str(catalog.path), "--k"]
    processes = [
        subprocess.Popen([*command, str(k)], stderr=subprocess.PIPE, text=True) for k in (3, 5)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert rows(catalog, "select k in (3, 5), num_samples from clusterings") == [(True, 120)]
    assert verify(catalog) == []
