"""Lloyd's iterations over every row of an embedding, with a checkpoint after each.

A killed run continues from the last.
"""

from typing import NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.centroids import save_centroids
from curate.formats.numpy_files import READ_ERRORS
from curate.progress import log, progress_bar
from curate.stages.cluster.kmeans import ClusterSums, SumClusters
from curate.storage.atomic import atomic_write
from curate.storage.files import filename, open_binary

# Files are iterated over in groups of about so many rows, of which each gives k sums; in so many
# groups at most.
_GROUP_ROWS, _MAX_GROUPS = 1 << 20, 1000


class Checkpoint(NamedTuple):
    """The centroids, float32 [k, dim], after so many iterations over every row."""

    iterations: int
    centroids: np.ndarray


def load_checkpoint(location: str) -> Checkpoint | None:
    """What a killed run left, if anything."""
    try:
        with open_binary(location) as file:
            arrays = np.load(file, allow_pickle=False)
            return Checkpoint(int(arrays["passes"]), arrays["centroids"])
    except (*READ_ERRORS, KeyError):
        return None


def save_checkpoint(location: str, checkpoint: Checkpoint) -> Checkpoint:
    """Write a checkpoint in one step; it replaces the previous one."""
    with atomic_write(location) as temporary, temporary.open("wb") as file:
        np.savez(file, passes=checkpoint.iterations, centroids=checkpoint.centroids)
    return checkpoint


def refine_centroids(
    checkpoint: Checkpoint,
    files: dict[str, int],
    full_iterations: int,
    distance: str,
    resources: Resources,
    *,
    checkpoint_file: str,
    centroids_file: str,
    within: str | None = None,
) -> np.ndarray:
    """Continue from a checkpoint up to so many iterations over every row: float32 [k, dim].

    Workers read the centroids from `centroids_file`, a file of this run alone, and only the rows
    of the ids in the file `within`, if it is given. The order of the sums depends on the files
    alone, so the result does not depend on the engine.
    """
    remaining = full_iterations - checkpoint.iterations
    with progress_bar("iterate", remaining * sum(files.values())) as advance:
        while checkpoint.iterations < full_iterations:
            save_centroids(centroids_file, checkpoint.centroids)
            task = SumClusters(centroids_file, distance, within)
            group, sums, error = engine.reduce(
                task, group_files(files), ClusterSums.merge, resources, advance=advance
            )
            if error:
                target = f"{filename(group[0])} and those after it" if group else "the vectors"
                raise CurateError(f"cannot iterate over {target}: {error}")
            iterations = checkpoint.iterations + 1
            log.info(
                "iteration %s of %s over every row: objective %.9g",
                iterations,
                full_iterations,
                sums.objective(checkpoint.centroids, distance),
            )
            centroids = sums.new_centroids(checkpoint.centroids, distance)
            checkpoint = save_checkpoint(checkpoint_file, Checkpoint(iterations, centroids))
    return checkpoint.centroids


def group_size(num_rows: int) -> int:
    """How many of so many rows make a group."""
    return max(_GROUP_ROWS, -(-num_rows // _MAX_GROUPS))


def group_files(files: dict[str, int]) -> list[tuple[str, ...]]:
    """Neighbouring files, by their rows alone: the sums are the same for any engine."""
    groups: dict[int, list[str]] = {}
    size = group_size(sum(files.values()))
    rows_before = 0
    for file, num_rows in files.items():
        groups.setdefault(rows_before // size, []).append(file)
        rows_before += num_rows
    return [tuple(group) for group in groups.values()]
