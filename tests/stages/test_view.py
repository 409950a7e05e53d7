import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import TIMEOUT, Browser, start_browser
from conftest import make_catalog, rows
from PIL import Image
from scipy.ndimage import label

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError

# Writes down its arguments, and exports a file or a folder as embedding-atlas does.
FAKE_ATLAS = """#!{python}
import json, os, pathlib, sys
arguments = sys.argv[1:]
pathlib.Path(os.environ["FAKE_ATLAS_LOG"]).write_text(json.dumps(arguments))
if os.environ.get("FAKE_ATLAS_FAILS"):
    print("something is wrong")
    sys.exit(1)
out = pathlib.Path(arguments[arguments.index("--export-application") + 1])
if out.suffix == ".zip":
    out.write_bytes(b"PK")
else:
    (out / "data").mkdir(parents=True)
"""
# Chromium's WebGPU, in software. Its canvas is shown only where the page is drawn by Vulkan.
WEBGPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)


@pytest.fixture(scope="module")
def kept_half(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Thirty samples with a clustering, a scoring and a selection."""
    catalog = make_catalog(tmp_path_factory.mktemp("view"))
    curate.cluster(catalog, k=3)
    curate.score(catalog, "ssl_prototypes")
    curate.select(catalog, keep=0.5, name="half")
    return catalog


@pytest.fixture
def atlas_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedding-atlas on the PATH that only notes how it is called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "embedding-atlas"
    program.write_text(FAKE_ATLAS.format(python=sys.executable))
    program.chmod(0o755)
    log_path = tmp_path / "arguments.json"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ATLAS_LOG", str(log_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no" / "python"))
    return log_path


def test_the_table_has_an_image_a_place_and_every_column(kept_half, tmp_path, atlas_log):
    out = curate.view(kept_half, out=tmp_path / "atlas")
    assert out == str(tmp_path / "atlas")
    table = pq.read_table(kept_half.path / "view" / "samples.parquet")
    assert len(table) == 30
    with kept_half.reading() as connection:
        columns = [row[0] for row in connection.execute("describe sample_scores").fetchall()]
    assert set(columns) <= set(table.schema.names), "under the names that --where takes"
    assert table["kept"].to_pylist().count("kept") == 15
    kept_ids = {sample_id for (sample_id,) in rows(kept_half, "select sample_id from members")}
    for row in table.select(["sample_id", "kept", "image", "x", "neighbors"]).to_pylist():
        assert (row["kept"] == "kept") == (row["sample_id"] in kept_ids)
        assert row["image"].startswith(b"\xff\xd8")
        assert len(row["neighbors"]["ids"]) == 10
    for number, ids in enumerate(row["ids"] for row in table["neighbors"].to_pylist()):
        assert number not in ids
        assert all(0 <= other < 30 for other in ids)
    assert table.schema.names[:5] == ["image", "key", "label", "caption", "kept"]
    checksums = rows(kept_half, "select image_checksum::text from samples order by sample_id")
    assert table["image_checksum"].to_pylist() == [text for (text,) in checksums], (
        "the atlas fails on integers beyond 2^53"
    )
    arguments = json.loads(atlas_log.read_text())
    assert arguments[0] == "samples.parquet", "no path of this machine in what is handed on"
    assert arguments[1:9] == [
        "--image",
        "image",
        "--x",
        "x",
        "--y",
        "y",
        "--neighbors",
        "neighbors",
    ]


def test_several_selections_have_a_column_each_and_a_sample_is_drawn(
    kept_half, tmp_path, atlas_log
):
    catalog = Catalog(shutil.copytree(kept_half.path, tmp_path / "catalog"))
    curate.select(catalog, keep=0.2, name="few")
    out = curate.view(catalog, selection=["half", "few"], sample=12, out=tmp_path / "atlas.zip")
    assert Path(out).read_bytes() == b"PK"
    table = pq.read_table(catalog.path / "view" / "samples.parquet")
    assert len(table) == 12
    assert {"kept_half", "kept_few"} <= set(table.schema.names)
    assert "kept" not in table.schema.names


def test_without_embedding_atlas_the_table_is_there_and_one_line_says_how_to_install_it(
    kept_half, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    path = kept_half.path / "view" / "samples.parquet"
    path.unlink(missing_ok=True)
    with pytest.raises(CurateError, match=r"pip install 'foundation-curate\[atlas\]'; its table"):
        curate.view(kept_half)
    assert path.is_file()


def test_images_that_cannot_be_read_are_grey_and_say_why(tmp_path, atlas_log, caplog):
    catalog = make_catalog(tmp_path)
    shutil.move(tmp_path / "corpus" / "001.tar", tmp_path / "elsewhere.tar")
    with caplog.at_level("WARNING", "curate"):
        curate.view(catalog, out=tmp_path / "atlas")
    assert "10 images are grey boxes; the first: " in caplog.text
    problems = pq.read_table(catalog.path / "view" / "samples.parquet")["image_problem"]
    assert problems.null_count == 20
    assert "put the shard back" in next(filter(None, problems.to_pylist()))


def test_an_export_that_fails_leaves_nothing_and_says_why(
    kept_half, tmp_path, atlas_log, monkeypatch
):
    monkeypatch.setenv("FAKE_ATLAS_FAILS", "1")
    with pytest.raises(CurateError, match="embedding-atlas has failed: something is wrong"):
        curate.view(kept_half, out=tmp_path / "atlas")
    assert not list(tmp_path.glob("*atlas*"))


def test_a_folder_with_files_is_not_overwritten(kept_half, tmp_path, atlas_log):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OptionError, match="is not empty: give another folder with --out"):
        curate.view(kept_half, out=tmp_path / "mine")
    assert not atlas_log.exists()


def find_atlas() -> Path:
    """The real embedding-atlas; skips the test where it is not installed."""
    default = Path(__file__).parents[2] / ".peers" / "atlas" / "bin" / "embedding-atlas"
    program = Path(os.environ.get("CURATE_ATLAS", default))
    if not program.is_file():
        pytest.skip(f"no embedding-atlas at {program}: `make atlas` installs it")
    return program


POINTS = "document.body.innerText.replaceAll('\\n', ' ')"
# The map computes with 16-bit floats, which WebGPU in software lacks: there they are 32-bit floats,
# in buffers of twice the size.
WIDE_FLOATS = """
const supports = GPUSupportedFeatures.prototype.has;
GPUSupportedFeatures.prototype.has = function (name) {
  return name === "shader-f16" || supports.call(this, name);
};
const requestDevice = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (options) {
  if (supports.call(this.features, "shader-f16")) return requestDevice.call(this, options);
  const requiredFeatures = options.requiredFeatures.filter((name) => name !== "shader-f16");
  const device = await requestDevice.call(this, { ...options, requiredFeatures });
  const { createShaderModule, createBuffer } = GPUDevice.prototype;
  device.createShaderModule = ({ code, ...others }) => createShaderModule.call(
    device, { ...others, code: code.replace("enable f16;", "").replaceAll(/\\bf16\\b/g, "f32") });
  device.createBuffer = ({ size, usage, ...others }) => createBuffer.call(
    device, { ...others, usage, size: usage === GPUBufferUsage.STORAGE ? 2 * size : size });
  return device;
};
"""
# The largest canvas.
MAP = """[...document.querySelectorAll("canvas")].sort(
    (one, other) => other.width * other.height - one.width * one.height)[0]"""
# Without the buttons at its top and the scale at its bottom.
MAP_BOX = f"""(() => {{
    const box = ({MAP})?.getBoundingClientRect();
    return box && [box.left, box.top + 50, box.right, box.bottom - 40].map(Math.round);
}})()"""
NUM_ROWS = "document.querySelectorAll('tbody tr').length"


def count_points(browser: Browser, path: Path) -> int:
    """How many spots the map shows, in a screenshot at a path; those that touch are one."""
    browser.screenshot(path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L").crop(browser.evaluate(MAP_BOX)), int)
    _, num_spots = label(abs(pixels - np.median(pixels)) > 30)
    return int(num_spots)


def wait_for_points(browser: Browser, path: Path, expected: range) -> None:
    """Until the map shows so many points: it is drawn some time after the table."""
    end = time.monotonic() + TIMEOUT
    while (num_points := count_points(browser, path)) not in expected:
        assert time.monotonic() < end, f"{num_points} points on the map: {path}"
        time.sleep(1)


def assert_filters(browser: Browser, url: str, folder: Path) -> None:
    """The atlas at a URL draws 30 points; a filter on `kept` halves them, and the table."""
    browser.run_first(WIDE_FLOATS)
    browser.open(url, width=1500, height=1000)
    browser.wait_for(f"/30 \\/ 30 points/.test({POINTS})")
    browser.wait_for(f"{NUM_ROWS} === 30")
    wait_for_points(browser, folder / "all.png", range(25, 31))
    browser.evaluate("document.querySelector('button[title=kept]').click()")
    browser.wait_for(f"/15 \\/ 30 points/.test({POINTS})")
    browser.wait_for(f"{NUM_ROWS} === 15")
    wait_for_points(browser, folder / "kept.png", range(12, 16))


@pytest.mark.slow
def test_a_browser_shows_the_atlas_and_a_filter_on_kept_halves_it(kept_half, tmp_path, monkeypatch):
    program = find_atlas()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    command = [sys.executable, "-m", "curate", "view", "--no-open", "-c", str(kept_half.path)]
    with (
        start_browser(tmp_path / "profile", *WEBGPU) as browser,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
    ):
        try:
            url = next(line.split()[4] for line in server.stderr if "the atlas is at" in line)
            assert_filters(browser, url, tmp_path)
        finally:
            server.send_signal(signal.SIGINT)


@pytest.fixture
def static_server(tmp_path: Path) -> Iterator[str]:
    """A plain web server for a folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_an_exported_folder_opens_by_a_plain_web_server(
    kept_half, tmp_path, monkeypatch, static_server
):
    program = find_atlas()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    curate.view(kept_half, out=tmp_path / "atlas")
    (table_path,) = (tmp_path / "atlas").rglob("*.parquet")
    assert "FILE_NAME" in pq.read_schema(table_path).names
    assert set(pq.read_table(table_path)["FILE_NAME"].to_pylist()) == {"samples.parquet"}
    with start_browser(tmp_path / "profile", *WEBGPU) as browser:
        assert_filters(browser, f"{static_server}/atlas/", tmp_path)
