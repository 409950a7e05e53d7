"""A short run of the fuzzer over the shard reader and the recipe loader; see `make fuzz`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no build for this platform")
FOLDER = Path(__file__).parent


@pytest.mark.parametrize(("target", "runs"), [("tar", 20_000), ("recipe", 3_000)])
def test_no_bytes_break_it(tmp_path, target, runs):
    shutil.copytree(FOLDER / "seeds" / target, tmp_path / "corpus")
    runs = int(os.environ.get("CURATE_FUZZ_RUNS", runs))
    command = [
        sys.executable,
        str(FOLDER / "fuzz.py"),
        target,
        f"-runs={runs}",
        "-seed=1",
        "-max_len=8192",
        "-rss_limit_mb=0",
        "-timeout=10",
        f"-artifact_prefix={tmp_path}/",
        str(tmp_path / "corpus"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"Done {runs} runs" in run.stderr
