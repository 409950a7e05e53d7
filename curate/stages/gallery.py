"""`curate gallery`: one picture of the easiest and the hardest images of each class, straight from the shards."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from curate import provenance, resources, shards
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.images import Preprocessing
from curate.places import image_at
from curate.progress import log

_NOTE = "curate:fingerprint"  # a text in the PNG: what is drawn on it
_GAP, _INK, _FAINT = 6, (32, 32, 32), (110, 110, 110)


def gallery(
    catalog: Catalog | str | Path,
    *,
    scoring: str = "ssl_prototypes",
    by: str | None = None,
    count: int = 6,
    size: int = 64,
    max_rows: int = 20,
    out: str | Path | None = None,
) -> str:
    """Draw `count` easiest and hardest images of each class or cluster (`by` label or cluster); return the PNG's path.

    `by` defaults to label, or cluster where there are no labels. Images are `size` pixels; at most `max_rows` groups,
    the largest. The path defaults to figures/SCORING.png in the catalog.
    """
    catalog = Catalog(catalog)
    row = catalog.require("scoring", scoring)
    if count < 1 or size < 8 or max_rows < 1:
        raise CurateError("--count and --max-rows must be at least 1, --size at least 8")
    if by not in (None, "label", "cluster"):
        raise CurateError(f"--by {by}: choose one of label, cluster")
    path = Path(out).expanduser().absolute() if out else catalog.path / "figures" / f"{row['scoring']}.png"
    if path.suffix.lower() != ".png":
        raise CurateError(f"the picture is a PNG: give --out a name that ends in .png, not '{path.name}'")
    groups = _extremes(catalog, row, by, count, max_rows)
    title = f"{row['scoring']}: from the easiest of each row (far left) to the hardest (far right)"
    fingerprint = provenance.fingerprint("gallery", {"title": title, "size": size, "groups": groups})
    if _is_drawn(path, fingerprint):
        log.info("nothing to do: %s is this picture already", path)
        return str(path)
    picture = _draw(groups, title, count, size)
    note = PngImagePlugin.PngInfo()
    note.add_text(_NOTE, fingerprint)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=note)
    log.info("drew %d rows of up to %d easiest and %d hardest images", len(groups), count, count)
    return str(path)


def _is_drawn(path: Path, fingerprint: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(_NOTE) == fingerprint
    except OSError:  # there is none, or it is no picture
        return False


def _extremes(
    catalog: Catalog, scoring: dict[str, Any], by: str | None, count: int, max_rows: int
) -> dict[str, list[tuple[Any, ...] | None]]:
    """For each group its easiest and hardest samples (url, offset, length), easiest first; None fills a gap."""
    clusterings = catalog.names("clustering")
    clustering = scoring["source"] if scoring["source"] in clusterings else next(reversed(clusterings), None)
    with catalog.reading() as connection:
        labelled = connection.execute("select 1 from samples where label is not null limit 1").fetchone()
        rows = connection.execute(
            resources.sql("stages/extremes"),
            {"scoring": scoring["scoring"], "by": by or ("label" if labelled else "cluster"), "clustering": clustering,
             "rows": max_rows, "count": count},
        ).fetchall()  # fmt: skip
    if not rows:
        raise CurateError(f"the scoring '{scoring['scoring']}' has no scored sample with a class or a cluster to show")
    groups: dict[str, list[tuple[Any, ...] | None]] = {}
    for name, url, offset, length, easy, hard, is_easy in rows:
        line = groups.setdefault(name, [None] * (2 * count))
        line[easy - 1 if is_easy else 2 * count - hard] = (url, offset, length)
    return dict(sorted(groups.items(), key=lambda item: shards.natural(item[0])))


def _draw(groups: dict[str, list[tuple[Any, ...] | None]], title: str, count: int, size: int) -> Image.Image:
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    names = {name: " ".join(name.split())[:32] for name in groups}
    margin = 16 + max(int(small.getlength(name)) for name in names.values()) + 16
    cell, top = size + _GAP, 52
    width = margin + 2 * count * cell + 3 * _GAP + 16
    picture = Image.new("RGB", (max(width, int(font.getlength(title)) + 32), top + len(groups) * cell + 12), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 12), title, _INK, font)
    for row, (name, line) in enumerate(groups.items()):
        draw.text((16, top + row * cell + size // 2 - 8), names[name], _FAINT, small)
        for column, place in enumerate(line):
            x = margin + column * cell + (3 * _GAP if column >= count else 0)
            if place is not None:
                picture.paste(_thumbnail(place, size), (x, top + row * cell))
    middle = margin + count * cell + _GAP
    draw.line((middle, top, middle, top + len(groups) * cell - _GAP), fill=_FAINT, width=1)
    return picture


def _thumbnail(place: tuple[Any, ...], size: int) -> Image.Image:
    """One sample's image, read by its place in the tar, fitted into a square."""
    url, offset, length = place
    how = Preprocessing(size, size, resize="longest", interpolation="bicubic", fill=(255, 255, 255))
    return Image.fromarray(image_at(url, offset, length, how))
