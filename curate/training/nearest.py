"""How far a few samples are from the nearest of very many, in one pass over the vector files.

Two questions are answered by it. Coverage: how far samples that were held out are from the nearest
one that is kept, for several selections at once (the k-center radius of Sener and Savarese 2018,
here as a whole distribution). Leakage: how many test samples have a near-duplicate in the corpus
(Barz and Denzler 2020, who looked at CIFAR's pairs of the largest cosine).
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from curate.distances import TILE_BYTES, l2_normalize
from curate.execution.types import ReportProgress
from curate.formats.sample_ids import are_members
from curate.formats.vectors import iterate_vectors, read_sample_ids
from curate.random_hash import random_bits

MAX_HELD_OUT = 10_000  # the mean distance of so many has a standard error of 1% of its spread
MAX_EXAMINED = 1_000
# A near-duplicate is nearer than this share of the distance that is usual among test samples; see
# `count_near_duplicates`. At a cosine of COPY_COSINE it always is one.
NEAR_DUPLICATE_SHARE = 0.3
COPY_COSINE = 0.999

_BATCH_ROWS = 1 << 12  # rows of a file in memory


class NearDuplicates(NamedTuple):
    """Of `num_examined` test samples so many have a near-duplicate in the corpus.

    That is a sample whose cosine with them is at least `threshold`.
    """

    num_duplicated: int
    num_examined: int
    threshold: float


def draw_samples(sample_ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the ids, or all where there are no more, by the seeded hash; sorted int64."""
    if len(sample_ids) > count:
        order = np.argpartition(random_bits(sample_ids, seed), count)
        sample_ids = sample_ids[order[:count]]
    return np.sort(sample_ids)


def nearest_distances(
    files: Iterable[str],
    sample_ids: np.ndarray,
    arms: Sequence[np.ndarray],
    advance: ReportProgress,
    *,
    test_files: Iterable[str] | None = None,
) -> np.ndarray:
    """Cosine distance, 1 − x·y, from each held-out sample to the nearest member of each arm.

    `sample_ids` are those of the held-out samples, sorted int64 [t], of `files`, or of `test_files`
    where these are given; draw them by `draw_samples` where they are more than MAX_HELD_OUT. `arms`
    are sorted ids of `files`, int64 [k] each. Returns float32 [arms, t], right to about 1e-6; a
    sample is never its own neighbour, and from an arm without members all are infinitely far.
    Progress counts the rows of `files` and of the files of held-out samples.

    Memory, for 1,000,000 vectors of 512 numbers, 10,000 of them held out, and ten arms: 20 MB for
    the held-out vectors, 8 MB at a time of the others with three copies of the same size, 64 MB
    for a tile of products, 0.4 MB for the largest product by arm and sample; and 8 MB by arm for
    the ids that the caller holds. All but the last depend on the number of held-out samples and
    on the dimension alone.
    """
    files = list(files)
    queries = read_samples(files if test_files is None else test_files, sample_ids, advance)
    cosines = largest_cosines(
        files,
        queries,
        lambda ids: np.stack([are_members(ids, arm) for arm in arms]),
        len(arms),
        advance,
        own_ids=sample_ids if test_files is None else None,
    )
    return np.asarray(np.maximum(1 - cosines, 0))


def count_near_duplicates(
    corpus_files: Iterable[str],
    test_files: Iterable[str],
    advance: ReportProgress,
    *,
    threshold: float | None = None,
    seed: int = 0,
) -> NearDuplicates:
    """How many test samples have a corpus sample whose cosine with them is at least `threshold`.

    At most MAX_EXAMINED test samples are examined, drawn by the seeded hash. The two are different
    files, whose ids have nothing to do with each other. Memory: as `nearest_distances`.

    What cosine two pictures of one thing have depends on the encoder and on the corpus, so the
    default is relative: 1 − NEAR_DUPLICATE_SHARE times the median distance from an examined sample
    to the nearest other one, which no leakage from the corpus changes. Measured with
    efficientnet_lite0@64 on CIFAR-10, the 10,000 test images against 22,500 for training, where
    that is a cosine of 0.894: of the 37 pairs above it, 35 are one photo to the eye, though
    cropped, mirrored or recoloured; of the 27 from 0.88 to there 22; of the 58 from 0.85 to 0.88
    about 40. So what is counted is a near-duplicate, and far from all of them are counted (by eye,
    Barz and Denzler found 3.3% of the test images among all 50,000). A fixed 0.9 would do as well
    there, and would call 73% of handwritten digits near-duplicates of others
    (efficientnet_lite0@96), where the default calls 0.4%.
    """
    test_files = list(test_files)
    test_ids = np.concatenate([np.empty(0, np.int64), *map(read_sample_ids, test_files)])
    examined = draw_samples(test_ids, MAX_EXAMINED, seed)
    queries = read_samples(test_files, examined, advance)
    if threshold is None:
        threshold = near_duplicate_cosine(queries)
    (cosines,) = largest_cosines(
        corpus_files, queries, lambda ids: np.ones((1, len(ids)), bool), 1, advance
    )
    return NearDuplicates(int((cosines >= threshold).sum()), len(examined), threshold)


def near_duplicate_cosine(queries: np.ndarray, share: float = NEAR_DUPLICATE_SHARE) -> float:
    """1 − `share` of the median distance to the nearest other one, of rows of length 1 [t, d]."""
    if len(queries) < 2:
        return COPY_COSINE
    cosines = queries @ queries.T
    np.fill_diagonal(cosines, -np.inf)
    usual_distance = float(np.median(1 - cosines.max(axis=1)))
    return min(1 - share * usual_distance, COPY_COSINE)


def read_samples(
    files: Iterable[str], sample_ids: np.ndarray, advance: ReportProgress
) -> np.ndarray:
    """Vectors of length 1 of samples, sorted ids int64 [t]: float32 [t, dim].

    Raises ValueError for an id that is in none of the files.
    """
    vectors = np.empty((0, 0), np.float32)
    is_read = np.zeros(len(sample_ids), bool)
    for file in files:
        for batch in iterate_vectors(file, _BATCH_ROWS):
            if not vectors.size:
                vectors = np.empty((len(sample_ids), batch.vectors.shape[1]), np.float32)
            is_wanted = are_members(batch.sample_ids, sample_ids)
            index = np.searchsorted(sample_ids, batch.sample_ids[is_wanted])
            vectors[index] = l2_normalize(batch.vectors[is_wanted])
            is_read[index] = True
            advance(len(batch.sample_ids), len(batch.sample_ids))
    if not is_read.all():
        raise ValueError(f"{(~is_read).sum():,} of the samples are in none of the files")
    return vectors


def largest_cosines(
    files: Iterable[str],
    queries: np.ndarray,
    find_arms: Callable[[np.ndarray], np.ndarray],
    num_arms: int,
    advance: ReportProgress,
    own_ids: np.ndarray | None = None,
) -> np.ndarray:
    """The largest cosine of each query, of length 1 [t, d], within each arm: float32 [arms, t].

    `find_arms` gives, for sample ids [n], bool [arms, n]: which of them are in which arm. `own_ids`
    are the sorted ids of the queries where they are samples of these files.
    """
    largest = np.full((num_arms, len(queries)), -np.inf, np.float32)
    step = min(max(TILE_BYTES // 4 // max(len(queries), 1), 1), _BATCH_ROWS)
    buffer = np.empty((step, len(queries)), np.float32)
    for batch in itertools.chain.from_iterable(iterate_vectors(f, _BATCH_ROWS) for f in files):
        # Rows that are in the same arms become neighbours and are reduced together, so that each
        # product is read once, not once for every arm. Rows of no arm are not compared.
        is_in_arm = find_arms(batch.sample_ids)
        order = np.lexsort(is_in_arm)
        order = order[np.logical_or.reduce(is_in_arm, axis=0)[order]]
        is_in_arm, row_ids = is_in_arm[:, order], batch.sample_ids[order]
        rows = l2_normalize(batch.vectors[order])
        for start in range(0, len(rows), step):
            tile = slice(start, start + step)
            products = np.matmul(rows[tile], queries.T, out=buffer[: len(rows[tile])])
            if own_ids is not None:
                _exclude_own(products, row_ids[tile], own_ids)
            changes = np.diff(is_in_arm[:, tile], axis=1).any(axis=0)
            bounds = [0, *np.flatnonzero(changes) + 1, len(products)]
            for first, last in itertools.pairwise(bounds):
                of_same_arms = products[first:last].max(axis=0)
                for arm in np.flatnonzero(is_in_arm[:, start + first]):
                    np.maximum(largest[arm], of_same_arms, out=largest[arm])
        advance(len(batch.sample_ids), len(batch.sample_ids))
    return largest


def _exclude_own(products: np.ndarray, row_ids: np.ndarray, own_ids: np.ndarray) -> None:
    """No sample is its own neighbour: products [n, t] of rows [n] with the samples [t]."""
    is_own = np.flatnonzero(are_members(row_ids, own_ids))
    products[is_own, np.searchsorted(own_ids, row_ids[is_own])] = -np.inf
