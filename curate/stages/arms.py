"""Which samples each arm of a validation trains on: everything, a selection, and as many drawn at random."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from curate import models
from curate.catalog import Catalog
from curate.engine.validating import Arm
from curate.errors import CurateError
from curate.models import Model
from curate.stages.candidates import candidates
from curate.strategies import balance as balancing
from curate.strategies import strategies


def arms(
    catalog: Catalog, schedule: str, seeds: list[int], model: Model, selections: list[dict[str, Any]], ids: np.ndarray,
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
            passes = max(round(epochs * models.steps(model, len(whole)) / models.steps(model, len(subsets[0]))), 1)
        for start in range(0, len(seeds), model.stack):
            places = np.stack(subsets[start : start + model.stack])
            # Selections of one size, such as the hardest and the easiest half, are compared with the same random samples.
            key = f"{arm}-{start}-{hashlib.sha256(places.tobytes()).hexdigest()[:16]}"
            if key in made:
                made[key] = made[key]._replace(selections=(*made[key].selections, selection))
                continue
            np.save(folder / f"{key}.npy", places)
            made[key] = Arm(arm, (selection,), keep, seeds[start : start + model.stack], passes, folder / f"{key}.npy")

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
    found = candidates(catalog, head)
    if len(found.sample_ids) != head["num_candidates"]:
        raise CurateError(
            f"'{head['selection']}' was taken from {head['num_candidates']:,} candidates, which are {len(found.sample_ids):,} "
            "now: select it anew"
        )
    order = np.searchsorted(ids, found.sample_ids).clip(max=len(ids) - 1)
    known = (ids[order] == found.sample_ids) & train[order]
    places, groups = order[known], found.groups[known]
    floors = balancing.floors(np.bincount(groups), count / len(places), head["balance"], head["balance_base"])

    def draw(seed: int) -> np.ndarray:
        priorities = strategies["random"](ids[places], seed)
        return np.asarray(places[balancing.drawn(groups, priorities, ids[places], floors, count, seed)])

    return draw
