"""Which samples each arm of a validation trains on: all, a selection, and as many at random."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import load_members
from curate.errors import CurateError
from curate.models import Model, steps_per_epoch
from curate.stages.select.candidates import load_candidates
from curate.stages.select.quotas import group_quotas, select_with_quotas
from curate.stages.validate.worker import Arm
from curate.strategies import strategies

FULL, PRUNED, RANDOM = "full", "pruned", "random"


class ArmBuilder:
    """Makes the arms of a validation, and writes the row indices of each to a file.

    `sample_ids` are the samples of the training data [n], `is_trainable` says which of them may be
    trained on, bool [n].
    """

    def __init__(
        self,
        catalog: Catalog,
        model: Model,
        seeds: list[int],
        epochs: int,
        sample_ids: np.ndarray,
        is_trainable: np.ndarray,
        folder: Path,
        *,
        equal_iterations: bool,
    ) -> None:
        self._catalog, self._model, self._seeds, self._epochs = catalog, model, seeds, epochs
        self._sample_ids, self._is_trainable = sample_ids, is_trainable
        self._all_rows = np.flatnonzero(is_trainable)
        self._folder, self._equal_iterations = folder, equal_iterations
        self._arms: dict[str, Arm] = {}

    def build(self, selections: list[SelectionRecord]) -> list[Arm]:
        """full, and for each selection pruned and random.

        One arm has as many seeds as train as one tensor program.
        """
        self._add(FULL, None, 1.0, [self._all_rows] * len(self._seeds))
        for record in selections:
            member_ids = load_members(self._catalog, record.selection)
            rows = np.flatnonzero(self._is_trainable & np.isin(self._sample_ids, member_ids))
            if not len(rows):
                raise CurateError(
                    f"the selection '{record.selection}' has no labelled sample to train on"
                )
            self._add(PRUNED, record.selection, record.keep, [rows] * len(self._seeds))
            draw = self._random_draw(record, len(rows))
            random_rows = [draw(seed) for seed in self._seeds]
            self._add(RANDOM, record.selection, record.keep, random_rows)
        return list(self._arms.values())

    def _add(
        self, name: str, selection: str | None, keep: float, subsets: list[np.ndarray]
    ) -> None:
        stack_size = self._model.stack_size
        for start in range(0, len(self._seeds), stack_size):
            rows = np.stack(subsets[start : start + stack_size])
            # Selections of one size, such as the hardest and the easiest half, are compared with
            # the same random samples.
            digest = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
            key = f"{name}-{start}-{digest}"
            if key in self._arms:
                arm = self._arms[key]
                self._arms[key] = arm._replace(selections=(*arm.selections, selection))
                continue
            path = self._folder / f"{key}.npy"
            np.save(path, rows)
            seeds = self._seeds[start : start + stack_size]
            epochs = self._epochs_for(rows.shape[1])
            self._arms[key] = Arm(name, (selection,), keep, seeds, epochs, path)

    def _epochs_for(self, num_rows: int) -> int:
        if not self._equal_iterations:
            return self._epochs
        full_steps = self._epochs * steps_per_epoch(self._model, len(self._all_rows))
        return max(round(full_steps / steps_per_epoch(self._model, num_rows)), 1)

    def _random_draw(self, record: SelectionRecord, count: int) -> Callable[[int], np.ndarray]:
        """From a seed to row indices of as many candidates, under the selection's own balance."""
        candidates = load_candidates(
            self._catalog, record.scoring, record.balance_by, record.where_sql
        )
        if len(candidates.sample_ids) != record.num_candidates:
            raise CurateError(
                f"'{record.selection}' was taken from {record.num_candidates:,} candidates, "
                f"which are {len(candidates.sample_ids):,} now: select it anew"
            )
        index = np.searchsorted(self._sample_ids, candidates.sample_ids)
        index = index.clip(max=len(self._sample_ids) - 1)
        is_trainable = self._sample_ids[index] == candidates.sample_ids
        is_trainable &= self._is_trainable[index]
        rows, groups = index[is_trainable], candidates.groups[is_trainable]
        row_ids = self._sample_ids[rows]
        sizes = np.bincount(groups)
        quotas = group_quotas(sizes, count / len(rows), record.balance, record.balance_base)

        def draw(seed: int) -> np.ndarray:
            priorities = strategies["random"](row_ids, seed)
            is_drawn = select_with_quotas(groups, priorities, row_ids, quotas, count, seed)
            return np.asarray(rows[is_drawn])

        return draw
