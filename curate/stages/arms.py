"""Which samples each arm of a validation trains on: everything, a selection, and as many drawn at random."""

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from curate import corpus
from curate.catalog import Catalog
from curate.engine.validating import Arm
from curate.errors import CurateError
from curate.stages.select import candidates
from curate.strategies import balance as balancing
from curate.strategies import strategies

HELD_OUT = 0.2  # of the corpus, where no test shards are given


def held_out_by_key(catalog: Catalog, ids: np.ndarray) -> np.ndarray:
    """A fifth of the samples, by a hash of their keys, whatever shard they lie in: bool [n]."""
    keys = corpus.columns(catalog, ids, "key")["key"]
    limit = int(HELD_OUT * 2**32)
    return np.array([zlib.crc32(str(key).encode("utf-8", "surrogatepass")) < limit for key in keys])


def arms(
    catalog: Catalog, schedule: str, seeds: list[int], stack: int, selections: list[dict[str, Any]], ids: np.ndarray,
    train: np.ndarray, epochs: int, folder: Path,
) -> list[Arm]:  # fmt: skip
    """full, and for each selection pruned and random; as many seeds in one arm as train as one tensor program.

    `train` says which of the samples `ids` may be trained on, bool [n]; the places of each arm go to files in `folder`.
    """
    whole = np.flatnonzero(train)
    made: dict[str, Arm] = {}

    def add(arm: str, selection: str | None, keep: float, subsets: list[np.ndarray]) -> None:
        passes = epochs
        if schedule == "iterations":
            passes = max(round(epochs * len(whole) / len(subsets[0])), 1)
        for start in range(0, len(seeds), stack):
            places = np.stack(subsets[start : start + stack])
            # Selections of one size, such as the hardest and the easiest half, are compared with the same random samples.
            key = f"{arm}-{start}-{hashlib.sha256(places.tobytes()).hexdigest()[:16]}"
            if key in made:
                made[key] = made[key]._replace(selections=(*made[key].selections, selection))
                continue
            np.save(folder / f"{key}.npy", places)
            made[key] = Arm(arm, (selection,), keep, seeds[start : start + stack], passes, folder / f"{key}.npy")

    add("full", None, 1.0, [whole] * len(seeds))
    for head in selections:
        with catalog.reading() as connection:
            found = connection.execute("select sample_id from members where selection = ?", [head["selection"]]).fetchnumpy()
        kept = np.flatnonzero(train & np.isin(ids, found["sample_id"]))
        if not len(kept):
            raise CurateError(f"the selection '{head['selection']}' has no labelled sample to train on")
        add("pruned", head["selection"], head["keep"], [kept] * len(seeds))
        draw = _random_draw(catalog, head, ids, train, len(kept))
        add("random", head["selection"], head["keep"], [draw(seed) for seed in seeds])
    return list(made.values())


def _random_draw(
    catalog: Catalog, head: dict[str, Any], ids: np.ndarray, train: np.ndarray, count: int
) -> Callable[[int], np.ndarray]:
    """A function from seed to as many places, drawn from the same candidates under the selection's own balance."""
    rows = candidates(catalog, head)
    order = np.searchsorted(ids, rows["sample_id"]).clip(max=len(ids) - 1)
    known = (ids[order] == rows["sample_id"]) & train[order]
    places = order[known]
    codes, groups = np.unique(np.asarray(rows["group_id"])[known], return_inverse=True)
    sizes = np.bincount(groups, minlength=len(codes))
    floors = balancing.floors(sizes, count / len(places), head["balance"], head["balance_base"])

    def draw(seed: int) -> np.ndarray:
        priorities = strategies["random"](ids[places], seed)
        return np.asarray(places[balancing.drawn(groups, priorities, floors, count)])

    return draw
