"""Random selections to compare a selection with: of the same size, under the same balance."""

import numpy as np

from curate.catalog.records import SelectionRecord
from curate.stages.select.quotas import (
    count_groups,
    group_quotas,
    group_tiebreak,
    select_with_quotas,
)
from curate.strategies import strategies

# Draws have other seeds than `select --strategy random` has: such a selection would be compared
# with itself, and the difference 0 by construction.
_FIRST_SEED = 1 << 32


class RandomDraws:
    """Draws `count` of the candidates, under the balance of a selection.

    `groups` are those of `Candidates`, `sample_ids` sorted; int [n], int64 [n]. Called with a seed
    it says which are drawn, bool [n].
    """

    def __init__(
        self, groups: np.ndarray, sample_ids: np.ndarray, record: SelectionRecord, count: int
    ) -> None:
        self._groups, self._sample_ids, self._count = groups, sample_ids, count
        tiebreak = group_tiebreak(groups, sample_ids, record.seed)
        keep = count / len(sample_ids)
        sizes = count_groups(groups)
        self._quotas = group_quotas(sizes, keep, record.balance, record.balance_base, tiebreak)

    def __call__(self, seed: int) -> np.ndarray:
        priorities = strategies["random"](self._sample_ids, _FIRST_SEED + seed)
        return select_with_quotas(
            self._groups,
            priorities,
            self._sample_ids,
            self._quotas,
            self._count,
            _FIRST_SEED + seed,
        )
