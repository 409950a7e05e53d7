"""`curate gallery`: one picture of images, of the kind that is asked for, in rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from curate import plotting
from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.columns import NUMERIC_TYPES, list_columns
from curate.catalog.records import (
    ClusteringRecord,
    DeduplicationRecord,
    ScoringRecord,
    SelectionRecord,
)
from curate.catalog.samples import image_member
from curate.catalog.sets import members_condition
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing
from curate.formats.sample_locations import read_image
from curate.formatting import count_of, natural_sort_key, printable
from curate.options import Option, verb
from curate.package_data import read_sql
from curate.progress import announce, log, progress_bar
from curate.storage.atomic import atomic_write

KINDS = ("extremes", "dropped", "duplicates", "clusters", "doubtful")
_FINGERPRINT_KEY = "curate:fingerprint"  # a text in the PNG: what is drawn on it
_GAP, _MARGIN, _TOP, _CAPTION, _LINE = 6, 16, 52, 16, 24  # pixels
_TEXT_COLOUR, _LABEL_COLOUR = (32, 32, 32), (110, 110, 110)
_MAX_LABEL, _MIN_TITLE = 32, 60  # characters: of a row's name, of a line of the title
_LAST_LATIN = 0x24F  # Pillow's own font has no letters beyond


class ImageLocation(NamedTuple):
    """Where a sample is in its shard, in bytes; `image` is the member that --image named."""

    url: str
    offset: int
    length: int
    image: str = ""


def check_png(path: object) -> None:
    """OptionError for a name that does not end in .png."""
    if Path(str(path)).suffix.lower() != ".png":
        name = Path(str(path)).name
        raise OptionError(
            f"the picture is a PNG: give --out a name that ends in .png, not '{name}'"
        )


class Cell(NamedTuple):
    """An image of the picture, and what stands under it."""

    location: ImageLocation
    caption: str = ""


class Rows(NamedTuple):
    """The rows of a picture by name; None is a gap. `num_left` images are left of a line."""

    title: str
    cells: dict[str, list[Cell | None]]
    num_left: int | None = None


def _check_together(arguments: Mapping[str, Any]) -> None:
    kind = arguments["kind"]
    if arguments["selection"] and kind != "dropped":
        raise OptionError(f"--selection is for `curate gallery dropped`, not for {kind}")
    if arguments["by"] and kind in ("duplicates", "clusters"):
        raise OptionError(f"--by: the rows of `curate gallery {kind}` are {kind}, leave it out")


@verb(check=_check_together)
def gallery(
    catalog: Catalog | str | Path,
    kind: Annotated[
        str,
        Option(
            "extremes: the easiest and hardest of each class; dropped: those of what a selection "
            "drops; duplicates: the largest groups; clusters: the nearest to their centroid and "
            "the farthest; doubtful: the hardest, whose labels may be wrong.",
            choices=KINDS,
        ),
    ] = "extremes",
    *,
    scoring: Annotated[
        str, Option("Scoring to rank by, or a column of numbers.")
    ] = "ssl_prototypes",
    selection: Annotated[
        str | None, Option("Selection, for `dropped`.", default="the newest", metavar="NAME")
    ] = None,
    by: Annotated[
        str | None,
        Option(
            "What the rows of the picture are: label, cluster, or a column.",
            metavar="label|cluster|COLUMN",
            default="label, or cluster without labels",
        ),
    ] = None,
    count: Annotated[
        int, Option("Images per row, easiest and hardest each.", minimum=1, maximum=100)
    ] = 6,
    size: Annotated[int, Option("Edge of an image in pixels.", minimum=8, maximum=512)] = 64,
    max_rows: Annotated[int, Option("Groups to show, the largest first.", minimum=1)] = 20,
    out: Annotated[
        str | Path | None,
        Option(
            "PNG to write.",
            metavar="FILE",
            short="-o",
            default="figures/SCORING.png or figures/KIND.png in the catalog",
            check=check_png,
        ),
    ] = None,
) -> str:
    """Draw rows of images, by default the easiest and the hardest of each class.

    Each end of a row has `count` images. Returns the PNG's path. Raises CurateError where there is
    nothing of this kind, or an image cannot be read.
    """
    catalog = Catalog(catalog)
    if out:
        path = Path(out).expanduser().absolute()
    else:
        name = scoring if kind == "extremes" else f"gallery-{kind}"
        path = catalog.path / "figures" / f"{name.replace('/', '_')}.png"
    rows = _find_rows(catalog, kind, scoring, selection, by, count, max_rows)
    fingerprint = provenance.fingerprint("gallery", {**rows._asdict(), "size": size})
    if _is_drawn(path, fingerprint):
        log.info("nothing to do: %s is this picture already", path)
        return str(path)
    announce(f"gallery: drawing {count_of(len(rows.cells), 'row')}")
    picture = draw_rows(rows, size)
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text(_FINGERPRINT_KEY, fingerprint)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=metadata)
    num_images = sum(cell is not None for cells in rows.cells.values() for cell in cells)
    log.info("drew %s in %s", count_of(num_images, "image"), count_of(len(rows.cells), "row"))
    return str(path)


def _find_rows(
    catalog: Catalog,
    kind: str,
    scoring: str,
    selection: str | None,
    by: str | None,
    count: int,
    max_rows: int,
) -> Rows:
    if kind == "duplicates":
        return _find_duplicates(catalog, 2 * count, max_rows)
    if kind == "clusters":
        groups = _find_extremes(catalog, None, "cluster", count, max_rows)
        title = "clusters: from the nearest to the centroid (far left) to the farthest (far right)"
        return Rows(title, groups, count)
    if kind == "doubtful":
        groups = _find_extremes(catalog, scoring, by, 2 * count, max_rows)
        hardest: dict[str, list[Cell | None]] = {
            name: [cell for cell in reversed(cells[2 * count :]) if cell is not None]
            for name, cells in groups.items()
        }
        title = f"{scoring}: the hardest first, which --skip-hardest ranks last: labels in doubt"
        return Rows(title, hardest)
    order = "from the easiest of each row (far left) to the hardest (far right)"
    if kind == "dropped":
        names = catalog.list_names(SelectionRecord)
        if selection is None and names:
            selection = names[-1]
        record = catalog.require(SelectionRecord, selection)
        groups = _find_extremes(catalog, scoring, by, count, max_rows, dropped_by=record.selection)
        return Rows(f"dropped by {record.selection}, by {scoring}: {order}", groups, count)
    return Rows(f"{scoring}: {order}", _find_extremes(catalog, scoring, by, count, max_rows), count)


def _find_duplicates(catalog: Catalog, count: int, max_rows: int) -> Rows:
    """The largest groups of the newest deduplication within the corpus, who stays first."""
    record = catalog.require(
        DeduplicationRecord, next(reversed(catalog.list_names(DeduplicationRecord)), None)
    )
    with catalog.reading() as connection:
        rows = connection.execute(
            read_sql("stages/duplicate_groups"),
            {"deduplication": record.deduplication, "rows": max_rows, "count": count},
        ).fetchall()
    if not rows:
        raise CurateError(f"'{record.deduplication}' has no duplicates within the corpus")
    image = image_member(catalog)
    cells: dict[str, list[Cell | None]] = {}
    for group, size, url, offset, length, stays, similarity in rows:
        caption = "stays" if stays else f"{similarity:.3f}"
        line = cells.setdefault(f"group {group}: {size:,}", [])
        line.append(Cell(ImageLocation(url, offset, length, image), caption))
    title = f"{record.deduplication}: the largest groups, with the cosine to the one that stays"
    return Rows(title, cells)


def _is_drawn(path: Path, fingerprint: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(_FINGERPRINT_KEY) == fingerprint
    except OSError:  # it does not exist, or is no picture
        return False


def _find_extremes(
    catalog: Catalog,
    scoring: str | None,
    by: str | None,
    count: int,
    max_rows: int,
    *,
    dropped_by: str | None = None,
) -> dict[str, list[Cell | None]]:
    """For each group its easiest and hardest samples, easiest first; None fills a gap.

    Without a scoring, by the distance to the centroid. `dropped_by` a selection: of what it drops.
    """
    with catalog.reading() as connection:
        columns = {column.column_name: column for column in list_columns(connection)}
        ((has_labels,),) = connection.execute(
            "select count(label) > 0 from (select label from samples where label is not null "
            "limit 1)"
        ).fetchall()
    source = None
    if scoring is not None and (
        scoring not in columns or columns[scoring].type not in NUMERIC_TYPES
    ):
        source = catalog.require(ScoringRecord, scoring).source
    by = by or ("label" if has_labels else "cluster")
    if by not in ("label", "cluster", *columns):
        available = ", ".join(["label", "cluster", *columns])
        raise OptionError(f"--by {by}: choose one of {available}")
    clusterings = catalog.list_names(ClusteringRecord)
    clustering = source if source in clusterings else next(reversed(clusterings), None)
    group = f"'{by}=' || {quote_identifier(by)}::text"
    if by in ("label", "cluster"):
        group = "'class ' || label" if by == "label" else "null"
    if by == "cluster" and clustering is not None:
        group = f"'cluster ' || {quote_identifier(clustering)}"
    score, distances = f"{quote_identifier(scoring or '')}::double", ""
    if scoring is None:
        if clustering is None:
            clustering = catalog.require(ClusteringRecord, None).clustering
        score = "distance"
        distances = (
            "join (select sample_id, distance::double as distance from assignments "
            f"where clustering = {quote_literal(clustering)}) using (sample_id)"
        )
    condition = ""
    if dropped_by is not None:
        condition = f"where not ({members_condition(dropped_by)})"
    with catalog.reading() as connection:
        # A temporary view takes no parameters.
        connection.execute(
            f"create temp view grouped as select sample_id, {score} as score, "
            f"{group} as group_name from sample_scores {distances} {condition}"
        )
        rows = connection.execute(
            read_sql("stages/extremes"), {"rows": max_rows, "count": count}
        ).fetchall()
    if not rows:
        what = f"'{dropped_by}' drops" if dropped_by else f"'{scoring}' has"
        raise CurateError(f"{what} no sample with a score and a {'class' if by == 'label' else by}")
    image = image_member(catalog)
    groups: dict[str, list[Cell | None]] = {}
    for name, url, offset, length, easy_rank, hard_rank, is_easy in rows:
        line = groups.setdefault(name, [None] * (2 * count))
        column = easy_rank - 1 if is_easy else 2 * count - hard_rank
        line[column] = Cell(ImageLocation(url, offset, length, image))
    return dict(sorted(groups.items(), key=lambda item: natural_sort_key(item[0])))


def draw_rows(rows: Rows, size: int) -> Image.Image:
    """The picture, with images of `size` pixels. Raises CurateError where one cannot be read."""
    labels = {name: printable(" ".join(name.split()), _MAX_LABEL) for name in rows.cells}
    label_font = _choose_font("".join(labels.values()), 14)
    title_font, caption_font = _choose_font(rows.title, 18), ImageFont.load_default(12)
    label_width = max(int(label_font.getlength(label)) for label in labels.values())
    has_captions = any(cell and cell.caption for cells in rows.cells.values() for cell in cells)
    left, cell_width = label_width + 2 * _MARGIN, size + _GAP
    row_height = cell_width + (_CAPTION if has_captions else 0)
    middle_gap = 3 * _GAP if rows.num_left else 0
    longest = max(len(cells) for cells in rows.cells.values())
    width = left + longest * cell_width + middle_gap + _MARGIN
    title_width = max(width - 2 * _MARGIN, int(title_font.getlength("n" * _MIN_TITLE)))
    title = _wrap(rows.title, title_font, title_width)
    width = max(width, int(max(map(title_font.getlength, title))) + 2 * _MARGIN)
    top = _TOP + (len(title) - 1) * _LINE
    height = top + len(rows.cells) * row_height + 12
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(title):
        draw.text((_MARGIN, 12 + number * _LINE), line, _TEXT_COLOUR, title_font)
    with progress_bar("images", len(rows.cells) * longest, "images") as advance:
        for row, (name, cells) in enumerate(rows.cells.items()):
            y = top + row * row_height
            draw.text((_MARGIN, y + size // 2 - 8), labels[name], _LABEL_COLOUR, label_font)
            for column, cell in enumerate(cells):
                is_right = rows.num_left is not None and column >= rows.num_left
                x = left + column * cell_width + (middle_gap if is_right else 0)
                if cell is not None:
                    picture.paste(read_thumbnail(cell.location, size), (x, y))
                    draw.text((x, y + size), cell.caption, _LABEL_COLOUR, caption_font)
                    advance(1, 1)
    if rows.num_left:
        middle = left + rows.num_left * cell_width + _GAP
        bottom = top + len(rows.cells) * row_height - _GAP
        draw.line((middle, top, middle, bottom), fill=_LABEL_COLOUR, width=1)
    return picture


def _choose_font(text: str, size: int) -> Any:
    """Pillow's font, or for letters that it lacks that of matplotlib, with many more scripts."""
    if all(ord(character) <= _LAST_LATIN or character == "…" for character in text):
        return ImageFont.load_default(size)
    plotting.import_matplotlib()
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most so many pixels; a word that is longer is broken."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        for character in f" {word}" if lines[-1] else word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def read_thumbnail(location: ImageLocation, size: int) -> Image.Image:
    """One sample's image, fitted into a white square. Raises CurateError."""
    url, offset, length, image = location
    preprocessing = Preprocessing(size, size, resize="longest", fill=(255, 255, 255))
    return Image.fromarray(read_image(url, offset, length, preprocessing, image))
