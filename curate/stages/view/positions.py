"""Where samples lie on a map: principal components of their vectors, or UMAP where it is installed.

UMAP: McInnes, Healy & Melville 2018.
"""

import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.formats.vectors import read_vectors
from curate.progress import announce, log, progress_bar
from curate.training.pca import fit_reduction

NUM_NEIGHBOURS = 10
_NUM_COMPONENTS = 50
_EXACT_ROWS = 20_000  # up to so many rows neighbours are exact
_SEARCHED_ROWS = 4096  # at a time
_PROBED = 16  # cells of an index that are looked through


class Positions(NamedTuple):
    """Sorted ids int64 [n], points float32 [n, 2]; the nearest rows of each, int64 and float32
    [n, k]: the cosine distance, without the row itself."""

    sample_ids: np.ndarray
    points: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray

    @property
    def mean_distances(self) -> np.ndarray:
        """The mean distance to the neighbours: float32 [n], 1 without any."""
        if not self.distances.shape[1]:
            return np.ones(len(self.sample_ids), np.float32)
        return np.asarray(self.distances.mean(axis=1), np.float32)


def find_positions(catalog: Catalog, embedding: str, sample: int, seed: int) -> Positions:
    """Positions of at most `sample` samples of an embedding, drawn by a hash of their ids."""
    files = catalog.vector_files(embedding)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id from samples where shard_id in (select shard_id from embedded_shards "
            "where embedding = $1) and sample_id not in (select sample_id from failures "
            "where embedding = $1 and sample_id is not null) "
            "order by hash(sample_id), sample_id limit $2",
            [embedding, sample],
        ).fetchnumpy()
    sample_ids = np.sort(np.asarray(rows["sample_id"], np.int64))
    with progress_bar("reduce", 2 * sum(files.values())) as advance:
        reduction = fit_reduction(files, seed, advance)
        parts, part_ids = [], []
        for file in files:
            shard = read_vectors(file)
            is_drawn = np.isin(shard.sample_ids, sample_ids)
            parts.append(reduction(shard.vectors[is_drawn])[:, :_NUM_COMPONENTS])
            part_ids.append(shard.sample_ids[is_drawn])
            advance(len(shard.sample_ids), len(shard.sample_ids))
    vectors = np.ascontiguousarray(np.concatenate(parts), np.float32)
    neighbours, distances = _find_neighbours(vectors)
    return Positions(np.concatenate(part_ids), _place(vectors, seed), neighbours, distances)


def _place(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Points of rows: float32 [n, d] -> [n, 2]."""
    if importlib.util.find_spec("umap") is None or len(vectors) <= NUM_NEIGHBOURS:
        log.info("the map is that of two principal components: with UMAP it shows more")
        points = np.zeros((len(vectors), 2), np.float32)
        points[:, : vectors.shape[1]] = vectors[:, :2]
        return points
    announce("view: UMAP lays out the map")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        return np.asarray(umap.UMAP(random_state=seed).fit_transform(vectors), np.float32)


def _find_neighbours(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows by cosine, without each itself, and 1 − cosine: [n, k] each."""
    import faiss

    count = min(NUM_NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32)
    rows = vectors.copy()
    faiss.normalize_L2(rows)
    index: Any = faiss.IndexFlatIP(rows.shape[1])
    if len(rows) > _EXACT_ROWS:
        num_cells = int(len(rows) ** 0.5)
        index = faiss.IndexIVFFlat(index, rows.shape[1], num_cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _PROBED
        announce("view: making an index of the vectors")
        index.train(rows)
    index.add(rows)
    parts = []
    with progress_bar("neighbours", len(rows)) as advance:
        for start in range(0, len(rows), _SEARCHED_ROWS):
            parts.append(index.search(rows[start : start + _SEARCHED_ROWS], count + 1))
            advance(len(parts[-1][0]), len(parts[-1][0]))
    cosines, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # A row's own place is not always the first: others may be the same.
    is_other = ids != np.arange(len(rows))[:, None]
    order = np.argsort(~is_other, axis=1, kind="stable")[:, :count]
    ids = np.take_along_axis(ids, order, axis=1)
    distances = 1 - np.take_along_axis(cosines, order, axis=1)
    return ids.astype(np.int64), distances.astype(np.float32)
