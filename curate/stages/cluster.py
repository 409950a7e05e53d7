"""`curate cluster`: k-means in an embedding; centroids to a file, assignments to the catalog."""

from pathlib import Path
from typing import Any

import numpy as np

from curate import distances, engine, provenance, sets, vectors
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.engine import Resources, kmeans
from curate.errors import CurateError
from curate.progress import bar, log

# faiss' own rule of thumb: beyond so many rows a centroid, more change the centroids little.
_ROWS_PER_CENTROID = 256
_ROWS_THAT_COST_NOTHING = 1 << 16


def cluster(
    catalog: Catalog | str | Path,
    *,
    embedding: str | None = None,
    k: int | str = "auto",
    distance: str = "cosine",
    iterations: int = 20,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    name: str = "kmeans",
) -> str:
    """Cluster an embedding into `k` clusters, and return the clustering's name.

    `k` auto is a thousandth of the corpus, from 10 to 50,000. The centroids are fitted on `sample` rows (default
    256 a centroid, at least 65,536, all if there are fewer); then every sample is assigned.
    """
    catalog = Catalog(catalog)
    catalog.check_column("clustering", name)
    distances.check(distance)
    parent = catalog.require("embedding", embedding)
    embedding = str(parent["embedding"])
    content = catalog.embedding_fingerprint(embedding)  # before the files are listed: what comes later makes it out of date
    files = catalog.vector_files(embedding)
    if not files:
        raise CurateError(f"the embedding '{embedding}' is empty: look at `curate query failures`")
    total = sum(files.values())
    k = _number_of_clusters(k, total)
    if iterations < 1:
        raise CurateError("--iterations must be at least 1")
    rows = min(sample or max(_ROWS_PER_CENTROID * k, _ROWS_THAT_COST_NOTHING), total)
    settings = {"embedding": embedding, "k": k, "distance": distance, "iterations": iterations, "sample": rows, "seed": seed}
    fingerprint = provenance.fingerprint("cluster", settings, content)
    old = catalog.head("clustering", name)
    if old and old["fingerprint"] == fingerprint and catalog.centroid_file(old).is_file():
        log.info("nothing to do: '%s' is this clustering already (objective %.6g)", name, old["objective"])
        return name
    with catalog.run("cluster", name, settings, made_from=parent["run_id"], fingerprint=fingerprint) as run_id:
        with bar("read", rows) as advance:
            training = vectors.sample(list(files), list(files.values()), rows, seed, advance)
        fitted = kmeans.fit(training, k, distance, iterations, seed)
        del training
        row = {"clustering": name, "embedding": embedding, "distance": distance, "k": k, "iterations": iterations,
               "seed": seed, "sampled_rows": fitted.sampled_rows, "num_samples": total,
               # A file of its own, so that the centroids of the old set stay until the new set is committed.
               "centroids": f"{name}-{run_id:06d}.npy", "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        objective = _assign_and_commit(catalog, row, fitted.centroids, list(files), Resources(workers))
    log.info("clustering '%s'%s: %s samples, k = %s, fitted on %s rows, objective %.6g", name, " replaced" if old else "",
             f"{total:,}", f"{k:,}", f"{fitted.sampled_rows:,}", objective)  # fmt: skip
    return name


def auto_k(num_samples: int) -> int:
    """A thousandth of the corpus, clamped to 10…50,000, and never more than there are samples."""
    return min(max(num_samples // 1000, 10), 50_000, max(num_samples, 1))


def _number_of_clusters(k: int | str, total: int) -> int:
    if k == "auto":
        return auto_k(total)
    if not isinstance(k, int) or not 1 <= k <= total:
        raise CurateError(f"--k {k}: give auto, or a number from 1 to the {total:,} samples")
    return k


def _assign_and_commit(
    catalog: Catalog, row: dict[str, Any], centroids: np.ndarray, files: list[Path], resources: Resources
) -> float:
    with replacing(catalog.centroid_file(row)) as temporary, temporary.open("wb") as file:
        np.save(file, centroids)
    with catalog.workspace() as folder:
        task = kmeans.Assign(catalog.centroid_file(row), row["distance"], folder)
        objective = 0.0
        with bar("assign", row["num_samples"]) as advance:
            for outcome in engine.map(task, files, resources, advance=advance):
                if outcome.error:
                    raise CurateError(f"cannot assign {outcome.item.name}: {outcome.error}")
                objective += outcome.result
        with catalog.writing() as connection:
            sets.check_column(connection, "clustering", row["clustering"])
            sets.replace(connection, "clustering", "assignments", {**row, "objective": objective})
            connection.execute(
                "insert into assignments select $name, sample_id, cluster_id, distance "
                "from read_parquet($files, hive_partitioning = false) order by sample_id",
                {"name": row["clustering"], "files": f"{folder}/*.parquet"},
            )
            sets.refresh_sample_scores(connection)
            kept = {name for (name,) in connection.execute("select centroids from clusterings").fetchall()}
    for path in catalog.centroid_file(row).parent.glob("*.npy"):
        if path.name not in kept and path.name.startswith(f"{row['clustering']}-"):
            path.unlink(missing_ok=True)
    return objective
