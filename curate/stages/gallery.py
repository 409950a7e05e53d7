"""`curate gallery`: one picture of the easiest and the hardest images of each class."""

from pathlib import Path
from typing import Annotated, NamedTuple

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.columns import NUMERIC_TYPES, list_columns
from curate.catalog.records import ClusteringRecord, ScoringRecord
from curate.catalog.samples import image_member
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError, OptionError
from curate.formats.images import Preprocessing
from curate.formats.sample_locations import read_image
from curate.formatting import natural_sort_key
from curate.options import Option, verb
from curate.package_data import read_sql
from curate.progress import log
from curate.storage.atomic import atomic_write

_FINGERPRINT_KEY = "curate:fingerprint"  # a text in the PNG: what is drawn on it
_GAP, _MARGIN, _TOP = 6, 16, 52  # pixels
_TEXT_COLOUR, _LABEL_COLOUR = (32, 32, 32), (110, 110, 110)
_MAX_LABEL = 32  # characters


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


@verb()
def gallery(
    catalog: Catalog | str | Path,
    *,
    scoring: Annotated[
        str, Option("Scoring to rank by, or a column of numbers.")
    ] = "ssl_prototypes",
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
            default="figures/SCORING.png in the catalog",
            check=check_png,
        ),
    ] = None,
) -> str:
    """Draw `count` easiest and hardest images of each class or cluster; returns the PNG's path."""
    catalog = Catalog(catalog)
    if out:
        path = Path(out).expanduser().absolute()
    else:
        path = catalog.path / "figures" / f"{scoring.replace('/', '_')}.png"
    groups = _find_extremes(catalog, scoring, by, count, max_rows)
    title = f"{scoring}: from the easiest of each row (far left) to the hardest (far right)"
    settings = {"title": title, "size": size, "groups": groups}
    fingerprint = provenance.fingerprint("gallery", settings)
    if _is_drawn(path, fingerprint):
        log.info("nothing to do: %s is this picture already", path)
        return str(path)
    picture = _draw(groups, title, count, size)
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text(_FINGERPRINT_KEY, fingerprint)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=metadata)
    log.info("drew %d rows of up to %d easiest and %d hardest images", len(groups), count, count)
    return str(path)


def _is_drawn(path: Path, fingerprint: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(_FINGERPRINT_KEY) == fingerprint
    except OSError:  # it does not exist, or is no picture
        return False


def _find_extremes(
    catalog: Catalog, scoring: str, by: str | None, count: int, max_rows: int
) -> dict[str, list[ImageLocation | None]]:
    """For each group its easiest and hardest samples, easiest first; None fills a gap."""
    with catalog.reading() as connection:
        columns = {column.column_name: column for column in list_columns(connection)}
        ((has_labels,),) = connection.execute(
            "select count(label) > 0 from (select label from samples where label is not null "
            "limit 1)"
        ).fetchall()
    source = None
    if scoring not in columns or columns[scoring].type not in NUMERIC_TYPES:
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
    with catalog.reading() as connection:
        # A temporary view takes no parameters.
        connection.execute(
            f"create temp view grouped as select sample_id, "
            f"{quote_identifier(scoring)}::double as score, {group} as group_name "
            "from sample_scores"
        )
        rows = connection.execute(
            read_sql("stages/extremes"), {"rows": max_rows, "count": count}
        ).fetchall()
    if not rows:
        raise CurateError(
            f"'{scoring}' has no sample with a score and a {'class' if by == 'label' else by}"
        )
    image = image_member(catalog)
    groups: dict[str, list[ImageLocation | None]] = {}
    for name, url, offset, length, easy_rank, hard_rank, is_easy in rows:
        line = groups.setdefault(name, [None] * (2 * count))
        column = easy_rank - 1 if is_easy else 2 * count - hard_rank
        line[column] = ImageLocation(url, offset, length, image)
    return dict(sorted(groups.items(), key=lambda item: natural_sort_key(item[0])))


def _draw(
    groups: dict[str, list[ImageLocation | None]], title: str, count: int, size: int
) -> Image.Image:
    title_font, label_font = ImageFont.load_default(18), ImageFont.load_default(14)
    labels = {name: " ".join(name.split())[:_MAX_LABEL] for name in groups}
    label_width = max(int(label_font.getlength(label)) for label in labels.values())
    left, cell, middle_gap = label_width + 2 * _MARGIN, size + _GAP, 3 * _GAP
    width = max(
        left + 2 * count * cell + middle_gap + _MARGIN,
        int(title_font.getlength(title)) + 2 * _MARGIN,
    )
    height = _TOP + len(groups) * cell + 12
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 12), title, _TEXT_COLOUR, title_font)
    for row, (name, locations) in enumerate(groups.items()):
        y = _TOP + row * cell
        draw.text((_MARGIN, y + size // 2 - 8), labels[name], _LABEL_COLOUR, label_font)
        for column, location in enumerate(locations):
            x = left + column * cell + (middle_gap if column >= count else 0)
            if location is not None:
                picture.paste(read_thumbnail(location, size), (x, y))
    middle = left + count * cell + _GAP
    bottom = _TOP + len(groups) * cell - _GAP
    draw.line((middle, _TOP, middle, bottom), fill=_LABEL_COLOUR, width=1)
    return picture


def read_thumbnail(location: ImageLocation, size: int) -> Image.Image:
    """One sample's image, fitted into a white square. Raises CurateError."""
    url, offset, length, image = location
    preprocessing = Preprocessing(size, size, resize="longest", fill=(255, 255, 255))
    return Image.fromarray(read_image(url, offset, length, preprocessing, image))
