import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import make_catalog, png, rows, write_shard

import curate
from curate.catalog import Catalog
from curate.errors import CurateError

# What a browser does with the page: errors are kept, then everything that can be clicked is.
WATCH = "<script>window.problems = []; window.addEventListener('error', (e) => problems.push(e.message));" \
        "document.addEventListener('securitypolicyviolation', (e) => problems.push(e.violatedDirective));</script>"  # fmt: skip
CLICK = """<script>
const count = () => document.querySelectorAll("#grid button").length, result = {all: count()};
const set = (id, value) => { at(id).value = value; at("filters").dispatchEvent(new Event("input")); };
set("by-label", "1"); result.label = count(); set("by-label", "");
set("by-selection", document.querySelectorAll("#by-selection option")[1].value);
set("by-kept", "kept"); result.kept = count(); set("by-kept", "dropped"); result.dropped = count(); set("by-kept", "");
set("low", "0.5"); result.above = count(); set("low", "");
const rows_of = (by) => { at("by-group").value = by; at("by-group").dispatchEvent(new Event("input"));
  return [...at("rows").children].map((row) => [...row.querySelectorAll("button")].map((one) => one.title)); };
result.rows = {class: rows_of("class"), cluster: rows_of("cluster"), all: rows_of("all")};
const first = () => document.querySelector("#grid button").title;
result.easiest = first(); set("order", "hardest first"); result.hardest = first();
document.querySelector("#grid button").click();
result.open = at("detail").open; result.detail = at("detail-body").textContent.length;
at("detail").close();
const table = [...document.querySelectorAll("table.sortable")].find((one) => one.tHead.textContent.includes("num_kept"));
const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === "num_kept");
const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[head.cellIndex].textContent.replaceAll(",", "")));
head.click(); result.up = column(); head.click(); result.down = column();
result.dark = matchMedia("(prefers-color-scheme: dark)").matches;
result.paper = getComputedStyle(document.body).backgroundColor;
result.wide = document.documentElement.scrollWidth <= innerWidth;
result.problems = problems;
document.body.append(Object.assign(document.createElement("pre"), {id: "result", textContent: JSON.stringify(result)}));
</script>"""


def ends(keys: list[str]) -> list[str]:
    """The six easiest and the six hardest, none twice."""
    return keys if len(keys) <= 12 else keys[:6] + keys[-6:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog with every kind of set."""
    made = make_catalog(tmp_path_factory.mktemp("whole"))
    curate.cluster(made, k=3)
    curate.probe(made, count=2, epochs=2)
    curate.score(made, ["ssl_prototypes", "random", "el2n"])
    curate.select(made, keep=0.5, scoring="random")
    curate.validate(made, keep=0.5, scoring="el2n", model="mlp:8", seeds=2, epochs=2)
    return made


def test_the_report_shows_every_part_in_one_file(whole):
    path = Path(curate.report(whole))
    page = path.read_text(encoding="utf-8")
    assert path == whole.path / "report.html"
    for title in ("Corpus", "Pruned against random", "Images", "Scores", "Classes", "Clusters (kmeans)", "Lineage"):
        assert f"<h2>{title}</h2>" in page
    samples = json.loads(re.search(r'id="samples">(.*?)</script>', page, re.DOTALL).group(1))
    assert len(samples) == 30
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page), "nothing comes from elsewhere"
    assert "url(" not in page
    assert "@import" not in page
    pictures = {path.name for path in (whole.path / "figures").glob("report-*")}
    assert {f"report-{name}.{kind}" for name in ("scores", "correlations", "classes", "clusters", "overlap", "validation")
            for kind in ("png", "svg")} <= pictures  # fmt: skip


def test_the_number_of_images_is_bounded_and_both_ends_of_each_class_are_among_them(whole, tmp_path):
    page = Path(curate.report(whole, tmp_path / "few.html", scoring="random", thumbnails=8)).read_text()
    samples = json.loads(re.search(r'id="samples">(.*?)</script>', page, re.DOTALL).group(1))
    assert len(samples) == 8
    ends = rows(whole, "select min_by(sample_id, random), max_by(sample_id, random) from sample_scores group by label")
    assert {key for pair in ends for key in pair} <= {sample["row"]["sample_id"] for sample in samples}


def test_what_strangers_wrote_is_text_and_nothing_else(tmp_path):
    evil = r"<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7*7 }}$\frac$"
    url = write_shard(tmp_path / "a.tar", [
        (f"{evil.replace('/', '_')}{place}".replace(".", "_"), {"png": png(place), "cls": evil.encode(), "txt": evil.encode()})
        for place in range(4)
    ])  # fmt: skip
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
    for options, reason in (({"size": 4}, "--size from 16"), ({"out": tmp_path / "x.txt"}, "ends in .html")):
        with pytest.raises(CurateError, match=reason):
            curate.report(catalog, **options)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_filters_and_sorts_without_a_complaint(whole, tmp_path, width, dark):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium on the PATH: install it to try the page in a browser")
    page = Path(curate.report(whole, tmp_path / "page.html")).read_text()
    copy = tmp_path / "watched.html"
    copy.write_text(page.replace("<title>", f"{WATCH}<title>").replace("</body>", f"{CLICK}</body>"))
    asked = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom).group(1))
    assert result["problems"] == []
    assert (result["all"], result["label"], result["kept"], result["dropped"]) == (30, 6, 15, 15)
    assert 0 <= result["above"] < 30
    assert result["easiest"] != result["hardest"]
    for kind, column in (("class", "label"), ("cluster", "cluster_id"), ("all", "true")):
        order = rows(whole, "select list(key order by score, sample_id) from samples join scores using (sample_id) "
                            "join assignments using (sample_id) "
                            f"where scoring = 'ssl_prototypes' group by {column}")  # fmt: skip
        assert sorted(result["rows"][kind]) == sorted(ends(keys) for (keys,) in order)
    assert result["open"]
    assert result["detail"] > 50
    assert result["up"] == sorted(result["up"])
    assert result["down"] == sorted(result["up"], reverse=True)
    assert result["dark"] == dark
    assert result["paper"] == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert result["wide"], "nothing sticks out at the side"


def test_images_of_a_shard_that_is_gone_are_left_out_and_counted(tmp_path, caplog):
    catalog = make_catalog(tmp_path)
    (tmp_path / "corpus" / "001.tar").rename(tmp_path / "elsewhere.tar")
    with caplog.at_level("WARNING", "curate"):
        page = Path(curate.report(catalog)).read_text()
    assert "10 images are left out; the first: " in caplog.text
    assert len(json.loads(re.search(r'id="samples">(.*?)</script>', page, re.DOTALL).group(1))) == 20
