"""What the catalog says of samples: labels as class numbers, and where they lie in their shards."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord, SelectionRecord
from curate.catalog.sql import quote_literal
from curate.errors import CurateError
from curate.formats.member_roles import MemberRoles
from curate.formats.sample_ids import are_members, shard_of
from curate.formats.sample_locations import SampleLocations
from curate.formats.text import likeness
from curate.formatting import natural_sort_key

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# So many samples a class needs on average; of labels such as 0.2713 more, as they are measured.
_MIN_REPEATS, _MIN_REPEATS_OF_FRACTIONS = 2, 10
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", re.ASCII)
_FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*([eE][+-]?\d+)?$", re.ASCII)
_MAX_COMPARED_LABELS = 20_000
_BATCH_ROWS = 1 << 18

# Where the column `preprocessing` of an embedding has what is not usual.
_ROLE_KEYS = {"key_rule": "key", "image": "image", "caption": "caption_member"}


def roles_of(record: EmbeddingRecord) -> MemberRoles:
    """Which members of its samples an embedding was made from."""
    stored = json.loads(record.preprocessing)
    named = {field: stored[key] for field, key in _ROLE_KEYS.items() if key in stored}
    return MemberRoles(label=record.label_source, **named)


def roles_to_preprocessing(roles: MemberRoles) -> dict[str, str]:
    """What `roles_of` reads: those that are not usual."""
    usual = MemberRoles()
    return {
        key: getattr(roles, field)
        for field, key in _ROLE_KEYS.items()
        if getattr(roles, field) != getattr(usual, field)
    }


def corpus_roles(catalog: Catalog) -> MemberRoles | None:
    """How the samples of the corpus were read, the same for all embeddings; None without any."""
    names = catalog.list_names(EmbeddingRecord)
    return roles_of(catalog.require(EmbeddingRecord, names[0])) if names else None


def image_member(catalog: Catalog) -> str:
    """The extension of the image, where --image named one, or no text."""
    roles = corpus_roles(catalog)
    return (roles.image if roles else None) or ""


def find_known_shards(connection: "DuckDBPyConnection") -> list[int]:
    """The shards whose samples are in the corpus: first and last ids of runs of neighbours."""
    rows = connection.execute(
        "select shard_id from shards where num_samples is not null order by 1"
    ).fetchnumpy()
    return to_shard_runs(np.asarray(rows["shard_id"], np.int64))


def to_shard_runs(shard_ids: np.ndarray) -> list[int]:
    """Sorted ids int64 [n] as first and last ids of runs of neighbours, one after the other."""
    if not len(shard_ids):
        return []
    gaps = np.flatnonzero(np.diff(shard_ids) != 1)
    firsts = shard_ids[np.concatenate([[0], gaps + 1])]
    lasts = shard_ids[np.concatenate([gaps, [len(shard_ids) - 1]])]
    return [int(shard_id) for pair in zip(firsts, lasts, strict=True) for shard_id in pair]


def find_unknown_shards(
    connection: "DuckDBPyConnection", selection: SelectionRecord
) -> frozenset[int]:
    """The shards that came to the corpus after the selection, which says nothing of them.

    Selections of before schema 9 know those of which their scoring has scores.
    """
    if selection.known_shards is None:
        rows = connection.execute(
            "select shard_id from shards where num_samples is not null "
            "and shard_id not in (select sample_id >> 24 from scores where scoring = $1) "
            "and shard_id not in (select sample_id >> 24 from members where selection = $2) "
            "and exists (select 1 from scores where scoring = $1)",
            [selection.scoring, selection.selection],
        ).fetchall()
        return frozenset(shard_id for (shard_id,) in rows)
    rows = connection.execute(
        "select shard_id from shards where num_samples is not null"
    ).fetchall()
    shard_ids = np.array([shard_id for (shard_id,) in rows], np.int64)
    is_known = are_in_runs(shard_ids, selection.known_shards)
    return frozenset(shard_ids[~is_known].tolist())


def are_in_runs(shard_ids: np.ndarray, runs: list[int]) -> np.ndarray:
    """Which ids are within runs as `to_shard_runs` has them: int64 [n] -> bool [n]."""
    bounds = np.asarray(runs, np.int64).reshape(-1, 2)
    if not len(bounds):
        return np.zeros(len(shard_ids), bool)
    indices = np.searchsorted(bounds[:, 0], shard_ids, side="right") - 1
    return np.asarray((indices >= 0) & (shard_ids <= bounds[indices.clip(min=0), 1]))


def class_to_index(catalog: Catalog) -> dict[str, int]:
    """The classes in natural order, each with its number.

    Raises CurateError without labels, and where they hardly repeat, as measurements do.
    """
    with catalog.reading() as connection:
        rows = connection.execute(
            "select label, count(*) from samples where label is not null group by label"
        ).fetchall()
    if not rows:
        raise CurateError(
            "the corpus has no labels: choose a metric that needs none, "
            "or embed with --label json:FIELD"
        )
    _check_repeated(dict(rows))
    labels = sorted((label for label, _ in rows), key=natural_sort_key)
    return {label: index for index, label in enumerate(labels)}


def _check_repeated(counts: dict[str, int]) -> None:
    """CurateError where labels are no classes, by how many samples have each."""
    total = sum(counts.values())
    fractions = sum(count for label, count in counts.items() if _FRACTION.match(label))
    are_measured = fractions > total / 2
    least = _MIN_REPEATS_OF_FRACTIONS if are_measured else _MIN_REPEATS
    if len(counts) <= 2 or total >= least * len(counts):
        return
    example = next(iter(counts))
    remedy = "`curate validate --label-bins 5` makes classes of numbers; or "
    remedy = (remedy if are_measured or all(map(_NUMBER.match, counts)) else "") + (
        "choose a metric and a --task that need no labels, such as ssl_prototypes and coverage"
    )
    raise CurateError(
        f"{len(counts):,} different labels for {total:,} samples, such as '{example}', "
        f"are no classes to learn: {remedy}"
    )


class LabelBins(NamedTuple):
    """Classes of labels that are numbers: about as many samples in each. `edges` float64 [n - 1].

    A number belongs to the bin after the last edge that is not above it.
    """

    names: list[str]
    edges: np.ndarray

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Labels as numbers of bins: text [n] -> int64 [n], −1 for what is no number."""
        texts = np.ma.filled(np.ma.asarray(labels).astype(object), "")
        values = np.array([_to_number(text) for text in texts], np.float64)
        bins = np.searchsorted(self.edges, values, side="right")
        return np.where(np.isnan(values), -1, bins)


def make_label_bins(catalog: Catalog, count: int) -> LabelBins:
    """As many bins, by the quantiles of all labels.

    Raises CurateError where they are no numbers.
    """
    quantiles = [index / count for index in range(1, count)]
    with catalog.reading() as connection:
        ((total, non_number, low, high, edges),) = connection.execute(
            "select count(label), any_value(label) filter (number is null and label is not null), "
            "min(number), max(number), quantile_disc(number, $1::double[]) "
            "from (select label, try_cast(label as double) as number from samples)",
            [quantiles],
        ).fetchall()
    if not total:
        raise CurateError("the corpus has no labels for --label-bins: leave it out")
    if non_number is not None:
        raise CurateError(
            f"--label-bins is for numbers, and '{non_number}' is a label: leave it out"
        )
    distinct_edges = sorted({edge for edge in edges if low < edge <= high})
    if not distinct_edges:
        raise CurateError(f"all labels are {low:g}: there is nothing to tell apart")
    bounds = [low, *distinct_edges, high]
    names = [f"{start:g} to {stop:g}" for start, stop in itertools.pairwise(bounds)]
    return LabelBins(names, np.array(distinct_edges))


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def find_alike_labels(catalog: Catalog) -> list[list[str]]:
    """Groups of labels that people would take for one class. Not of very many labels."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select distinct label from samples where label is not null limit ?",
            [_MAX_COMPARED_LABELS + 1],
        ).fetchall()
    groups: dict[str, list[str]] = {}
    if len(rows) <= _MAX_COMPARED_LABELS:
        for (label,) in sorted(rows):
            groups.setdefault(likeness(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def encode_labels(labels: np.ndarray, classes: dict[str, int]) -> np.ndarray:
    """Labels as class numbers: text [n] -> int64 [n], −1 without a label or for an unknown one."""
    texts = np.ma.filled(np.ma.asarray(labels).astype(object), "")
    unique_texts, inverse = np.unique(texts, return_inverse=True)
    return np.array([classes.get(text, -1) for text in unique_texts], np.int64)[inverse]


def load_labels(catalog: Catalog, sample_ids: np.ndarray, classes: dict[str, int]) -> np.ndarray:
    """The class numbers of samples, sorted ids int64 [n] -> int64 [n], −1 for none.

    DuckDB turns labels into numbers: as texts in Python they would take 100 bytes each.
    """
    import pyarrow as pa

    numbers = np.full(len(sample_ids), -1)
    table = {
        "label": pa.array(list(classes), pa.string()),
        "number": pa.array(list(classes.values()), pa.int64()),
    }
    with catalog.reading() as connection:
        connection.register("classes", pa.table(table))
        query = "select sample_id, number from samples join classes using (label)"
        fill_column(connection, f"{query} {_between(sample_ids)}", sample_ids, numbers)
    return numbers


def load_clusters(catalog: Catalog, clustering: str, sample_ids: np.ndarray) -> np.ndarray:
    """The clusters of samples, sorted ids int64 [n] -> int64 [n], −1 for none."""
    clusters = np.full(len(sample_ids), -1)
    query = (
        f"select sample_id, cluster_id from assignments {_between(sample_ids)} "
        f"and clustering = {quote_literal(clustering)}"
    )
    with catalog.reading() as connection:
        fill_column(connection, query, sample_ids, clusters)
    return clusters


def _between(sample_ids: np.ndarray) -> str:
    """The condition that an id is within the range of sorted ids [n]."""
    if not len(sample_ids):
        return "where false"
    return f"where sample_id between {int(sample_ids[0])} and {int(sample_ids[-1])}"


def fill_column(
    connection: "DuckDBPyConnection", query: str, sample_ids: np.ndarray, column: np.ndarray
) -> None:
    """Put the values of a query for (sample_id, value) into a column of sorted ids, [n] each.

    In batches; ids that are not among these are skipped.
    """
    position = 0  # where the next batch starts, if it has just the ids that follow
    for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
        ids, values = (array.to_numpy(zero_copy_only=False) for array in batch.columns)
        index: Any = slice(position, position + len(ids))
        if not np.array_equal(sample_ids[index], ids):
            index = np.searchsorted(sample_ids, ids)
            is_known = index < len(sample_ids)
            is_known[is_known] = sample_ids[index[is_known]] == ids[is_known]
            index, values = index[is_known], values[is_known]
        column[index] = values
        position += len(ids)


def fetch_values(
    connection: "DuckDBPyConnection", query: str, count: int, dtype: type[np.generic]
) -> np.ndarray:
    """What a query for one column gives, of at most `count` rows, in its order: [n], in batches."""
    values, num_filled = np.empty(count, dtype), 0
    for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
        values[num_filled : num_filled + len(batch)] = batch.column(0).to_numpy()
        num_filled += len(batch)
    return values[:num_filled]


def fetch_ids(connection: "DuckDBPyConnection", query: str, count: int) -> np.ndarray:
    """The ids that a query gives, at most `count`: sorted int64 [n]."""
    sample_ids = fetch_values(connection, query, count, np.int64)
    if not (sample_ids[1:] > sample_ids[:-1]).all():
        sample_ids.sort()
    return sample_ids


def iterate_column(
    catalog: Catalog, sample_ids: np.ndarray, column: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A column of `samples` for sorted ids int64 [n], in batches: indices of ids, and values."""
    query = f"select sample_id, {column} from samples {_between(sample_ids)}"
    with catalog.reading() as connection:
        for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
            ids, values = (array.to_numpy(zero_copy_only=False) for array in batch.columns)
            is_wanted = are_members(ids, sample_ids)
            yield np.searchsorted(sample_ids, ids[is_wanted]), values[is_wanted]


def load_locations(catalog: Catalog, sample_ids: np.ndarray) -> SampleLocations:
    """Where samples lie, sorted ids int64 [n]."""
    with catalog.reading() as connection:
        urls = dict(connection.execute("select shard_id, url from shards").fetchall())
    columns = load_columns(catalog, sample_ids, "byte_offset, num_bytes")
    shard_ids = np.array(sorted(urls), np.int64)
    return SampleLocations(
        [urls[shard_id] for shard_id in shard_ids.tolist()],
        np.searchsorted(shard_ids, shard_of(sample_ids)),
        columns["byte_offset"],
        columns["num_bytes"],
        image_member(catalog),
    )


def load_columns(catalog: Catalog, sample_ids: np.ndarray, columns: str) -> dict[str, np.ndarray]:
    """Columns of `samples` for sorted ids [n]: arrays [n]."""
    with catalog.reading() as connection:
        rows = connection.execute(
            f"select sample_id, {columns} from samples "
            "where sample_id between ? and ? order by sample_id",
            [int(sample_ids[0]), int(sample_ids[-1])],
        ).fetchnumpy()
    row_indices = np.searchsorted(rows["sample_id"], sample_ids)
    return {name: values[row_indices] for name, values in rows.items()}


def load_members(catalog: Catalog, selection: str) -> np.ndarray:
    """The sorted ids of a selection's members, int64 [n]."""
    with catalog.reading() as connection:
        ((count,),) = connection.execute(
            "select count(*) from members where selection = ?", [selection]
        ).fetchall()
        query = f"select sample_id from members where selection = {quote_literal(selection)}"
        return fetch_ids(connection, query, count)


def load_repeats(catalog: Catalog, selection: str) -> tuple[np.ndarray, np.ndarray]:
    """The sorted ids of a selection's members, int64 [n], and how often each comes in an epoch,
    int64 [n]."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id, coalesce(repeats, 1) as repeats from members "
            "where selection = ? order by 1",
            [selection],
        ).fetchnumpy()
    return np.asarray(rows["sample_id"], np.int64), np.asarray(rows["repeats"], np.int64)


def load_weights(catalog: Catalog, selection: str) -> tuple[np.ndarray, np.ndarray]:
    """The sorted ids of a selection's members, int64 [n], and their weights, float32 [n]."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id, weight from members where selection = ? order by 1", [selection]
        ).fetchnumpy()
    return np.asarray(rows["sample_id"], np.int64), np.asarray(rows["weight"], np.float32)
