"""Names as strangers give them, and many classes: in the report, a gallery, an audit, the atlas."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Browser, start_browser
from conftest import png, write_shard
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.stages.gallery import KINDS

LONG = "long-" + "x" * 295
FROM_RIGHT = "עברית 123 العربية"
MARKUP = "<b onclick=alert(1)>bold</b>&amp;"
FORMULA = r"$\frac{1}{$ costs $5^{x$"
LABELS = (LONG, FROM_RIGHT, MARKUP, FORMULA)
CLIPPED = """
[...document.querySelectorAll("h1, h2, h3, h4, p, dt, dd, label, figcaption, button, summary")]
  .filter((node) => node.checkVisibility() && node.clientWidth && !node.closest(".scroll"))
  .filter((node) => node.scrollWidth > node.clientWidth + 1)
  .map((node) => node.outerHTML.slice(0, 200))
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Forty samples with odd labels, keys, captions, a column, and names of sets."""
    folder = tmp_path_factory.mktemp("odd")
    samples = [
        (
            f"{number:04d}-{'k' * 290}" if number % 2 else f"{number:04d} {FROM_RIGHT}",
            {
                "png": png(number),
                "cls": LABELS[number % 4].encode(),
                "txt": LABELS[number % 3].encode(),
            },
        )
        for number in range(40)
    ]
    catalog = Catalog(folder / "catalog")
    curate.embed(catalog, [str(write_shard(folder / "a.tar", samples))], encoder="pixels")
    keys = [key for key, _ in samples]
    columns = {"key": keys, f"{'c' * 120} <i>$x$": [LABELS[n % 4] for n in range(40)]}
    pq.write_table(pa.table(columns), folder / "columns.parquet")
    curate.import_table(catalog, str(folder / "columns.parquet"), key="key")
    curate.cluster(catalog, k=3)
    curate.score(catalog, ["ssl_prototypes", "random"])
    curate.select(catalog, keep=0.5, name="half")
    curate.select(catalog, keep=0.3, strategy="easiest", name="n" * 100)
    curate.audit(catalog, "half")
    return catalog


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile"), "--disable-gpu") as browser:
        yield browser


def test_the_report_clips_no_name_on_a_phone(odd, browser):
    page = Path(curate.report(odd))
    assert "<b onclick" not in page.read_text()
    browser.open(page.as_uri(), width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate(CLIPPED) == []
    assert browser.evaluate("document.querySelectorAll('b[onclick]').length") == 0
    headings = "[...document.querySelectorAll('h4')].map((node) => node.textContent)"
    assert any(MARKUP in heading for heading in browser.evaluate(headings))
    # Between these marks a name has an order of its own: the count stays behind it.
    title = f"class \u2068{FROM_RIGHT}\u2069"
    assert any(heading.startswith(title) for heading in browser.evaluate(headings))
    browser.evaluate("document.querySelector('#grid button').click()")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate(CLIPPED) == []
    assert browser.problems == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "duplicates"])
def test_a_gallery_has_room_for_every_name(odd, kind):
    with Image.open(curate.gallery(odd, kind)) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] < 1400, "a long title is several lines"
    assert (pixels[:, -8:] == 255).all(), "and ends before the edge"


def test_an_audit_fits_a_narrow_terminal(odd):
    reader, writer = os.openpty()
    command = [sys.executable, "-m", "curate", "audit", "half", "-c", str(odd.path)]
    environment = {**os.environ, "COLUMNS": "60"}
    subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=True)
    os.close(writer)
    text = ""
    with contextlib.suppress(OSError):  # a terminal ends so
        while data := os.read(reader, 1 << 16):
            text += data.decode()
    os.close(reader)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r\n")
    paths = [line for line in lines if line.startswith("picture: ")]
    assert max(len(line) for line in lines if line not in paths) <= 60
    assert text.count("x") >= 295, "folded, not cut"


def test_the_atlas_has_every_name_as_it_is(odd, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(CurateError, match="embedding-atlas is not installed"):
        curate.view(odd)
    table = pq.read_table(odd.path / "view" / "samples.parquet")
    assert set(table["label"].to_pylist()) == set(LABELS)
    assert max(map(len, table["key"].to_pylist())) == 295


@pytest.mark.parametrize("num_classes", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_classes_are_a_page_of_the_same_size(tmp_path, browser, num_classes):
    samples = [
        (f"{n:06d}", {"png": png(n, (4, 4)), "cls": f"class number {n % num_classes}".encode()})
        for n in range(2 * num_classes)
    ]
    catalog = Catalog(tmp_path / "catalog")
    curate.embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels@4")
    curate.cluster(catalog, k=4)
    curate.score(catalog, "ssl_prototypes")
    curate.select(catalog, keep=0.5, name="half")
    if num_classes == 100:
        curate.audit(catalog, "half")
    with Image.open(curate.gallery(catalog, "dropped")) as picture:
        assert picture.height < 5000
    page = Path(curate.report(catalog))
    assert page.stat().st_size < 3_000_000
    browser.open(page.as_uri(), width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.problems == []
