import base64
import html
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, start_browser
from conftest import make_catalog, png, rows, write_shard
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.errors import OptionError
from curate.stages.report.answer import find_answer

AXE = Path(os.environ.get("CURATE_AXE", ".peers/axe/node_modules/axe-core/axe.min.js"))
SECTIONS = (
    "What to keep",
    "What goes: ",
    "Evidence",
    "Scores",
    "Classes",
    "Clusters (kmeans)",
    "Corpus",
    "Lineage",
)
SET = """
const set = (id, value) => {
  at(id).value = value;
  at("filters").dispatchEvent(new Event("input"));
};
const shown = () => [...document.querySelectorAll("#grid button")].map((button) => button.title);
"""
TOO_WIDE = """
[...document.querySelectorAll("body *")]
  .filter((node) => !node.closest(".scroll") || node.matches(".scroll"))
  .filter((node) => !node.closest(".skip, dialog:not([open])"))
  .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
  .map((node) => node.outerHTML.slice(0, 200))
"""


def load_data(page: str) -> dict[str, Any]:
    """The data that is embedded in a page."""
    data: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    return data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog with every kind of set."""
    catalog = make_catalog(tmp_path_factory.mktemp("full"))
    curate.cluster(catalog, k=3)
    curate.probe(catalog, count=2, epochs=2)
    curate.score(catalog, ["ssl_prototypes", "random", "el2n"])
    curate.select(catalog, keep=0.5, scoring="random")
    curate.validate(catalog, keep=0.5, scoring="el2n", model="mlp:8", seeds=2, epochs=2)
    return catalog


@pytest.fixture(scope="module")
def page(full: Catalog) -> Path:
    """The report of `full`."""
    return Path(curate.report(full))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile"), "--disable-gpu") as browser:
        yield browser


def test_the_report_shows_every_section_in_one_file(full, page):
    text = page.read_text(encoding="utf-8")
    assert page == full.path / "report.html"
    headings = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", text)]
    assert len(headings) == len(SECTIONS)
    assert all(map(str.startswith, headings, SECTIONS)), headings
    assert len(load_data(text)["images"]) == 30
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text), "nothing comes from elsewhere"
    assert "url(" not in text
    assert "@import" not in text
    figures = {path.name for path in (full.path / "figures").glob("report-*")}
    assert {
        f"report-{name}.{extension}"
        for name in ("scores", "correlations", "classes", "clusters", "overlap")
        for extension in ("png", "svg")
    } <= figures


def test_without_validations_the_answer_says_what_decides_it(catalog):
    answer = find_answer(catalog)
    assert answer.headline == "Undecided: nothing shows yet what can be left out."
    assert "run `curate validate --keep 0.8 --keep 0.5" in answer.evidence
    assert answer.selection is None


def test_the_answer_has_the_smallest_selection_its_number_and_what_it_saves(full, tmp_path):
    catalog = Catalog(shutil.copytree(full.path, tmp_path / "catalog"))
    with catalog.writing() as connection:  # as if more seeds had decided it
        connection.execute(
            "update comparisons set difference = 0.1, seeds = 5, num_test = 1000, "
            "half_width = 0.3, variance = 0.01, freedom = 30"
        )
    answer = find_answer(catalog)
    assert answer.headline == "Keep 15 of 30 images, 50%: train on ‘el2n-hardest-0.5’."
    assert "no loss beyond 0.5 points, +0.10" in answer.evidence
    assert [name for name, _, _ in answer.savings] == [
        "images fewer",
        "bytes fewer",
        "training time",
    ]
    assert answer.savings[0][1:] == ("15", "50% of 30")
    (row,) = answer.chart.rows
    assert row.is_chosen
    assert answer.chart.margin < row.low < answer.chart.zero < row.middle < row.high


def test_half_of_few_images_are_dropped_ones(full, tmp_path):
    path = curate.report(
        full, tmp_path / "few.html", scoring="random", selection="el2n-hardest-0.5", thumbnails=8
    )
    images = load_data(Path(path).read_text())["images"]
    assert len(images) == 8
    dropped = [image for image in images if "el2n-hardest-0.5" not in image["kept"]]
    assert len(dropped) >= 4
    ((hardest,),) = rows(
        full,
        "select max_by(sample_id, score) from scores where scoring = 'random' and sample_id "
        "not in (select sample_id from members where selection = 'el2n-hardest-0.5')",
    )
    assert hardest in {image["row"]["sample_id"] for image in dropped}


def test_the_page_keeps_to_its_size_and_says_what_it_left_out(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 400, 500, 3), np.uint8)
    samples = []
    for position, pixels in enumerate(noise):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        samples.append((f"{position}", {"png": file.getvalue()}))
    catalog = Catalog(tmp_path / "catalog")
    curate.embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    small = Path(curate.report(catalog, tmp_path / "small.html", max_megabytes=1))
    large = Path(curate.report(catalog, tmp_path / "large.html"))
    assert small.stat().st_size <= 1_000_000 < large.stat().st_size
    assert "for the real pixels of" in small.read_text()
    assert "There was no room" not in large.read_text()
    for image in load_data(large.read_text())["images"]:
        data = base64.b64decode(image["real"].partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (image["width"], image["height"]) == (500, 400)


def test_what_strangers_wrote_is_text_and_nothing_else(tmp_path):
    evil = r"<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7*7 }}$\frac$"
    evil_key = evil.replace("/", "_").replace(".", "_")
    samples = [
        (
            f"{evil_key}{position}",
            {"png": png(position), "cls": evil.encode(), "txt": evil.encode()},
        )
        for position in range(4)
    ]
    url = write_shard(tmp_path / "a.tar", samples)
    catalog = Catalog(tmp_path / "catalog")
    curate.embed(catalog, [str(url)], encoder="pixels")
    curate.cluster(catalog, k=2)
    curate.score(catalog, "ssl_prototypes")
    curate.select(catalog, keep=0.5)
    page = Path(curate.report(catalog)).read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == 2
    assert json.dumps(evil).replace("<", "\\u003c").replace(">", "\\u003e")[1:-1] in page
    assert "49" not in re.findall(r"alert\(2\).{0,60}", page)
    assert "&lt;img src=x" in page


def test_an_empty_catalog_has_a_report_too(tmp_path):
    catalog = make_catalog(tmp_path)
    page = Path(curate.report(catalog, thumbnails=0)).read_text()
    assert "<h2>Corpus</h2>" in page
    assert load_data(page)["images"] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 4}, "--size 4: give a whole number from 16 and up to 512"),
        ({"out": "x.txt"}, "ends in .html"),
    ],
)
def test_wrong_options_are_refused(catalog, options, reason):
    with pytest.raises(OptionError, match=reason):
        curate.report(catalog, **options)


@pytest.mark.parametrize("width", [390, 1280, 2560])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window_and_the_alarm_is_whole(
    full, tmp_path, browser, width, dark
):
    text = Path(curate.report(full, tmp_path / "page.html")).read_text()
    alarm = f'<p class="alarm">Do not train on {"el2n_" * 60}</p>'
    path = tmp_path / "alarm.html"
    path.write_text(text.replace('<dl class="tiles">', f'{alarm}<dl class="tiles">', 1))
    browser.open(path.as_uri(), width=width, dark=dark)
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    box = browser.evaluate(
        "(() => { const node = document.querySelector('.alarm'); return "
        "[node.scrollWidth - node.clientWidth, node.scrollHeight - node.clientHeight]; })()"
    )
    assert box == [0, 0], "all of it can be read"
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    browser.evaluate("document.querySelector('#grid button').click()")
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.problems == []


def test_search_and_filters_show_what_they_say(full, page, browser):
    browser.open(page.as_uri())
    counts = browser.evaluate(
        "(() => {"
        + SET
        + """
        const result = {dropped: shown().length};
        set("by-kept", "kept");
        result.kept = shown().length;
        set("by-kept", "");
        result.all = shown().length;
        set("by-label", "1");
        result.label = shown().length;
        set("by-label", "");
        const key = shown()[3].split(",")[0];
        set("search", `${key} 002.tar`);
        result.search = shown().length;
        result.found = shown().every((title) => title.includes(key));
        set("search", "no such thing");
        result.none = shown().length;
        set("search", "");
        set("scoring", "random");
        set("group", "");
        set("low", "0.5");
        result.above = shown().length;
        set("low", "");
        result.hardest = shown()[0];
        set("order", "easy");
        result.easiest = shown()[0];
        set("group", "cluster");
        result.clusters = document.querySelectorAll("#grid h4").length;
        return result;
        })()"""
    )
    ((above, easiest, hardest),) = rows(
        full,
        "select count(*) filter (random >= 0.5), min_by(key, random), max_by(key, random) "
        "from sample_scores",
    )
    assert (counts["dropped"], counts["kept"], counts["all"]) == (15, 15, 30)
    ((labelled,),) = rows(full, "select count(*) from samples where label = '1'")
    assert counts["label"] == labelled
    assert counts["search"] < 30
    assert counts["found"]
    assert counts["none"] == 0
    assert counts["above"] == above
    assert counts["easiest"].startswith(f"{easiest},")
    assert counts["hardest"].startswith(f"{hardest},")
    assert counts["clusters"] == 3
    assert browser.problems == []


def test_the_easiest_and_the_hardest_of_each_group_are_those_of_the_corpus(full, page, browser):
    browser.open(page.as_uri())
    scoring = load_data(page.read_text())["groups"]["all"][0]
    assert len(scoring["easy"]) == 6
    for group, column in (("class", "label"), ("cluster", "cluster_id"), ("all", "true")):
        titles = browser.evaluate(
            f"""(() => {{
            at("by-group").value = "{group}";
            at("by-group").dispatchEvent(new Event("input"));
            return [...document.querySelectorAll("#ends .pictures")].map((list) =>
              [...list.querySelectorAll("button")].map((button) => button.title.split(",")[0]));
            }})()"""
        )
        keys_by_group = rows(
            full,
            "select list(key order by score, sample_id) from samples join scores using (sample_id) "
            "join assignments using (sample_id) "
            f"where scoring = 'el2n' group by {column}",
        )
        expected = [keys if len(keys) <= 12 else keys[:6] + keys[-6:] for (keys,) in keys_by_group]
        assert sorted(map(sorted, titles)) == sorted(map(sorted, expected))


def test_an_image_enlarges_to_its_real_pixels_by_mouse_and_by_keyboard(full, page, browser):
    browser.open(page.as_uri())
    browser.evaluate("document.querySelector('#grid button').focus()")
    browser.press("ArrowRight")
    second = browser.evaluate("document.activeElement.title")
    assert second == browser.evaluate("document.querySelectorAll('#grid button')[1].title")
    browser.press("Enter")
    assert browser.evaluate("at('detail').open && at('detail-title').textContent") == second
    browser.wait_for("at('detail-size').textContent !== ''")
    ((width, height),) = rows(full, "select distinct width, height from samples")
    assert browser.evaluate(
        "[document.querySelector('#detail img').naturalWidth, "
        "document.querySelector('#detail img').naturalHeight]"
    ) == [width, height]
    assert browser.evaluate("at('detail-size').textContent").startswith(f"{width} × {height} ")
    assert "sample_id" in browser.evaluate("at('detail-row').textContent")
    browser.evaluate("at('next').click()")
    assert browser.evaluate("at('detail-title').textContent") != second
    browser.press("Escape")
    assert not browser.evaluate("at('detail').open")


def test_every_image_says_its_class_and_score(page, browser):
    browser.open(page.as_uri())
    texts = browser.evaluate("[...document.querySelectorAll('#dropped img')].map((i) => i.alt)")
    assert texts
    assert all(re.fullmatch(r".+, class \S+, el2n \S+, (kept|dropped)", text) for text in texts)


def test_tables_are_sorted_by_a_click_on_a_column(page, browser):
    browser.open(page.as_uri())
    ascending, descending = browser.evaluate(
        """(() => {
        const tables = [...document.querySelectorAll("table.sortable")];
        const table = tables.find((table) => table.tHead.textContent.includes("num_kept"));
        const cells = [...table.tHead.rows[0].cells];
        const head = cells.find((cell) => cell.textContent === "num_kept");
        const column = () =>
          [...table.tBodies[0].rows].map((row) => Number(row.cells[head.cellIndex].textContent));
        head.firstElementChild.click();
        const ascending = column();
        head.firstElementChild.click();
        return [ascending, column()];
        })()"""
    )
    assert ascending == sorted(ascending)
    assert descending == sorted(ascending, reverse=True)


def test_the_pdf_has_every_section(page, browser):
    browser.open(page.as_uri(), dark=True)
    document = browser.print_pdf()
    titles = [
        decode_pdf_text(match)
        for match in re.findall(rb"/Title\s*(\((?:\\.|[^\\)])*\)|<[^>]*>)", document)
    ]
    for section in SECTIONS:
        assert any(title.startswith(section) for title in titles), (section, titles)


def decode_pdf_text(text: bytes) -> str:
    """A string of a PDF: in brackets as it is, or in hexadecimal."""
    if text.startswith(b"<"):
        data = bytes.fromhex(text[1:-1].decode())
    else:
        data = re.sub(rb"\\(.)", rb"\1", text[1:-1])
    return data.decode("utf-16") if data.startswith(b"\xfe\xff") else data.decode("latin-1")


@pytest.mark.parametrize("dark", [False, True])
def test_an_accessibility_check_finds_nothing_serious(page, browser, dark):
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE}: `make browser` installs it where npm is")
    browser.open(page.as_uri(), width=1280, dark=dark)
    browser.evaluate(AXE.read_text() + "; 0")
    for is_enlarged in (False, True):
        if is_enlarged:
            browser.evaluate("document.querySelector('#grid button').click()")
        findings = browser.evaluate(
            "axe.run().then((result) => result.violations"
            ".filter((found) => ['serious', 'critical'].includes(found.impact))"
            ".map((found) => [found.id, found.help, found.nodes.slice(0, 3).map((n) => n.html)]))"
        )
        assert findings == []


def test_images_of_a_shard_that_is_gone_are_grey_boxes_that_say_why(tmp_path, caplog, browser):
    catalog = make_catalog(tmp_path)
    (tmp_path / "corpus" / "001.tar").rename(tmp_path / "elsewhere.tar")
    with caplog.at_level("WARNING", "curate"):
        page = Path(curate.report(catalog))
    assert "10 images cannot be shown; the first: " in caplog.text
    text = page.read_text()
    assert "10 could not be read: grey boxes say why." in text
    problems = [image["problem"] for image in load_data(text)["images"] if image["problem"]]
    assert len(problems) == 10
    assert all("put the shard back" in problem for problem in problems)
    browser.open(page.as_uri())
    assert browser.evaluate("document.querySelectorAll('#grid .missing').length") == 10
    browser.evaluate("document.querySelector('#grid .missing').closest('button').click()")
    assert "put the shard back" in browser.evaluate("at('detail-image').textContent")
