import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import make_catalog, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.errors import OptionError

# Put into the page's head: keeps its errors.
ERROR_LISTENERS = """<script>
window.problems = [];
window.addEventListener("error", (event) => problems.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => {
  problems.push(event.violatedDirective);
});
</script>"""

# Put at the page's end: clicks everything that can be clicked, and writes down what it sees.
CLICKS = """<script>
const result = {};

const count = () => document.querySelectorAll("#grid button").length;
const set = (id, value) => {
  at(id).value = value;
  at("filters").dispatchEvent(new Event("input"));
};
result.all = count();
set("by-label", "1");
result.label = count();
set("by-label", "");
set("by-selection", document.querySelectorAll("#by-selection option")[1].value);
set("by-kept", "kept");
result.kept = count();
set("by-kept", "dropped");
result.dropped = count();
set("by-kept", "");
set("low", "0.5");
result.above = count();
set("low", "");

const titles = (row) => [...row.querySelectorAll("button")].map((button) => button.title);
const rows_by = (group) => {
  at("by-group").value = group;
  at("by-group").dispatchEvent(new Event("input"));
  return [...at("rows").children].map(titles);
};
result.rows = {class: rows_by("class"), cluster: rows_by("cluster"), all: rows_by("all")};

const first_title = () => document.querySelector("#grid button").title;
result.easiest = first_title();
set("order", "hardest first");
result.hardest = first_title();

document.querySelector("#grid button").click();
result.open = at("detail").open;
result.detail = at("detail-body").textContent.length;
at("detail").close();

const tables = [...document.querySelectorAll("table.sortable")];
const table = tables.find((table) => table.tHead.textContent.includes("num_kept"));
const headers = [...table.tHead.rows[0].cells];
const header = headers.find((cell) => cell.textContent === "num_kept");
const number = (cell) => Number(cell.textContent.replaceAll(",", ""));
const column = () => [...table.tBodies[0].rows].map((row) => number(row.cells[header.cellIndex]));
header.click();
result.ascending = column();
header.click();
result.descending = column();

result.dark = matchMedia("(prefers-color-scheme: dark)").matches;
result.background = getComputedStyle(document.body).backgroundColor;
result.fits = document.documentElement.scrollWidth <= innerWidth;
result.problems = problems;
const output = document.createElement("pre");
output.id = "result";
output.textContent = JSON.stringify(result);
document.body.append(output);
</script>"""


def easiest_and_hardest(keys: list[str]) -> list[str]:
    """The six easiest and the six hardest, none twice."""
    return keys if len(keys) <= 12 else keys[:6] + keys[-6:]


def load_samples(page: str) -> list[dict[str, Any]]:
    """The samples that are embedded in a page."""
    return json.loads(re.search(r'id="samples">(.*?)</script>', page, re.DOTALL).group(1))


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


def test_the_report_shows_every_section_in_one_file(full):
    path = Path(curate.report(full))
    page = path.read_text(encoding="utf-8")
    assert path == full.path / "report.html"
    for title in (
        "Corpus",
        "Pruned against random",
        "Images",
        "Scores",
        "Classes",
        "Clusters (kmeans)",
        "Lineage",
    ):
        assert f"<h2>{title}</h2>" in page
    assert len(load_samples(page)) == 30
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page), "nothing comes from elsewhere"
    assert "url(" not in page
    assert "@import" not in page
    figures = {path.name for path in (full.path / "figures").glob("report-*")}
    assert {
        f"report-{name}.{extension}"
        for name in ("scores", "correlations", "classes", "clusters", "overlap", "validation")
        for extension in ("png", "svg")
    } <= figures


def test_few_images_have_the_easiest_and_the_hardest_of_each_class(full, tmp_path):
    path = curate.report(full, tmp_path / "few.html", scoring="random", thumbnails=8)
    samples = load_samples(Path(path).read_text())
    assert len(samples) == 8
    extremes = rows(
        full,
        "select min_by(sample_id, random), max_by(sample_id, random) "
        "from sample_scores group by label",
    )
    assert len(extremes) == 2
    assert {sample_id for pair in extremes for sample_id in pair} <= {
        sample["row"]["sample_id"] for sample in samples
    }


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
    assert "49" not in re.findall(r"alert\(2\).{0,60}", page)
    assert "&lt;img src=x" in page


def test_an_empty_catalog_has_a_report_too(tmp_path):
    catalog = make_catalog(tmp_path)
    page = Path(curate.report(catalog, thumbnails=0)).read_text()
    assert "<h2>Corpus</h2>" in page
    assert "<h2>Images</h2>" not in page


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


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_filters_and_sorts_without_an_error(full, tmp_path, width, dark):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium on the PATH: install it to try the page in a browser")
    page = Path(curate.report(full, tmp_path / "page.html")).read_text()
    page = page.replace("<title>", f"{ERROR_LISTENERS}<title>")
    path = tmp_path / "clicked.html"
    path.write_text(page.replace("</body>", f"{CLICKS}</body>"))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        path.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom).group(1))
    assert result["problems"] == []
    assert (result["all"], result["label"], result["kept"], result["dropped"]) == (30, 6, 15, 15)
    assert 0 <= result["above"] < 30
    assert result["easiest"] != result["hardest"]
    for group, column in (("class", "label"), ("cluster", "cluster_id"), ("all", "true")):
        keys_by_group = rows(
            full,
            "select list(key order by score, sample_id) from samples join scores using (sample_id) "
            "join assignments using (sample_id) "
            f"where scoring = 'ssl_prototypes' group by {column}",
        )
        expected = [easiest_and_hardest(keys) for (keys,) in keys_by_group]
        assert sorted(result["rows"][group]) == sorted(expected)
    assert result["open"]
    assert result["detail"] > 50
    assert result["ascending"] == sorted(result["ascending"])
    assert result["descending"] == sorted(result["ascending"], reverse=True)
    assert result["dark"] == dark
    assert result["background"] == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert result["fits"], "nothing is wider than the window"


def test_images_of_a_shard_that_is_gone_are_left_out_and_counted(tmp_path, caplog):
    catalog = make_catalog(tmp_path)
    (tmp_path / "corpus" / "001.tar").rename(tmp_path / "elsewhere.tar")
    with caplog.at_level("WARNING", "curate"):
        page = Path(curate.report(catalog)).read_text()
    assert "10 images are left out; the first: " in caplog.text
    assert len(load_samples(page)) == 20
