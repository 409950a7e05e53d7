"""What the catalog says of samples: labels as class numbers, and where they lie in their shards."""

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.formats.sample_ids import shard_of
from curate.formats.sample_locations import SampleLocations
from curate.formatting import natural_sort_key


def class_to_index(catalog: Catalog) -> dict[str, int]:
    """The classes in natural order, each with its number. Raises CurateError without labels."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select distinct label from samples where label is not null"
        ).fetchall()
    if not rows:
        raise CurateError(
            "the corpus has no labels: choose a metric that needs none, "
            "or embed with --label json:FIELD"
        )
    labels = sorted((label for (label,) in rows), key=natural_sort_key)
    return {label: index for index, label in enumerate(labels)}


def encode_labels(labels: np.ndarray, classes: dict[str, int]) -> np.ndarray:
    """Labels as class numbers: text [n] -> int64 [n], −1 without a label or for an unknown one."""
    texts = np.ma.filled(np.ma.asarray(labels).astype(object), "")
    unique_texts, inverse = np.unique(texts, return_inverse=True)
    return np.array([classes.get(text, -1) for text in unique_texts], np.int64)[inverse]


def load_labels(catalog: Catalog, sample_ids: np.ndarray, classes: dict[str, int]) -> np.ndarray:
    """The class numbers of samples, sorted ids int64 [n] -> int64 [n]."""
    return encode_labels(load_columns(catalog, sample_ids, "label")["label"], classes)


def load_clusters(catalog: Catalog, clustering: str, sample_ids: np.ndarray) -> np.ndarray:
    """The clusters of samples, sorted ids int64 [n] -> int64 [n], −1 for none."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id, cluster_id from assignments where clustering = ? order by 1",
            [clustering],
        ).fetchnumpy()
    ids, clusters = np.asarray(rows["sample_id"]), np.asarray(rows["cluster_id"], np.int64)
    if not len(ids):
        return np.full(len(sample_ids), -1, np.int64)
    index = np.searchsorted(ids, sample_ids).clip(max=len(ids) - 1)
    return np.where(ids[index] == sample_ids, clusters[index], -1)


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
        rows = connection.execute(
            "select sample_id from members where selection = ? order by 1", [selection]
        ).fetchnumpy()
    return np.asarray(rows["sample_id"], np.int64)
