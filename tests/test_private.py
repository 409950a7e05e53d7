"""Nothing leaves the machine: what the chain opens, looks up and writes, as the kernel sees it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import write_corpus
from onnx import TensorProto, helper

CHAIN = """
import sys, curate
folder, encoder = sys.argv[1:]
catalog, out = f"{folder}/catalog", f"{folder}/out"
if __name__ == "__main__":
    curate.embed(catalog, f"{folder}/corpus", encoder=encoder, name="e", workers=2)
    curate.cluster(catalog, k=3)
    curate.probe(catalog, count=1, epochs=1)
    curate.score(catalog, ["ssl_prototypes", "el2n"])
    curate.validate(catalog, keep=0.5, scoring="el2n", seeds=2, epochs=1)
    curate.select(catalog, keep=0.5, scoring="el2n", name="half")
    curate.export(catalog, "half", out)
    curate.gallery(catalog, scoring="el2n")
    curate.report(catalog)
    assert curate.verify(catalog, [out]) == []
    curate.query(catalog, "sets")
    curate.plan(catalog)
"""


def write_network(path: Path) -> None:
    """Mean colours: [n, 3, 8, 8] -> [n, 3, 1, 1]."""
    pool = helper.make_node("GlobalAveragePool", ["images"], ["vectors"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", ["n", 3, 8, 8]), ("vectors", ["n", 3, 1, 1]))
    ]
    graph = helper.make_graph([pool], "mean", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.slow
def test_the_chain_asks_nobody_and_writes_nowhere_else(tmp_path):
    """In a home of its own, with an ONNX encoder, whose runtime has telemetry of its own."""
    if not shutil.which("strace"):
        pytest.skip("no strace to watch with")
    write_corpus(tmp_path / "corpus", 4, 30)
    write_network(tmp_path / "mean.onnx")
    (tmp_path / "chain.py").write_text(CHAIN)
    for name in ("home", "temporary", "empty"):
        (tmp_path / name).mkdir()
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    trace = tmp_path / "trace"
    watch = f"strace -f -qq -e trace=connect,openat,creat,mkdir -o {trace}".split()
    chain = [sys.executable, tmp_path / "chain.py", tmp_path, f"onnx:{tmp_path}/mean.onnx"]
    subprocess.run(
        [*watch, *chain],
        cwd=tmp_path / "empty",
        env=environment,
        check=True,
        capture_output=True,
    )
    calls = trace.read_text(errors="replace").splitlines()
    assert len(calls) > 1000
    assert [call for call in calls if " connect(" in call and "AF_INET" in call] == []
    assert [call for call in calls if "resolv.conf" in call] == []
    written = {
        match[1]
        for call in calls
        if ("O_CREAT" in call or "mkdir(" in call or "creat(" in call) and "= -1" not in call
        if (match := re.search(r'"([^"]+)"', call))
    }
    allowed = tuple(str(tmp_path / name) for name in ("catalog", "out", "temporary"))
    assert written
    elsewhere = {path for path in written if path.startswith("/") and not path.startswith("/dev/")}
    assert {path for path in elsewhere if not path.startswith(allowed)} == set()
    for name in ("home", "empty"):
        assert list((tmp_path / name).iterdir()) == []


def test_libraries_telemetry_is_switched_off_before_they_are_imported():
    command = "import curate, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "1\n"
