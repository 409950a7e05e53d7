"""`curate report`: one HTML file that shows a catalog, with nothing to load from elsewhere."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord
from curate.errors import OptionError
from curate.options import Option, verb
from curate.progress import log
from curate.stages.report.sections import ReportImage, Section, SectionBuilder
from curate.storage.atomic import atomic_write

_DEFAULT_SCORING = "ssl_prototypes"
_GALLERY_POSITION = 2  # after the corpus and the verdicts


def check_html(path: object) -> None:
    """OptionError for a name that does not end in .html."""
    name = Path(str(path)).name
    if Path(name).suffix.lower() != ".html":
        raise OptionError(f"the report is HTML: give it a name that ends in .html, not '{name}'")


@verb()
def report(
    catalog: Catalog | str | Path,
    out: Annotated[
        str | Path | None,
        Option("HTML to write.", default="report.html in the catalog", check=check_html),
    ] = None,
    *,
    scoring: Annotated[
        str | None,
        Option("Scoring that orders the images.", default="ssl_prototypes, or the newest"),
    ] = None,
    thumbnails: Annotated[int, Option("Images to show at most.", minimum=0)] = 600,
    size: Annotated[int, Option("Edge of an image in pixels.", minimum=16, maximum=512)] = 72,
) -> str:
    """Write the report of a catalog, and return its path.

    It shows the easiest and hardest images of each class and cluster by `scoring`, and some at
    random. Its charts are in figures/ too, as PNG and SVG.
    """
    catalog = Catalog(catalog)
    path = Path(out).expanduser().absolute() if out else catalog.path / "report.html"
    builder = SectionBuilder(catalog, _choose_scoring(catalog, scoring))
    candidates = (
        builder.overview(),
        builder.validations(),
        builder.scaling(),
        builder.scorings(),
        builder.duplicates(),
        builder.classes(),
        builder.audits(),
        builder.clusters(),
    )
    sections = [section for section in candidates if section]
    images = builder.images(thumbnails, size)
    if images:
        sections.insert(min(_GALLERY_POSITION, len(sections)), builder.gallery(images))
    sections.append(builder.lineage())
    with atomic_write(path) as temporary:
        temporary.write_text(_render(catalog, sections, images, size), encoding="utf-8")
    log.info(
        "report: %d sections, %d images, %s bytes",
        len(sections),
        len(images),
        f"{path.stat().st_size:,}",
    )
    return str(path)


def _choose_scoring(catalog: Catalog, scoring: str | None) -> str | None:
    """The scoring that orders the images; None where there is none."""
    if scoring is not None:
        return catalog.require(ScoringRecord, scoring).scoring
    names = catalog.list_names(ScoringRecord)
    return _DEFAULT_SCORING if _DEFAULT_SCORING in names else next(reversed(names), None)


def _render(catalog: Catalog, sections: list[Section], images: list[ReportImage], size: int) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    data = json.dumps([asdict(image) for image in images], ensure_ascii=True, allow_nan=False)
    # Inside a script element only these could end it, or be taken for markup.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e")
    return environment.get_template("template.html").render(
        title=f"Catalog {catalog.path.name}",
        subtitle=str(catalog.path),
        sections=sections,
        size=size,
        samples=Markup(data),  # noqa: S704 - JSON whose angle brackets are escaped
        footer=f"Made by curate {provenance.version()} on {provenance.now():%Y-%m-%d %H:%M} UTC.",
    )
