"""`curate report`: one HTML file that shows a catalog, with nothing to load from elsewhere."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord, SelectionRecord
from curate.errors import OptionError
from curate.formatting import count_of
from curate.options import Option, verb
from curate.progress import announce, log, progress_bar
from curate.stages.report.answer import Answer, find_answer
from curate.stages.report.images import (
    Drawing,
    ReportImage,
    draw_images,
    dump_json,
    load_images,
)
from curate.stages.report.sections import Filters, Section, SectionBuilder
from curate.storage.atomic import atomic_write

_DEFAULT_SCORING = "ssl_prototypes"
_MEGABYTE = 1_000_000
_RESERVE = 4_000  # bytes for the sentences that say what is shown


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
    selection: Annotated[
        str | None,
        Option(
            "Selection whose dropped images are shown first.",
            default="the recommended one, or the newest",
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        Option(
            "Scoring that orders the images.",
            default="that of the selection, ssl_prototypes, or the newest",
        ),
    ] = None,
    thumbnails: Annotated[int, Option("Images to show at most.", minimum=0)] = 600,
    size: Annotated[
        int, Option("Edge of an image among others in pixels.", minimum=16, maximum=512)
    ] = 96,
    max_megabytes: Annotated[
        float,
        Option(
            "Size of the file at most: with more, more images enlarge to their real pixels.",
            minimum=1,
            metavar="MB",
        ),
    ] = 15,
) -> str:
    """Write the report of a catalog, and return its path.

    It begins with the answer: the smallest selection without a loss beyond the margin. Then it
    shows what goes, the easiest and hardest images of each class and cluster by `scoring`, and some
    at random; then the evidence. Its charts are in figures/ too, as PNG and SVG.
    """
    catalog = Catalog(catalog)
    path = Path(out).expanduser().absolute() if out else catalog.path / "report.html"
    if selection is not None:
        selection = catalog.require(SelectionRecord, selection).selection
    announce("report: reading the catalog")
    answer = find_answer(catalog, selection)
    builder = SectionBuilder(catalog, _choose_scoring(catalog, scoring, answer.selection))
    drawing = draw_images(
        catalog,
        thumbnails,
        scoring=builder.scoring,
        clustering=builder.clustering,
        selection=answer.selection,
    )
    page = _Page(catalog, answer, _build_sections(builder), builder.filters(), drawing, size)
    # The rest of the page first: images get the room that it leaves.
    room = int(max_megabytes * _MEGABYTE) - len(page.render([]).encode()) - _RESERVE
    images = load_images(catalog, drawing, size, builder.clustering, max(room, 0))
    with atomic_write(path) as temporary:
        temporary.write_text(page.render(images), encoding="utf-8")
    log.info(
        "report: %d sections, %d images, %s bytes; open %s in a browser",
        len(page.sections) + 2,
        len(images),
        f"{path.stat().st_size:,}",
        path,
    )
    return str(path)


def _build_sections(builder: SectionBuilder) -> list[Section]:
    """The evidence and what follows it, as far as there is something to show."""
    parts: tuple[Callable[[], Section | None], ...] = (
        builder.audits,
        builder.validations,
        builder.scaling,
        builder.scorings,
        builder.duplicates,
        builder.classes,
        builder.clusters,
        builder.overview,
        builder.lineage,
    )
    sections = []
    with progress_bar("sections", len(parts), "sections") as advance:
        for part in parts:
            section = part()
            sections += [section] if section else []
            advance(1, 1)
    return sections


def _choose_scoring(catalog: Catalog, scoring: str | None, selection: str | None) -> str | None:
    """The scoring that orders the images; None where there is none."""
    if scoring is not None:
        return catalog.require(ScoringRecord, scoring).scoring
    names = catalog.list_names(ScoringRecord)
    if selection is not None:
        of_selection = catalog.require(SelectionRecord, selection).scoring
        if of_selection in names:
            return of_selection
    return _DEFAULT_SCORING if _DEFAULT_SCORING in names else next(reversed(names), None)


@dataclass(frozen=True)
class _Page:
    """What the page shows beside its images."""

    catalog: Catalog
    answer: Answer
    sections: list[Section]
    filters: Filters
    drawing: Drawing
    size: int

    def render(self, images: list[ReportImage]) -> str:
        """The HTML, with the images as data that its script draws."""
        import jinja2
        from markupsafe import Markup

        folder = Path(__file__).parent
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        data = {
            "images": [asdict(image) for image in images],
            "groups": {
                kind: [group._asdict() for group in groups]
                for kind, groups in self.drawing.groups.items()
            },
            "duplicates": self.drawing.duplicates,
            "selection": self.answer.selection,
        }
        return environment.get_template("page.html").render(
            title=f"Catalog {self.catalog.path.name}",
            subtitle=self._describe_corpus(),
            answer=self.answer,
            sections=self.sections,
            filters=self.filters,
            drawing=self.drawing,
            drawn=self._describe_images(images),
            dropped=count_of(self.drawing.num_dropped, "image"),
            size=self.size,
            style=Markup((folder / "page.css").read_text("utf-8")),  # noqa: S704 - our own file
            script=Markup((folder / "page.js").read_text("utf-8")),  # noqa: S704 - our own file
            data=Markup(dump_json(data)),  # noqa: S704 - its angle brackets are escaped
            footer=f"Made by curate {provenance.version()} on {provenance.now():%Y-%m-%d %H:%M} "
            "UTC.",
        )

    def _describe_corpus(self) -> str:
        corpus = self.drawing.groups["all"][:1]
        if not corpus:
            return "no samples yet"
        num_dropped = self.drawing.num_dropped if self.answer.selection else 0
        return (
            f"{count_of(corpus[0].num_samples, 'sample')}, of which the selection that is shown "
            f"drops {num_dropped:,}"
        )

    def _describe_images(self, images: list[ReportImage]) -> list[str]:
        """Which images are shown, how they were drawn, and which enlarge to their real pixels."""
        selection, drawing = self.answer.selection, self.drawing
        num_samples = drawing.groups["all"][0].num_samples if drawing.groups["all"] else 0
        shown = f"{len(images):,} of {num_samples:,} images are shown here"
        if selection is None:
            sentences = [f"{shown}: the easiest and the hardest, and some at random."]
        else:
            num_shown = sum(selection not in image.kept for image in images)
            sentences = [
                f"{shown}, {num_shown:,} of them from the {drawing.num_dropped:,} that "
                f"‘{selection}’ drops: of each class the hardest, the easiest and some at random.",
                "Beside them stand duplicates, the easiest and hardest of the corpus, of each "
                "class and of each cluster, and images at random.",
            ]
        sentences.append("Random means by a hash: the same command draws the same.")
        num_small = sum(
            image.real is None and max(image.width, image.height) > self.size for image in images
        )
        num_cut = min(len(drawing.sample_ids), num_samples) - len(images)
        if num_cut:
            sentences.append(f"There was no room for {num_cut:,} more: --max-megabytes makes it.")
        if num_small:
            sentences.append(
                f"There was no room for the real pixels of {num_small:,}, of those drawn last: "
                "--max-megabytes makes it."
            )
        num_missing = sum(image.problem is not None for image in images)
        if num_missing:
            sentences.append(f"{num_missing:,} could not be read: grey boxes say why.")
        return sentences
