import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from curate.storage import locks
from curate.storage.locks import local_tempdir, lock_folder, remove_stale, temporary_folder

# Makes a temporary folder, prints its path, and keeps it until stdin closes.
HOLD_TEMPORARY_FOLDER = """
import sys
from pathlib import Path
from curate.storage.locks import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
DIE_IN_LOCAL_TEMPDIR = """
import os
from curate.storage.locks import local_tempdir
with local_tempdir() as folder:
    (folder / "big").touch()
    os.kill(os.getpid(), 9)
"""


def test_one_process_holds_a_lock_at_a_time_and_nothing_is_left_of_it(tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(BlockingIOError, match=str(os.getpid())),
        lock_folder(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_of_a_dead_process_is_removed_and_that_of_a_live_one_is_not(tmp_path):
    command = [sys.executable, "-c", HOLD_TEMPORARY_FOLDER, str(tmp_path)]
    dead, live = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    dead_folder, live_folder = dead.stdout.readline().strip(), live.stdout.readline().strip()
    dead.kill()
    dead.communicate()
    assert os.path.isdir(dead_folder)
    with temporary_folder(tmp_path) as own_folder:
        assert {str(path) for path in tmp_path.iterdir()} == {live_folder, str(own_folder)}
    live.communicate("")
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_is_another_where_a_process_took_the_first_for_a_dead_ones(
    tmp_path, monkeypatch
):
    folders = []

    def make_and_lock_the_first(**options: object) -> str:
        folders.append(mkdtemp(**options))
        if len(folders) == 1:
            other_process.enter_context(lock_folder(Path(folders[0])))
        return folders[-1]

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(locks.tempfile, "mkdtemp", make_and_lock_the_first)
    with contextlib.ExitStack() as other_process, temporary_folder(tmp_path) as own_folder:
        assert [str(own_folder)] == folders[1:]


def test_temporary_files_are_removed_after_a_day(tmp_path):
    """A process that writes one holds no lock: `query -o` into the catalog's own folder, say."""
    old, new, other = (tmp_path / name for name in (".tmp-old.csv", ".tmp-new.csv", "kept.csv"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_stale(tmp_path)
    assert {*tmp_path.iterdir()} == {new, other}


def test_local_temporary_files_of_a_dead_process_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", DIE_IN_LOCAL_TEMPDIR], env=environment)
    assert len(list(tmp_path.rglob("big"))) == 1
    with local_tempdir() as own_folder:
        assert [path for path in own_folder.parent.iterdir() if path != own_folder] == []
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    (tmp_path / "curate-4711").symlink_to(tmp_path)
    with (
        pytest.raises(PermissionError, match="belongs to another user: set TMPDIR"),
        local_tempdir(),
    ):
        pass
