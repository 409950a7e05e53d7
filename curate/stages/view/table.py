"""The table of an atlas: a row a sample, with its image, its place on the map and all columns."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.catalog.samples import image_member
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError
from curate.formats.sample_locations import read_whole_image
from curate.progress import log, progress_bar
from curate.stages.view.positions import Positions
from curate.storage.atomic import atomic_write

if TYPE_CHECKING:
    import duckdb

THUMBNAIL, PROBLEM = "image", "image_problem"
X, Y, NEIGHBOURS = "x", "y", "neighbors"
TYPICAL = "typicality"  # mean cosine with the neighbours: which image stands for a crowd
_BATCH = 1000  # rows
_MAX_EXACT = 2**53  # the atlas counts in doubles: it fails on an integer beyond
_QUALITY = 80
_GREY = (128, 128, 128)


class Table(NamedTuple):
    """What was written: its rows, and whether samples have captions."""

    num_samples: int
    has_captions: bool
    columns: list[str]


def write_table(
    catalog: Catalog, path: Path, positions: Positions, selections: list[str], size: int
) -> Table:
    """Write the Parquet file of these samples, in the order of their ids.

    It has the columns of `sample_scores`, and for each selection one with `kept` or `dropped`,
    called `kept` where there is one selection and `kept_NAME` where there are several. What people
    look at stands first. Where an image cannot be read, a grey one stands, and `image_problem` says
    why.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_problems, has_captions, first_problem = 0, False, ""
    image_name = image_member(catalog)
    with (
        progress_bar("images", len(positions.sample_ids)) as advance,
        atomic_write(path) as temporary,
    ):
        writer: pq.ParquetWriter | None = None
        for start, rows in _read_rows(catalog, positions.sample_ids, selections):
            images, problems = [], []
            for url, offset, length in zip(
                *(rows[name].to_pylist() for name in ("url", "byte_offset", "num_bytes")),
                strict=True,
            ):
                image, problem = _read_thumbnail((url, offset, length, image_name), size)
                images.append(image)
                problems.append(problem)
            advance(len(images), len(images))
            found = [problem for problem in problems if problem]
            first_problem = first_problem or next(iter(found), "")
            num_problems += len(found)
            has_captions = has_captions or rows["caption"].null_count < len(rows)
            stop = start + len(rows)
            for name, values in {
                THUMBNAIL: pa.array(images, pa.binary()),
                PROBLEM: pa.array(problems, pa.string()),
                X: pa.array(positions.points[start:stop, 0], pa.float32()),
                Y: pa.array(positions.points[start:stop, 1], pa.float32()),
                NEIGHBOURS: _neighbours_array(positions, start, stop),
                TYPICAL: pa.array(1 - positions.mean_distances[start:stop], pa.float32()),
            }.items():
                rows = rows.append_column(name, values)
            first = [THUMBNAIL, "key", "label", "caption", *kept_columns(selections).values()]
            rows = rows.select(list(dict.fromkeys([*first, *rows.schema.names])))
            writer = writer or pq.ParquetWriter(temporary, rows.schema)
            writer.write_table(rows.cast(writer.schema))
        if writer is None:
            raise CurateError("the embedding has no samples: look at `curate query shards`")
        writer.close()
    if num_problems:
        log.warning("%d images are grey boxes; the first: %s", num_problems, first_problem)
    return Table(len(positions.sample_ids), has_captions, writer.schema.names)


def kept_columns(selections: list[str]) -> dict[str, str]:
    """The column of each selection that says what it keeps."""
    if len(selections) == 1:
        return {selections[0]: "kept"}
    return {selection: f"kept_{selection}" for selection in selections}


def _read_rows(
    catalog: Catalog, sample_ids: np.ndarray, selections: list[str]
) -> Iterator[tuple[int, Any]]:
    """The rows of samples, in batches: where a batch starts, and its Arrow table."""
    import pyarrow as pa

    columns = kept_columns(selections)
    with catalog.reading() as connection:
        select = _select_exact(connection)
    for start in range(0, len(sample_ids), _BATCH):
        ids = sample_ids[start : start + _BATCH]
        with catalog.reading() as connection:
            rows: Any = connection.sql(
                f"{select} where sample_id in (select unnest(?)) order by sample_id",
                params=[ids.tolist()],
            ).to_arrow_table()
            members = connection.execute(
                "select selection, sample_id from members where selection in (select unnest($1)) "
                "and sample_id in (select unnest($2))",
                [selections, ids.tolist()],
            ).fetchnumpy()
        for selection, column in columns.items():
            kept_ids = members["sample_id"][members["selection"] == selection]
            is_kept = np.isin(rows["sample_id"].to_numpy(), kept_ids)
            values = pa.array(np.where(is_kept, "kept", "dropped").tolist(), pa.string())
            rows = rows.append_column(column, values)
        yield start, rows


def _select_exact(connection: "duckdb.DuckDBPyConnection") -> str:
    """`select … from sample_scores`, with columns of integers beyond 2^53 as text.

    A predicate on such a column means the same in the atlas and in --where: SQL casts a number
    that is compared with text.
    """
    kinds = connection.execute("select column_name, column_type from (describe sample_scores)")
    integers = [
        quote_identifier(name)
        for name, kind in kinds.fetchall()
        if kind.endswith(("BIGINT", "HUGEINT"))
    ]
    largest = connection.execute(
        f"select {', '.join(f'max(abs({name}::hugeint))' for name in integers)} from sample_scores"
    ).fetchone()
    wide = [
        name
        for name, value in zip(integers, largest or (), strict=True)
        if (value or 0) > _MAX_EXACT
    ]
    replaced = ", ".join(f"{name}::varchar as {name}" for name in wide)
    return f"select *{f' replace ({replaced})' if wide else ''} from sample_scores"


def _neighbours_array(positions: Positions, start: int, stop: int) -> Any:
    """The nearest samples of each, as numbers of rows, with their distances."""
    import pyarrow as pa

    ids, distances = positions.neighbours[start:stop], positions.distances[start:stop]
    width = ids.shape[1]
    offsets = pa.array(np.arange(len(ids) + 1) * width, pa.int32())
    return pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(offsets, pa.array(ids.ravel(), pa.int64())),
            pa.ListArray.from_arrays(offsets, pa.array(distances.ravel(), pa.float32())),
        ],
        names=["ids", "distances"],
    )


def _read_thumbnail(location: tuple[str, int, int, str], size: int) -> tuple[bytes, str | None]:
    """A JPEG of at most `size` pixels; a grey one, and why, where there is no image."""
    problem = None
    try:
        image = Image.fromarray(read_whole_image(*location, max_edge=size).pixels)
    except CurateError as error:
        image, problem = Image.new("RGB", (size, size), _GREY), str(error)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=_QUALITY)
    return file.getvalue(), problem
