"""Which samples each arm of a validation trains on: all, a selection, and as many at random."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import load_members, load_repeats, load_weights
from curate.errors import CurateError
from curate.formats.sample_ids import are_members
from curate.formatting import count_of
from curate.progress import log
from curate.stages.evidence.comparisons import FULL, PRUNED, RANDOM, WEIGHTED
from curate.stages.select.candidates import load_candidates
from curate.stages.select.random_draws import RandomDraws
from curate.stages.validate.worker import Arm

# From arm, selection and the selection's fingerprint to the seeds that are still to be trained.
MissingSeeds = Callable[[str, str | None, str | None], list[int]]


class ArmBuilder:
    """Makes the arms of a validation, and writes the row indices of each to a file.

    `sample_ids` are the samples of the training data [n], `is_trainable` says which of them may be
    trained on, bool [n]. `epochs_for` gives the epochs for so many samples, `stack_size` is how
    many seeds train as one program. No arm may be smaller than `num_classes`.
    """

    def __init__(
        self,
        catalog: Catalog,
        sample_ids: np.ndarray,
        is_trainable: np.ndarray,
        folder: Path,
        *,
        epochs_for: Callable[[int], int],
        stack_size: int,
        num_classes: int = 1,
    ) -> None:
        self._catalog, self._epochs_for, self._stack_size = catalog, epochs_for, stack_size
        self._sample_ids, self._is_trainable = sample_ids, is_trainable
        self._num_trainable = int(is_trainable.sum())
        self._folder, self._num_classes = folder, num_classes
        self._arms: dict[str, Arm] = {}
        self.num_equal = 0  # selections that hold all that is trained on

    def build(self, selections: list[SelectionRecord], missing_seeds: MissingSeeds) -> list[Arm]:
        """full, and for each selection pruned, weighted and random, with the missing seeds.

        One arm has as many seeds as train as one tensor program.
        """
        all_rows = _same_rows(self._is_trainable)
        self._add(FULL, None, 1.0, missing_seeds(FULL, None, None), all_rows)
        for record in selections:
            self._add_selection(record, missing_seeds)
        return list(self._arms.values())

    def _add_selection(self, record: SelectionRecord, missing_seeds: MissingSeeds) -> None:
        name, keep = record.selection, record.keep
        pruned_seeds = missing_seeds(PRUNED, name, record.fingerprint)
        random_seeds = missing_seeds(RANDOM, name, record.fingerprint)
        weighted_seeds = missing_seeds(WEIGHTED, name, record.fingerprint)
        if not pruned_seeds and not random_seeds and not weighted_seeds:
            return
        is_kept = are_members(self._sample_ids, load_members(self._catalog, name))
        is_kept &= self._is_trainable
        kept_rows = _same_rows(is_kept)
        if record.repeats:
            kept_rows = self._repeat_rows(name, np.flatnonzero(is_kept))
        num_kept = len(kept_rows(0))
        if num_kept < self._num_classes:
            raise CurateError(
                f"the selection '{name}' has {count_of(num_kept, 'sample')} to train on for "
                f"{count_of(self._num_classes, 'class', 'classes')}: keep more"
            )
        if is_kept.sum() == self._num_trainable:
            self.num_equal += 1
            log.warning(
                "%s holds all %s samples that are trained on, and is not compared with them: "
                "keep less of those, such as --where 'label is not null'",
                f"'{name}'",
                f"{num_kept:,}",
            )
            return
        self._add(PRUNED, name, keep, pruned_seeds, kept_rows)
        if weighted_seeds:
            weights = self._write_weights(name, kept_rows(0))
            self._add(WEIGHTED, name, keep, weighted_seeds, kept_rows, weights)
        if random_seeds and (draw := self._random_draw(record, num_kept)):
            self._add(RANDOM, name, keep, random_seeds, draw)

    def _add(
        self,
        name: str,
        selection: str | None,
        keep: float,
        seeds: list[int],
        draw: Callable[[int], np.ndarray],
        weights: Path | None = None,
    ) -> None:
        for start in range(0, len(seeds), self._stack_size):
            stacked_seeds = seeds[start : start + self._stack_size]
            path = self._folder / f"arm-{len(self._arms):04d}.npy"
            num_rows, digest = _write_subsets(path, map(draw, stacked_seeds), len(stacked_seeds))
            # Selections of one size, such as the hardest and the easiest half, are compared with
            # the same random samples.
            key = f"{name}-{'_'.join(map(str, stacked_seeds))}-{digest}"
            if key in self._arms and weights is None:
                arm = self._arms[key]
                self._arms[key] = arm._replace(selections=(*arm.selections, selection))
                path.unlink()
                continue
            epochs = self._epochs_for(num_rows)
            arm = Arm(name, (selection,), keep, stacked_seeds, epochs, path, weights)
            self._arms[key if weights is None else f"{key}-{selection}"] = arm

    def _repeat_rows(self, selection: str, rows: np.ndarray) -> Callable[[int], np.ndarray]:
        """From any seed to the rows of a selection, each as often as it comes in an epoch."""
        member_ids, repeats = load_repeats(self._catalog, selection)
        repeated = np.repeat(rows, repeats[np.searchsorted(member_ids, self._sample_ids[rows])])
        return lambda seed: repeated

    def _write_weights(self, selection: str, rows: np.ndarray) -> Path:
        """The weights of a selection for the rows of the inputs, 1 on average over `rows`."""
        member_ids, member_weights = load_weights(self._catalog, selection)
        weights = np.zeros(len(self._sample_ids), np.float32)
        weights[rows] = member_weights[np.searchsorted(member_ids, self._sample_ids[rows])]
        weights[rows] /= weights[rows].mean()
        path = self._folder / f"weights-{len(self._arms):04d}.npy"
        np.save(path, weights)
        return path

    def _random_draw(
        self, record: SelectionRecord, count: int
    ) -> Callable[[int], np.ndarray] | None:
        """From a seed to row indices of as many candidates, under the selection's own balance.

        None where these are all candidates: every draw would be the selection itself.
        """
        candidates = load_candidates(
            self._catalog, record.scoring, record.balance_by, record.where_sql, with_scores=False
        )
        if len(candidates.sample_ids) != record.num_candidates:
            raise CurateError(
                f"'{record.selection}' was taken from {record.num_candidates:,} candidates, "
                f"which are {len(candidates.sample_ids):,} now: select it anew"
            )
        is_candidate = are_members(self._sample_ids, candidates.sample_ids)
        is_candidate &= self._is_trainable
        row_ids = self._sample_ids[is_candidate]
        if count == len(row_ids):
            log.info("'%s' holds all of its candidates: there are no random ones", record.selection)
            return None
        groups = candidates.groups[are_members(candidates.sample_ids, row_ids)]
        draws = RandomDraws(groups, row_ids, record, count)
        return lambda seed: np.flatnonzero(is_candidate)[draws(seed)]


def _same_rows(is_used: np.ndarray) -> Callable[[int], np.ndarray]:
    """From any seed to the same row indices; as bool [n] they take an eighth of the memory."""
    return lambda seed: np.flatnonzero(is_used)


def _write_subsets(path: Path, subsets: Iterator[np.ndarray], count: int) -> tuple[int, str]:
    """Write `count` sets of equally many row indices, one after the other, as .npy [count, k].

    Returns k, and a checksum of all.
    """
    checksum, num_rows = hashlib.sha256(), 0
    with path.open("wb") as file:
        for number, rows in enumerate(subsets):
            if not number:
                num_rows = len(rows)
                np.lib.format.write_array_header_1_0(
                    file,
                    {
                        "descr": np.lib.format.dtype_to_descr(rows.dtype),
                        "fortran_order": False,
                        "shape": (count, num_rows),
                    },
                )
            elif len(rows) != num_rows:
                raise ValueError(f"{len(rows)} row indices after {num_rows}")
            data = np.ascontiguousarray(rows).data
            file.write(data)
            checksum.update(data)
    return num_rows, checksum.hexdigest()[:16]
