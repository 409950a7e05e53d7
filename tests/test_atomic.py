import os
import subprocess
import sys

import pytest

from curate.atomic import locked, replacing, workspace


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
    program = "import sys, os; from pathlib import Path; from curate.atomic import workspace\n" \
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
