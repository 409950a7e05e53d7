"""`curate report`: one HTML file that shows a catalog, with nothing to load from elsewhere."""

import json
from pathlib import Path
from typing import Any

from curate import provenance
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.progress import log
from curate.stages.sections import Page


def report(
    catalog: Catalog | str | Path,
    out: str | Path | None = None,
    *,
    scoring: str | None = None,
    thumbnails: int = 600,
    size: int = 72,
) -> str:
    """Write the report of a catalog (report.html in it, unless `out` names a file), and return its path.

    It shows `thumbnails` images at most, of `size` pixels: the easiest and hardest of each class and cluster by `scoring`
    (default: ssl_prototypes, else the newest), and some at random. Its charts are in figures/ too, as PNG and SVG.
    """
    catalog = Catalog(catalog)
    if thumbnails < 0 or not 16 <= size <= 512:
        raise CurateError("--thumbnails must be 0 or more, --size from 16 to 512 pixels")
    path = Path(out).expanduser().absolute() if out else catalog.path / "report.html"
    if path.suffix.lower() != ".html":
        raise CurateError(f"the report is HTML: give it a name that ends in .html, not '{path.name}'")
    page = Page(catalog, _scoring(catalog, scoring))
    sections = [
        part
        for part in (page.overview(), page.validations(), page.scaling(), page.scorings(), page.classes(), page.clusters())
        if part
    ]
    samples = page.samples(thumbnails, size)
    if samples:
        sections.insert(min(2, len(sections)), page.gallery(samples))
    sections.append(page.lineage())
    with replacing(path) as temporary:
        temporary.write_text(_render(catalog, sections, samples, size), encoding="utf-8")
    log.info("report: %d sections, %d images, %s bytes", len(sections), len(samples), f"{path.stat().st_size:,}")
    return str(path)


def _scoring(catalog: Catalog, scoring: str | None) -> str | None:
    """The scoring that orders the images; None where there is none."""
    names = catalog.names("scoring")
    if scoring is not None:
        return str(catalog.require("scoring", scoring)["scoring"])
    return "ssl_prototypes" if "ssl_prototypes" in names else next(reversed(names), None)


def _render(catalog: Catalog, sections: list[dict[str, Any]], samples: list[dict[str, Any]], size: int) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
    )
    # Inside a script element only these could end it, or be taken for markup.
    data = json.dumps(samples, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return environment.get_template("report.html").render(
        title=f"Catalog {catalog.path.name}", subtitle=str(catalog.path), sections=sections, size=size,
        samples=Markup(data),  # noqa: S704 - JSON whose angle brackets are escaped
        footer=f"Made by curate {provenance.version()} on {provenance.now():%Y-%m-%d %H:%M} UTC.",
    )  # fmt: skip
