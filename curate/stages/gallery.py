"""`curate gallery`: one picture of the easiest and the hardest images of each class, straight from the shards."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from curate import images, provenance, shards
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.engine.embedding import image_kind
from curate.errors import CurateError
from curate.progress import log
from curate.tar import BLOCK, TarReader

_NOTE = "curate:fingerprint"  # a text in the PNG: what is drawn on it
_GAP, _INK, _FAINT = 6, (32, 32, 32), (110, 110, 110)


def gallery(
    catalog: Catalog | str | Path,
    *,
    scoring: str = "ssl_prototypes",
    count: int = 6,
    size: int = 64,
    max_rows: int = 20,
    out: str | Path | None = None,
) -> str:
    """Draw `count` easiest and hardest images of each class (of each cluster where there are no labels); return the PNG's path.

    Images are `size` pixels; at most `max_rows` classes, the largest. The path defaults to figures/SCORING.png in the catalog.
    """
    catalog = Catalog(catalog)
    row = catalog.require("scoring", scoring)
    if count < 1 or size < 8 or max_rows < 1:
        raise CurateError("--count and --max-rows must be at least 1, --size at least 8")
    path = Path(out).expanduser().absolute() if out else catalog.path / "figures" / f"{row['scoring']}.png"
    groups = _extremes(catalog, row["scoring"], count, max_rows)
    title = f"{row['scoring']}: easiest (left) and hardest (right)"
    fingerprint = provenance.fingerprint("gallery", {"title": title, "size": size, "groups": groups})
    if _is_drawn(path, fingerprint):
        log.info("nothing to do: %s is this picture already", path)
        return str(path)
    picture = _draw(groups, title, count, size)
    note = PngImagePlugin.PngInfo()
    note.add_text(_NOTE, fingerprint)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=note)
    log.info("drew %d rows of %d easiest and %d hardest images", len(groups), count, count)
    return str(path)


def _is_drawn(path: Path, fingerprint: str) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(_NOTE) == fingerprint
    except OSError:  # there is none, or it is no picture
        return False


def _extremes(catalog: Catalog, scoring: str, count: int, max_rows: int) -> dict[str, list[tuple[Any, ...] | None]]:
    """For each group its easiest and hardest samples (url, offset, length), easiest first; None fills a gap."""
    with catalog.reading() as connection:
        labelled = connection.execute("select 1 from samples where label is not null limit 1").fetchone()
        group = "'class ' || label" if labelled else "'cluster ' || cluster_id"
        rows = connection.execute(
            f"""
            with known as (
                select {group} as class, sample_id, score from scores join samples using (sample_id)
                left join (select sample_id, cluster_id from assignments
                           where clustering = (select last(clustering order by run_id) from clusterings)) using (sample_id)
                where scoring = $scoring and score is not null and class is not null
            ),
            placed as (
                select class, sample_id, count(*) over (partition by class) as class_size,
                       row_number() over (partition by class order by score, sample_id) as easy,
                       row_number() over (partition by class order by score desc, sample_id) as hard
                from known
            ),
            largest as (select class from known group by class order by count(*) desc, class limit $rows)
            select class, url, byte_offset, samples.num_bytes, easy, hard
            from placed join largest using (class) join samples using (sample_id) join shards using (shard_id)
            where easy <= $count or hard <= $count
            order by class
            """,
            {"scoring": scoring, "rows": max_rows, "count": count},
        ).fetchall()
    if not rows:
        raise CurateError(f"the scoring '{scoring}' has no scored sample with a class or a cluster to show")
    groups: dict[str, list[tuple[Any, ...] | None]] = {}
    for name, url, offset, length, easy, hard in rows:
        line = groups.setdefault(name, [None] * (2 * count))
        if easy <= count:
            line[easy - 1] = (url, offset, length)
        if hard <= count:
            line[2 * count - hard] = (url, offset, length)
    return dict(sorted(groups.items(), key=lambda item: shards.natural(item[0])))


def _draw(groups: dict[str, list[tuple[Any, ...] | None]], title: str, count: int, size: int) -> Image.Image:
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    margin = 16 + max(int(small.getlength(name)) for name in groups) + 16
    cell, top = size + _GAP, 52
    width = margin + 2 * count * cell + 3 * _GAP + 16
    picture = Image.new("RGB", (max(width, int(font.getlength(title)) + 32), top + len(groups) * cell + 12), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 12), title, _INK, font)
    for row, (name, line) in enumerate(groups.items()):
        draw.text((16, top + row * cell + size // 2 - 8), name, _FAINT, small)
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
    try:
        with shards.open_shard(url) as stream:
            stream.seek(offset)
            data = stream.read(length)
    except OSError as error:
        raise CurateError(f"'{url}' cannot be read ({error.strerror or error}): put the shard back") from error
    members = next(shards.samples(TarReader(io.BytesIO(data + bytes(2 * BLOCK))))).members
    kind = image_kind(members)
    if kind is None:
        raise CurateError(f"'{url}' has changed since it was embedded: no image at byte {offset:,}")
    how = images.Preprocessing(size, size, resize="longest", interpolation="bicubic", fill=(255, 255, 255))
    return Image.fromarray(images.decode(members[kind], how).pixels)
