"""Lloyd's iterations over every row of an embedding, each kept when it is finished: a killed run goes on from the last."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import engine
from curate.atomic import replacing
from curate.engine import Resources, kmeans
from curate.errors import CurateError
from curate.fingerprints import of_file
from curate.progress import bar, log

# Files are iterated over in groups of about so many rows, of which each gives k sums; in so many groups at most.
_ROWS_A_GROUP, _GROUPS = 1 << 20, 1000


class Begun(NamedTuple):
    """How far a clustering has come: the centroids float32 [k, dim] after so many passes over every row."""

    passes: int
    centroids: np.ndarray


def begun(path: Path) -> Begun | None:
    """What a killed run left there, if it left anything."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return Begun(int(found["passes"]), found["centroids"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def save(path: Path, centroids: np.ndarray) -> str:
    """Put centroids there, in one step; the file's fingerprint."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, centroids)
        return of_file(temporary)


def keep(path: Path, state: Begun) -> Begun:
    """Put it there, in one step; what was there goes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, passes=state.passes, centroids=state.centroids)
    return state


def iterate(
    state: Begun, files: dict[Path, int], passes: int, distance: str, resources: Resources, *, kept: Path, shared: Path
) -> np.ndarray:
    """Go on from `state` up to so many passes: centroids float32 [k, dim]. Each is kept at `kept`, for a run that comes later.

    Workers read the centroids from `shared`, a file of this run alone. The sums are added in an order that depends on the
    files alone, so the answer does not depend on who works.
    """
    with bar("iterate", (passes - state.passes) * sum(files.values())) as advance:
        while state.passes < passes:
            save(shared, state.centroids)
            task = kmeans.Iterate(shared, distance)
            _, found, error = outcome = engine.reduce(task, groups(files), kmeans.Sums.merged, resources, advance=advance)
            if error:
                where = f"{outcome.item[0].name} and those after it" if outcome.item else "the vectors"
                raise CurateError(f"cannot iterate over {where}: {error}")
            log.info("iteration %s of %s over every row: objective %.9g", state.passes + 1, passes,
                     found.objective(state.centroids, distance))  # fmt: skip
            state = keep(kept, Begun(state.passes + 1, found.centroids(state.centroids, distance)))
    return state.centroids


def group_size(rows: int) -> int:
    """How many of so many rows go into a group."""
    return max(_ROWS_A_GROUP, -(-rows // _GROUPS))


def groups(files: dict[Path, int]) -> list[tuple[Path, ...]]:
    """Neighbouring files, by their rows alone: whoever works on them, the sums are the same."""
    found: dict[int, list[Path]] = {}
    size = group_size(sum(files.values()))
    before = 0
    for file, rows in files.items():
        found.setdefault(before // size, []).append(file)
        before += rows
    return [tuple(group) for group in found.values()]
