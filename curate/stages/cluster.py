"""`curate cluster`: k-means in an embedding; centroids to a file, assignments to the catalog."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from curate import distances, engine, provenance, sets, storage, vectors
from curate.catalog import Catalog
from curate.engine import Resources, kmeans
from curate.errors import CurateError
from curate.memory import allowed
from curate.progress import bar, log
from curate.stages import lloyd
from curate.stages.lloyd import Begun
from curate.units import size
from curate.workspaces import TEMPORARY

# The fit only has to come near: the passes over every row take away what is peculiar to the sample.
_ROWS_PER_CENTROID = 64
_ROWS_THAT_COST_NOTHING = 1 << 16


def cluster(
    catalog: Catalog | str | Path,
    *,
    embedding: str | None = None,
    k: int | str = "auto",
    distance: str = "cosine",
    iterations: int = 12,
    sample: int | None = None,
    passes: int = 2,
    memory: float | None = None,
    seed: int = 0,
    workers: int = 1,
    name: str = "kmeans",
) -> str:
    """Cluster an embedding into `k` clusters, and return the clustering's name.

    `k` auto is a thousandth of the corpus, from 10 to 50,000. The centroids are fitted by so many `iterations` on `sample`
    rows (default 64 a centroid, at least 65,536, all if there are fewer), then by `passes` more over every row; then
    every sample is assigned. `memory` in GiB (default three quarters of what this process may have) bounds the default
    sample. A run that was killed goes on from its last finished pass.
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
    if iterations < 1 or passes < 0:
        raise CurateError("--iterations must be at least 1, --passes 0 or more")
    if memory is not None and not 0 < memory < 1 << 30:
        raise CurateError(f"--memory {memory:g}: give GiB, such as 8")
    k = _number_of_clusters(k, sum(files.values()))
    limit = int(memory * (1 << 30)) if memory else allowed() * 3 // 4
    rows = _rows_to_fit_on(files, k, int(parent["dim"]), sample, limit)
    settings = {"embedding": embedding, "k": k, "distance": distance, "iterations": iterations, "sample": rows,
                "passes": passes, "seed": seed}  # fmt: skip
    fingerprint = provenance.fingerprint("cluster", settings, content)
    made = catalog.made("clustering", name, fingerprint)
    if made and catalog.centroid_file(made).is_file():
        _remove_old_centroids(catalog, name)
        log.info("nothing to do: '%s' is this clustering already (objective %.6g)", name, made["objective"])
        return name
    old = catalog.head("clustering", name)
    with catalog.run("cluster", name, settings, made_from=parent["run_id"], fingerprint=fingerprint) as run_id:
        row = {"clustering": name, "embedding": embedding, "distance": distance, "k": k, "iterations": iterations,
               "seed": seed, "sampled_rows": rows, "passes": passes, "num_samples": sum(files.values()),
               "centroids": _file_name(name, run_id), "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        centroids = _fit(catalog, row, files, int(parent["dim"]), Resources(workers))
        objective = _assign_and_commit(catalog, row, centroids, list(files), Resources(workers))
    log.info("clustering '%s'%s: %s samples, k = %s, fitted on %s rows, objective %.6g", name, " replaced" if old else "",
             f"{row['num_samples']:,}", f"{k:,}", f"{rows:,}", objective)  # fmt: skip
    return name


def auto_k(num_samples: int) -> int:
    """A thousandth of the corpus, clamped to 10…50,000, and never more than there are samples."""
    return min(max(num_samples // 1000, 10), 50_000, max(num_samples, 1))


def default_sample(k: int) -> int:
    """How many rows the centroids are fitted on, where nothing else is asked for and there are as many."""
    return max(_ROWS_PER_CENTROID * k, _ROWS_THAT_COST_NOTHING)


def _number_of_clusters(k: int | str, total: int) -> int:
    if k == "auto":
        return auto_k(total)
    if not isinstance(k, int) or not 1 <= k <= total:
        raise CurateError(f"--k {k}: give auto, or a number from 1 to the {total:,} samples")
    return k


def _rows_to_fit_on(files: dict[Path, int], k: int, dim: int, sample: int | None, limit: int) -> int:
    """How many rows are sampled within a limit of memory, in bytes. CurateError where it is too low for the work."""
    rows = min(sample or default_sample(k), sum(files.values()))
    fit, worker = _memory(files, rows, k, dim)
    if fit > limit and not sample:
        fixed, _ = _memory(files, 0, k, dim)
        rows = max(rows * (limit - fixed) // (fit - fixed), 0)
        fit, _ = _memory(files, rows, k, dim)
        told = f"{rows:,} rows, {rows / k:.1f} a centroid"
        log.warning("fitting on %s: no more fit into %s (see --memory)", told, size(limit))
    if max(fit, worker) > limit or rows < k:
        raise CurateError(f"k = {k:,} in {dim} dimensions takes {size(max(fit, worker))} of memory, and {size(limit)} are "
                          "allowed: raise --memory, or lower --k or --sample")  # fmt: skip
    return rows


def _memory(files: dict[Path, int], rows: int, k: int, dim: int) -> tuple[int, int]:
    return kmeans.memory(rows, max(files.values()), dim, k, len(lloyd.groups(files)))


def _fit(catalog: Catalog, row: dict[str, Any], files: dict[Path, int], dim: int, resources: Resources) -> np.ndarray:
    """The centroids by the sample and by the passes over every row, from where a killed run of just this clustering was."""
    rows, distance = row["sampled_rows"], row["distance"]
    fit, worker = _memory(files, rows, row["k"], dim)
    log.info("memory: %s for the fit on %s rows, then %s a worker", size(fit), f"{rows:,}", size(worker))
    kept = catalog.files / "clusterings" / _begun_name(row["clustering"], row["fingerprint"])
    state = lloyd.begun(kept)
    if state is None:
        with bar("read", rows) as advance:
            sample = vectors.sample(files, rows, row["seed"], advance, lambda found: distances.prepared(found, distance))
        state = lloyd.keep(kept, Begun(0, kmeans.fit(sample, row["k"], distance, row["iterations"], row["seed"])))
        del sample
    else:
        log.info("going on after pass %s of %s", state.passes, row["passes"])
    shared = catalog.centroid_file(row)
    return lloyd.iterate(state, files, row["passes"], distance, resources, kept=kept, shared=shared)


def _assign_and_commit(
    catalog: Catalog, row: dict[str, Any], centroids: np.ndarray, files: list[Path], resources: Resources
) -> float:
    row["centroids_fingerprint"] = lloyd.save(catalog.centroid_file(row), centroids)
    with catalog.exchange(row["run_id"]) as folder:
        task = kmeans.Assign(catalog.centroid_file(row), row["distance"], folder)
        objective = 0.0
        with bar("assign", row["num_samples"]) as advance:
            for outcome in engine.map(task, files, resources, advance=advance):
                if outcome.error:
                    raise CurateError(f"cannot assign {outcome.item.name}: {outcome.error}")
                objective += outcome.result
        with storage.local(folder / file.name for file in files) as written, catalog.writing() as connection:
            sets.check_column(connection, "clustering", row["clustering"])
            sets.replace(connection, "clustering", "assignments", {**row, "objective": objective})
            connection.execute(
                "insert into assignments select $name, sample_id, cluster_id, distance "
                "from read_parquet($files, hive_partitioning = false)",  # in the order of the names, which is that of the ids
                {"name": row["clustering"], "files": list(map(str, written))},
            )
            sets.refresh_sample_scores(connection)
    _remove_old_centroids(catalog, row["clustering"], done=row["run_id"])
    return objective


def _remove_old_centroids(catalog: Catalog, name: str, done: int | None = None) -> None:
    """Those of sets that were replaced, of runs that were killed, and of the one that is done; other processes keep theirs."""
    with catalog.reading() as connection:
        kept = {file for (file,) in connection.execute("select centroids from clusterings").fetchall()}
        running = connection.execute(
            "select name, run_id, fingerprint from runs where stage = 'cluster' and status = 'running'"
        ).fetchall()
    kept |= {_file_name(other, run_id) for other, run_id, _ in running}
    kept |= {_begun_name(other, fingerprint) for other, run_id, fingerprint in running if run_id != done}
    ours = re.compile(rf"({re.escape(TEMPORARY)}\w+-)?({re.escape(name)}-(\d{{6,}}\.npy|[0-9a-f]{{16}}\.begun\.npz))")
    for path in storage.listed(catalog.files / "clusterings", "*"):
        match = ours.fullmatch(path.name)
        if match and match.group(2) not in kept:
            path.unlink(missing_ok=True)


def _file_name(name: str, run_id: int) -> str:
    """A file of its own for each run, so that the centroids of the old set stay until the new set is committed."""
    return f"{name}-{run_id:06d}.npy"


def _begun_name(name: str, fingerprint: str) -> str:
    """How far a run has come, for a later run of just the same."""
    return f"{name}-{fingerprint[:16]}.begun.npz"
