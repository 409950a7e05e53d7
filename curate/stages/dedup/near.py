"""Near duplicates of a catalog: its vectors, the threshold, and who stays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, EmbeddingRecord
from curate.distances import l2_normalize
from curate.errors import CurateError
from curate.execution.reporting import no_progress
from curate.execution.types import Resources
from curate.formats.centroids import load_centroids
from curate.formats.sample_ids import are_members
from curate.formats.vectors import read_sample_ids, sample_rows, write_sample_ids
from curate.progress import log
from curate.stages.cluster.kmeans import fit_centroids
from curate.stages.cluster.stage import auto_k
from curate.stages.dedup.methods import count_split_chains, find_survivors
from curate.stages.dedup.neighbours import LocatedSamples, SortedSamples, VectorFiles, VectorSets
from curate.storage import files as storage
from curate.training.nearest import MAX_EXAMINED, draw_samples, near_duplicate_cosine, read_samples

_FIT_ROWS_PER_CENTROID, _FIT_ITERATIONS = 64, 6
_MIN_EPS, _MAX_EPS = 1e-6, 1.999
_MAX_SEARCHES, _KEEP_TOLERANCE = 16, 0.001  # of --keep: passes, and the share that is near enough


@dataclass(frozen=True)
class NearSurvivors:
    """Who stays for each located sample, int64 [n] ids, and the cosine with it, float64 [n].

    Of `num_chains` sets that only chains of near pairs connect, `num_split` samples stay.
    """

    sample_ids: np.ndarray
    survivor_ids: np.ndarray
    cosines: np.ndarray
    num_chains: int
    num_split: int


def list_vector_files(
    catalog: Catalog, embedding: str, sample_ids: np.ndarray, members_file: str
) -> tuple[VectorFiles, np.ndarray]:
    """The files with vectors of samples, sorted ids int64 [n], and those that have a vector.

    The ids are written to `members_file` for the workers. CurateError where none has a vector.
    """
    write_sample_ids(members_file, sample_ids)
    rows, embedded_ids = {}, []
    for file in catalog.vector_files(embedding):
        ids = read_sample_ids(file)
        ids = ids[are_members(ids, sample_ids)]
        if len(ids):
            rows[file] = len(ids)
            embedded_ids.append(ids)
    if not rows:
        raise CurateError(
            f"no sample to compare has a vector in the embedding '{embedding}': choose another "
            "--embedding or --within, or compare by --exact"
        )
    return VectorFiles(rows, members_file), np.concatenate(embedded_ids)


def find_clustering(
    catalog: Catalog, embedding: str, clustering: str | None, within: str | None
) -> ClusteringRecord | None:
    """The clustering by that name, else the newest of the embedding; None where there is none.

    The newest of the same corpus, made within the same selection: one made within what stays would
    make the groups out of date that it was made from.
    """
    if clustering is not None:
        record = catalog.require(ClusteringRecord, clustering)
        if record.embedding != embedding:
            raise CurateError(
                f"the clustering '{clustering}' is of the embedding '{record.embedding}', not of "
                f"'{embedding}': choose another --clustering, or leave it out"
            )
        return record
    names = catalog.list_names(ClusteringRecord)
    records = [catalog.require(ClusteringRecord, name) for name in reversed(names)]
    return next(
        (
            record
            for record in records
            if record.embedding == embedding
            and catalog.run_arguments(record.run_id).get("within") == within
        ),
        None,
    )


def load_or_fit_centroids(
    catalog: Catalog, record: ClusteringRecord | None, vectors: VectorFiles
) -> np.ndarray:
    """Those of the clustering, or new ones that are not kept: float16 [k, dim] of length 1."""
    if record is not None:
        centroids = load_centroids(catalog.centroids_file(record))
    else:
        num_rows = sum(vectors.rows.values())
        k = auto_k(num_rows)
        count = min(num_rows, max(_FIT_ROWS_PER_CENTROID * k, 1 << 14))
        rows = sample_rows(vectors.rows, count, 0, no_progress, l2_normalize, vectors.within)
        centroids = fit_centroids(rows, k, "cosine", _FIT_ITERATIONS, 0)
    return np.asarray(l2_normalize(centroids).astype(np.float16))


def choose_eps(vectors: VectorFiles, sample_ids: np.ndarray, share: float) -> float:
    """`share` of the distance that is usual between a sample and the nearest of a thousand others.

    What cosine two pictures of one thing have depends on the encoder and on the corpus: see
    `curate.training.nearest.count_near_duplicates`.
    """
    drawn = draw_samples(sample_ids, MAX_EXAMINED, 0)
    rows = read_samples(vectors.rows, drawn, no_progress)
    return float(1 - near_duplicate_cosine(rows, share))


@dataclass(frozen=True)
class NearSearch:
    """The samples that are compared, in the order in which they stay: by `order`, int64 [n]."""

    samples: LocatedSamples
    sorted_samples: SortedSamples
    order: np.ndarray  # of all located samples
    representative: np.ndarray  # for each of `order`, the rank of the first with its vector
    num_ranks: int
    resources: Resources

    @classmethod
    def prepare(cls, vectors: VectorSets, values: np.ndarray, all_ids: np.ndarray) -> "NearSearch":
        """Sort the samples to disk; `values` float64 [m] of the sorted ids `all_ids` order them.

        The highest value first, then the nearest to its centroid, then in tar order. Samples with
        the same vector have the same neighbours, so the first of them stands for all.
        """
        samples = vectors.locate()
        own_values = values[np.searchsorted(all_ids, samples.sample_ids)]
        own_values = np.nan_to_num(own_values, nan=-np.inf)
        order = np.lexsort((samples.sample_ids, samples.angles, -own_values))
        _, first, inverse = np.unique(
            samples.checksums[order], return_index=True, return_inverse=True
        )
        is_first = np.zeros(len(order), bool)
        is_first[first] = True
        ranks_in_order = np.cumsum(is_first) - 1
        ranks = np.full(len(order), -1)
        ranks[order[is_first]] = ranks_in_order[is_first]
        return cls(
            samples,
            vectors.sort(samples, ranks),
            order,
            ranks_in_order[first][inverse],
            int(is_first.sum()),
            vectors.resources,
        )

    def count_removed(self, eps: float, method: str) -> int:
        """How many of the samples go."""
        survivors = self._find_survivors(eps, method)
        return len(self.order) - int((survivors == np.arange(self.num_ranks)).sum())

    def find(self, eps: float, method: str) -> NearSurvivors:
        """Who stays for each sample."""
        pairs = self.sorted_samples.find_pairs(eps, method, self.resources)
        survivors = find_survivors(self.num_ranks, pairs, method)
        num_chains, num_split = count_split_chains(pairs, survivors)
        cosines_of_ranks = np.ones(self.num_ranks)
        gone = np.flatnonzero(survivors != np.arange(self.num_ranks))
        cosines_of_ranks[gone] = self.sorted_samples.cosines(gone, survivors[gone])
        ids_in_order = self.samples.sample_ids[self.order]
        _, first = np.unique(self.representative, return_index=True)
        return NearSurvivors(
            ids_in_order,
            ids_in_order[first[survivors[self.representative]]],
            np.minimum(cosines_of_ranks[self.representative], 1),
            num_chains,
            num_split,
        )

    def _find_survivors(self, eps: float, method: str) -> np.ndarray:
        pairs = self.sorted_samples.find_pairs(eps, method, self.resources)
        return find_survivors(self.num_ranks, pairs, method)

    def find_eps(self, num_wanted: int, start: float, method: str) -> float:
        """The threshold at which `num_wanted` of the samples go, by bisection, each step a pass.

        Right to a thousandth of the samples. The least threshold where more go at any.
        """
        tolerance = max(_KEEP_TOLERANCE * len(self.order), 0.5)
        low, high, eps = _MIN_EPS, _MAX_EPS, start
        for _ in range(_MAX_SEARCHES):
            num_removed = self.count_removed(eps, method)
            log.info("eps %.4g: %s samples go", eps, f"{num_removed:,}")
            if abs(num_removed - num_wanted) <= tolerance:
                break
            if num_removed > num_wanted:
                high = eps
            else:
                low = eps
            if low == _MIN_EPS:
                eps = max(eps / 4, _MIN_EPS)
            elif high == _MAX_EPS:
                eps = min(2 * eps, _MAX_EPS)
            else:
                eps = float(np.sqrt(low * high))
        return eps


def make_vector_sets(
    sides: tuple[VectorFiles, ...],
    embedding: EmbeddingRecord,
    centroids: np.ndarray,
    folder: str,
    local_folder: Path,
    resources: Resources,
) -> VectorSets:
    """Ready to be located and sorted in `folder`, which is a URL or the local folder itself."""
    local = local_folder if storage.is_url(folder) else Path(folder)
    return VectorSets(sides, embedding.dim, centroids, folder, local, resources)
