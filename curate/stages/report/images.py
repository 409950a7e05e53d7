"""The images of a report: which are shown, how they were drawn, and their pixels.

Dropped images come first. Where not all fit into the page, real pixels are left out before
thumbnails, and both from the end of the order in which images were drawn.
"""

import base64
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.catalog.records import DeduplicationRecord
from curate.catalog.samples import image_member
from curate.errors import CurateError
from curate.formats.sample_locations import WholeImage, read_whole_image
from curate.formatting import shorten
from curate.package_data import read_sql
from curate.progress import log, progress_bar

if TYPE_CHECKING:
    import duckdb

MAX_TEXT = 500  # characters of a caption or a label
MAX_CLASSES = 20_000  # more different labels than these are no classes to look at one by one
_MAX_GROUPS = 500  # classes or clusters of which images are drawn
_ENDS = 6  # easiest and hardest of each group
_MAX_DROPPED = 200  # of each kind of a group
_MAX_DUPLICATES, _MAX_COPIES = 12, 8  # groups of duplicates, images of each
_MAX_SAFE_INTEGER = 2**53  # larger ones lose digits in a browser
_THUMBNAIL_QUALITY, _REAL_QUALITY, _WEBP_EFFORT = 75, 70, 3


class GroupImages(NamedTuple):
    """A class, a cluster or the whole corpus: its size, what is dropped of it, and its ends.

    `easy` and `hard` are ids of samples, the easiest and the hardest first.
    """

    name: str
    num_samples: int
    num_dropped: int
    easy: list[int]
    hard: list[int]


class Drawing(NamedTuple):
    """The samples to show, the most important first, and the groups they are shown in.

    `groups` by kind: class, cluster, all. `duplicates` are ids, the one that stays first.
    """

    sample_ids: list[int]
    groups: dict[str, list[GroupImages]]
    duplicates: list[list[int]]
    num_dropped: int


@dataclass(frozen=True)
class ReportImage:
    """An image with its row of `sample_scores`, and the selections that keep it.

    `thumbnail` and `real` are data URLs; `real` is None where the thumbnail has all pixels, or
    where there was no room for it. `problem` says why there is no image.
    """

    row: dict[str, Any]
    cluster: int | None
    kept: list[str]
    width: int
    height: int
    thumbnail: str | None
    real: str | None
    problem: str | None


def draw_images(
    catalog: Catalog,
    limit: int,
    *,
    scoring: str | None,
    clustering: str | None,
    selection: str | None,
) -> Drawing:
    """Which samples to show, `limit` at most: half of them from what the selection drops."""
    with catalog.reading() as connection:
        ((num_classes,),) = connection.execute(
            "select approx_count_distinct(label) from samples"
        ).fetchall()
        has_classes = num_classes <= MAX_CLASSES
        num_listed = min(max(num_classes if has_classes else 1, 1), _MAX_GROUPS)
        parameters = {
            "scoring": scoring,
            "clustering": clustering,
            "selection": selection,
            "has_classes": has_classes,
            "ends": _ENDS,
            "dropped": min(-(-limit // (6 * num_listed)) + 1, _MAX_DROPPED),
            "groups": _MAX_GROUPS,
        }
        rows = connection.execute(read_sql("stages/report_groups"), parameters).fetchall()
        duplicates = _find_duplicates(connection, catalog)
        fill = connection.execute(
            "select sample_id from samples order by hash(sample_id), sample_id limit ?", [limit]
        ).fetchall()
    groups: dict[str, list[GroupImages]] = {"class": [], "cluster": [], "all": []}
    dropped: dict[str, list[list[int]]] = {"class": [], "cluster": [], "all": []}
    for kind, name, num_samples, num_dropped, easy, hard, *lists, _ in rows:
        groups[kind].append(GroupImages(name, num_samples, num_dropped, easy, hard))
        dropped_easy, dropped_hard, dropped_random = lists
        dropped[kind].append(list(_take_turns([dropped_hard, dropped_easy, dropped_random])))
    of_groups = dropped["class"] or dropped["cluster"] or dropped["all"]
    sources = [
        (limit // 2, _take_turns(of_groups)),
        (limit // 12, itertools.chain.from_iterable(duplicates)),
        *((limit // 8, _take_turns(_ends(groups[kind]))) for kind in ("all", "class", "cluster")),
        (limit, [sample_id for (sample_id,) in fill]),
    ]
    sample_ids = _take_shares(limit, sources)
    shown = set(sample_ids)
    return Drawing(
        sample_ids,
        {
            kind: [
                group._replace(easy=_prefix(group.easy, shown), hard=_prefix(group.hard, shown))
                for group in members
            ]
            for kind, members in groups.items()
        },
        [ids for ids in (_prefix(ids, shown) for ids in duplicates) if len(ids) > 1],
        groups["all"][0].num_dropped if groups["all"] else 0,
    )


def _find_duplicates(connection: "duckdb.DuckDBPyConnection", catalog: Catalog) -> list[list[int]]:
    """The largest groups of the newest deduplication within the corpus, who stays first."""
    rows = connection.execute(
        "select list(sample_id order by stays desc, similarity desc, sample_id)[:$2] as ids "
        "from duplicates where deduplication = (select deduplication from deduplications "
        "where against is null order by run_id desc limit 1) "
        "group by group_id order by count(*) desc, group_id limit $1",
        [_MAX_DUPLICATES, _MAX_COPIES],
    ).fetchall()
    return [ids for (ids,) in rows] if catalog.list_names(DeduplicationRecord) else []


def _take_turns(lists: Iterable[list[int]]) -> Iterator[int]:
    """The first of each list, then the second of each, and so on."""
    for turn in itertools.zip_longest(*lists):
        yield from (sample_id for sample_id in turn if sample_id is not None)


def _ends(groups: list[GroupImages]) -> list[list[int]]:
    return [ids for group in groups for ids in (group.hard, group.easy)]


def _take_shares(limit: int, sources: list[tuple[int, Iterable[int]]]) -> list[int]:
    """Each source's share in order, then what is left of each, without repetitions."""
    shares = [(share, list(ids)) for share, ids in sources]
    chosen: dict[int, None] = {}
    for is_second_round in (False, True):
        for share, ids in shares:
            stop = limit if is_second_round else min(len(chosen) + share, limit)
            for sample_id in ids:
                if len(chosen) >= stop:
                    break
                chosen[sample_id] = None
    return list(chosen)


def _prefix(ids: list[int], shown: set[int]) -> list[int]:
    """The ids up to the first that is not shown: without gaps."""
    return list(itertools.takewhile(shown.__contains__, ids))


def load_images(
    catalog: Catalog, drawing: Drawing, size: int, clustering: str | None, budget: int
) -> list[ReportImage]:
    """The images in the order of the drawing, with thumbnails of `size` pixels at most.

    As JSON they take at most `budget` bytes. An image that cannot be read has a problem instead.
    """
    rows, kept_by = _load_rows(catalog, drawing.sample_ids)
    images: list[ReportImage] = []
    problems: list[str] = []
    left, left_for_real, image_name = budget, budget, image_member(catalog)
    with progress_bar("images", len(rows), "images") as advance:
        for row in rows:
            location = (row["url"], row["byte_offset"], row["num_bytes"], image_name)
            plain = ReportImage(
                row={name: to_json(value) for name, value in row.items()},
                cluster=row.get(clustering) if clustering else None,
                kept=kept_by.get(row["sample_id"], []),
                width=row["width"] or 0,
                height=row["height"] or 0,
                thumbnail=None,
                real=None,
                problem=None,
            )
            try:
                image = _encode(plain, read_whole_image(*location), size)
            except CurateError as error:
                problems.append(str(error))
                image = replace(plain, problem=shorten(str(error), MAX_TEXT))
            cost = json_size(replace(image, real=None))
            if cost > left:
                break
            left -= cost
            real_cost = len(image.real or "")
            left_for_real -= cost + real_cost
            if left_for_real < 0:
                image = replace(image, real=None)
                left_for_real += real_cost
            images.append(image)
            advance(1, 1)
    if problems:
        log.warning("%d images cannot be shown; the first: %s", len(problems), problems[0])
    return _without_excess(images, budget)


def _load_rows(
    catalog: Catalog, sample_ids: list[int]
) -> tuple[list[dict[str, Any]], dict[int, list[str]]]:
    """The rows of samples in the order of their ids, and the selections that keep each."""
    with catalog.reading() as connection:
        cursor = connection.execute(
            "select * from sample_scores where sample_id in (select unnest(?))", [sample_ids]
        )
        columns = [column[0] for column in cursor.description or []]
        rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
        members = connection.execute(
            "select sample_id, selection from members where sample_id in (select unnest(?))",
            [sample_ids],
        ).fetchall()
    kept_by: dict[int, list[str]] = {}
    for sample_id, selection in members:
        kept_by.setdefault(sample_id, []).append(selection)
    positions = {sample_id: position for position, sample_id in enumerate(sample_ids)}
    return sorted(rows, key=lambda row: positions[row["sample_id"]]), kept_by


def _without_excess(images: list[ReportImage], budget: int) -> list[ReportImage]:
    """Within the budget: without the real pixels of the last images where these do not fit."""
    excess = sum(map(json_size, images)) - budget
    for index in range(len(images) - 1, -1, -1):
        if excess <= 0:
            break
        excess -= len(images[index].real or "")
        images[index] = replace(images[index], real=None)
    return images


def _encode(plain: ReportImage, whole: WholeImage, size: int) -> ReportImage:
    """With pixels: without loss where the image is no larger than a thumbnail."""
    image = Image.fromarray(whole.pixels)
    if max(image.size) <= size:
        thumbnail, real = _to_data_url(image, lossless=True), None
    else:
        small = image.copy()
        small.thumbnail((size, size), Image.Resampling.BICUBIC)
        thumbnail = _to_data_url(small, quality=_THUMBNAIL_QUALITY)
        real = _to_data_url(image, quality=_REAL_QUALITY)
    return replace(plain, width=whole.width, height=whole.height, thumbnail=thumbnail, real=real)


def _to_data_url(image: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="WEBP", method=_WEBP_EFFORT, **options)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def dump_json(value: Any) -> str:
    """JSON that can stand in a script element: only angle brackets could end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def json_size(image: ReportImage) -> int:
    """Bytes of an image in the page."""
    return len(dump_json(asdict(image)).encode()) + 2  # and a comma


def to_json(value: Any) -> Any:
    """A value for the page: short numbers, dates as text, the beginning of a long text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_SAFE_INTEGER:
        return str(value)
    is_plain = value is None or isinstance(value, bool | int)
    return value if is_plain else shorten(str(value), MAX_TEXT)
