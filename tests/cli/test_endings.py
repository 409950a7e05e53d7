"""How commands end: by signals, in a deleted folder, with names that are no text, in a pipe."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import rows, run_curate, write_corpus, write_shard
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.cli import app
from curate.cli.output import print_table
from curate.errors import CurateError

SHARED_MEMORY = Path("/dev/shm")


def wait_for_workers(process: subprocess.Popen[str]) -> None:
    """Until two worker processes of a command have started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        commands = []
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                commands.append(Path(f"/proc/{child}/cmdline").read_text())
        if sum("spawn_main" in command for command in commands) == 2:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_a_signal_to_all_processes_leaves_no_run_and_no_semaphore(tmp_path, name):
    """As a terminal that is closed sends it to a command and its workers."""
    catalog = Catalog(tmp_path / "catalog")
    shards = write_corpus(tmp_path / "corpus", 8, 20, (64, 64))
    words = ("embed", *shards, "--encoder", "pixels@32", "-c", str(catalog.path), "-j", "2")
    command = [sys.executable, "-m", "curate", *words]
    semaphores = set(SHARED_MEMORY.glob("sem.*"))
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=reset_signals,
    )
    wait_for_workers(process)
    os.killpg(process.pid, getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("curate: interrupted")
    assert "resource_tracker" not in errors
    own = [path for path in set(SHARED_MEMORY.glob("sem.*")) - semaphores if is_left(path)]
    assert own == []
    assert rows(catalog, "select status from runs") == [("interrupted",)]


def reset_signals() -> None:
    """A shell ignores SIGQUIT and SIGINT for what it runs in the background, tests included."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def is_left(path: Path) -> bool:
    """Whether a semaphore is still there after a while; other tests make some and remove them."""
    for _ in range(100):
        if not path.exists():
            return False
        time.sleep(0.05)
    return True


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from curate.cli.app import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "assert callable(signal.getsignal(signal.SIGQUIT))\n"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, capture_output=True, preexec_fn=reset_signals)


def test_a_working_folder_that_was_deleted_is_said(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    program = (
        "import os, sys\nos.rmdir(os.getcwd())\n"
        "from curate.cli.app import main\nmain(['query', 'select 1'])\n"
    )
    paths = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    environment = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr == (
        "curate: the working folder does not exist any more: change to another (cd)\n"
    )


def test_names_that_are_not_utf_8_are_one_line(tmp_path, capsys):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(CurateError, match="is not UTF-8: choose another folder with -c"):
        Catalog(name)
    for words in (["query", "select 1", "-c", name], ["export", "half", name], ["run", name]):
        with pytest.raises(SystemExit) as end:
            app.main(words)
        assert end.value.code == 2
        errors = capsys.readouterr().err
        assert "is not UTF-8" in errors
        assert errors.count("\n") == 1


def test_no_colours_reach_a_pipe_even_where_colours_are_forced(monkeypatch):
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    file = io.StringIO()
    print_table(["number", "text"], [(1, "one")], file)
    assert "\x1b" not in file.getvalue()
    assert "one" in file.getvalue()


def test_warnings_of_libraries_reach_nobody_but_those_who_ask(monkeypatch):
    program = (
        "import sys, warnings\nfrom curate.cli import app\n"
        "app._silence_libraries(debug='--debug' in sys.argv)\n"
        "warnings.warn('from a library')\n"
        "import subprocess\n"
        "from huggingface_hub.utils import logging\n"
        "logging.get_logger('huggingface_hub.x').warning('from the hub')\n"
        "worker = 'import warnings; warnings.warn(1 * \"in a worker\")'\n"
        "subprocess.run([sys.executable, '-c', worker])\n"
    )
    command = [sys.executable, "-c", program]
    for name in ("PYTHONWARNINGS", "HF_HUB_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    plain = subprocess.run(command, capture_output=True, text=True)
    assert plain.stderr == ""
    asked = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert "from a library" in asked.stderr
    assert "from the hub" in asked.stderr
    assert "in a worker" in asked.stderr


def test_pictures_that_a_library_warns_of_say_nothing(tmp_path):
    file = io.BytesIO()
    picture = Image.new("P", (8, 8))
    picture.save(file, format="PNG", transparency=bytes([0, 255]))
    shard = write_shard(tmp_path / "a.tar", [("a", {"png": file.getvalue()})])
    words = ("embed", shard, "--encoder", "pixels", "-c", tmp_path / "catalog", "-j", 1)
    run = run_curate(*words)
    assert run.returncode == 0
    assert [line.split()[0] for line in run.stderr.splitlines()] == ["embed:", "embedding", "next:"]
    assert "1 samples embedded" in run.stderr
