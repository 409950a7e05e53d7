import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from curate import workspaces
from curate.atomic import replacing
from curate.workspaces import locked, scratch, tidy, workspace


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="half-way"), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ValueError("half-way")
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "whole"


def test_one_holder_at_a_time_and_nothing_left_behind(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match=str(os.getpid())), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_workspace_sweeps_what_the_dead_left_and_leaves_the_living_alone(tmp_path):
    program = "import sys, os; from pathlib import Path; from curate.workspaces import workspace\n" \
              "with workspace(Path(sys.argv[1])) as folder:\n    print(folder, flush=True)\n    sys.stdin.read()\n"  # fmt: skip
    command = [sys.executable, "-c", program, str(tmp_path)]
    dead, living = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2))
    left, held = dead.stdout.readline().strip(), living.stdout.readline().strip()
    dead.kill()
    dead.communicate()
    assert os.path.isdir(left)
    with workspace(tmp_path) as ours:
        assert {str(path) for path in tmp_path.iterdir()} == {held, str(ours)}
    living.communicate("")
    assert not list(tmp_path.iterdir())


def test_a_workspace_is_our_own_even_where_another_process_takes_it_for_a_dead_ones(tmp_path, monkeypatch):
    made = []

    def taken(**options: object) -> str:
        made.append(mkdtemp(**options))
        if len(made) == 1:
            other.enter_context(locked(Path(made[0])))
        return made[-1]

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(workspaces.tempfile, "mkdtemp", taken)
    with contextlib.ExitStack() as other, workspace(tmp_path) as ours:
        assert [str(ours)] == made[1:]


def test_files_are_forgotten_after_a_day(tmp_path):
    """A process that writes one holds no lock: `query -o` into the catalog's own folder, say."""
    old, new, other = (tmp_path / name for name in (".tmp-old.csv", ".tmp-new.csv", "kept.csv"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    tidy(tmp_path)
    assert {*tmp_path.iterdir()} == {new, other}


def test_what_was_under_way_to_a_store_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import os\nfrom curate.workspaces import scratch\nwith scratch() as folder:\n    (folder / 'big').touch()\n" \
              "    os.kill(os.getpid(), 9)\n"  # fmt: skip
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.rglob("big"))) == 1
    with scratch() as ours:
        assert [path for path in ours.parent.iterdir() if path != ours] == []
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    (tmp_path / "curate-4711").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="another user's: set TMPDIR"), scratch():
        pass
