"""`curate cluster`: k-means in an embedding; centroids to a file, assignments to the catalog."""

import tempfile
from pathlib import Path

import numpy as np

from curate import engine, provenance
from curate.atomic import replacing
from curate.catalog import Catalog, check_name, refresh_sample_scores, replace_set
from curate.engine import Resources, kmeans
from curate.errors import CurateError
from curate.progress import bar, log

# faiss' own rule of thumb: beyond so many rows a centroid, more change the centroids little.
_ROWS_PER_CENTROID = 256


def cluster(
    catalog: Catalog | str | Path,
    *,
    embedding: str | None = None,
    k: int | None = None,
    distance: str = "cosine",
    iterations: int = 20,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    name: str = "kmeans",
) -> str:
    """Cluster an embedding into `k` clusters, and return the clustering's name.

    `k` defaults to a thousandth of the corpus, from 10 to 50,000. The centroids are fitted on
    `sample` rows (default 256 a centroid, all if there are fewer); then every sample is assigned.
    """
    catalog = Catalog(catalog)
    check_name(name)
    kmeans.check_distance(distance)
    embedding = str(catalog.require("embedding", embedding)["embedding"])
    files, sizes = _files(catalog, embedding)
    total = sum(sizes)
    k = k if k is not None else auto_k(total)
    if k < 1 or iterations < 1:
        raise CurateError("--k and --iterations must be at least 1")
    rows = min(sample or _ROWS_PER_CENTROID * k, total)
    settings = {"embedding": embedding, "k": k, "distance": distance, "iterations": iterations, "sample": rows, "seed": seed}
    fingerprint = provenance.fingerprint("cluster", settings, catalog.embedding_fingerprint(embedding))
    old = catalog.head("clustering", name)
    if old and old["fingerprint"] == fingerprint and catalog.centroid_file(name).is_file():
        log.info("nothing to do: '%s' is this clustering already (objective %.6g)", name, old["objective"])
        return name
    with catalog.run("cluster", {**settings, "name": name}) as run_id:
        with bar("read", rows) as advance:
            training = kmeans.sample(files, sizes, rows, seed, advance)
        fitted = kmeans.fit(training, k, distance, iterations, seed)
        del training
        row = {"clustering": name, "embedding": embedding, "distance": distance, "k": k, "iterations": iterations,
               "seed": seed, "sampled_rows": fitted.sampled_rows, "num_samples": total,
               "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        objective = _assign_and_commit(catalog, row, fitted.centroids, files, Resources(workers))
    log.info("clustering '%s': %s samples, k = %s, fitted on %s rows, objective %.6g", name,
             f"{total:,}", f"{k:,}", f"{fitted.sampled_rows:,}", objective)  # fmt: skip
    return name


def auto_k(num_samples: int) -> int:
    """A thousandth of the corpus, clamped to 10…50,000, and never more than there are samples."""
    return min(max(num_samples // 1000, 10), 50_000, max(num_samples, 1))


def _files(catalog: Catalog, embedding: str) -> tuple[list[Path], list[int]]:
    files = catalog.vector_files(embedding)
    with catalog.reading() as connection:
        sizes = connection.execute(
            "select num_embedded from embedded_shards where embedding = ? and num_embedded > 0 order by shard_id", [embedding]
        ).fetchall()
    if not files:
        raise CurateError(f"the embedding '{embedding}' is empty: look at `curate query failures`")
    return files, [size for (size,) in sizes]


def _assign_and_commit(
    catalog: Catalog, row: dict[str, object], centroids: np.ndarray, files: list[Path], resources: Resources
) -> float:
    name = str(row["clustering"])
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=catalog.path) as folder:
        centroid_file = Path(folder) / "centroids.npy"
        np.save(centroid_file, centroids)
        task = kmeans.Assign(centroid_file, str(row["distance"]), Path(folder))
        objective = 0.0
        with bar("assign", int(str(row["num_samples"]))) as advance:
            for outcome in engine.map(task, files, resources, advance=advance):
                if outcome.error:
                    raise CurateError(f"cannot assign {outcome.item.name}: {outcome.error}")
                objective += outcome.result
        # The centroids come first: a head row whose file is missing would be worse than a file without a row.
        with replacing(catalog.centroid_file(name)) as temporary, temporary.open("wb") as file:
            np.save(file, centroids)
        with catalog.writing() as connection:
            replace_set(connection, "clustering", "assignments", {**row, "objective": objective})
            connection.execute(
                "insert into assignments select $name, sample_id, cluster_id, distance "
                "from read_parquet($files) order by sample_id",
                {"name": name, "files": f"{folder}/*.parquet"},
            )
            refresh_sample_scores(connection)
    return objective
