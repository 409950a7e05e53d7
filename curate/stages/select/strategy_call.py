"""Calls a strategy, and checks and completes its answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.stages.select.candidates import Candidates
from curate.stages.select.quotas import (
    group_quotas,
    group_tiebreak,
    select_with_quotas,
    top_k,
)
from curate.stages.select.strategy_inputs import CandidateInputs
from curate.strategies import Quotas, strategies


class Choice(NamedTuple):
    """Which candidates a strategy keeps, bool [n], and the strata that it gave quotas, int [n].

    None where it gave none. Candidates without its inputs are a stratum of their own.
    """

    is_kept: np.ndarray
    strata: np.ndarray | None


def rank(strategy: str, inputs: CandidateInputs, num_candidates: int) -> np.ndarray:
    """The priorities of all candidates, float64 [n]; NaN, which comes last, without inputs."""
    answer = _call(strategy, inputs, slice(None), inputs.num_rows)
    if isinstance(answer, Quotas):
        raise CurateError(
            f"the strategy '{strategy}' gave quotas: one that does so has to ask for num_kept"
        )
    if inputs.num_rows == num_candidates:
        return answer
    priorities = np.full(num_candidates, np.nan)
    priorities[inputs.rows] = answer
    return priorities


def choose(
    strategy: str,
    inputs: CandidateInputs,
    candidates: Candidates,
    *,
    keep: float,
    scope: str,
    base: str,
    seed: int,
) -> Choice:
    """Which candidates are kept by a strategy that chooses for itself.

    With a scope, it is called for every group with the group's share of round(keep · n). Candidates
    without its inputs are drawn where the others are too few. CurateError where groups are too
    small for what they have to keep.
    """
    sample_ids, groups = candidates.sample_ids, candidates.groups
    total = round(keep * len(sample_ids))
    usable = np.arange(len(sample_ids))[inputs.rows]
    parts: list[tuple[Any, int]] = [(slice(None), total)]
    if scope != "global":
        tiebreak = group_tiebreak(groups, sample_ids, seed)
        shares = group_quotas(np.bincount(groups), keep, 1.0, base, tiebreak)
        if shares.sum() < total:
            raise CurateError(
                f"--balance-base {base}: some of the groups are too small for an equal share, and "
                f"{total - shares.sum():,} samples are left to keep: take proportional"
            )
        order = np.argsort(groups[usable], kind="stable")
        bounds = np.cumsum(np.bincount(groups[usable], minlength=len(shares)))[:-1]
        parts = list(zip(np.split(order, bounds), shares.tolist(), strict=True))
    is_kept = np.zeros(len(sample_ids), bool)
    strata, num_strata, has_quotas = np.zeros(len(sample_ids), np.int64), 1, False
    for rows, share in parts:
        members = usable[rows]
        num_kept = min(share, len(members))
        if num_kept == len(members):
            is_kept[members] = True
        elif num_kept:
            answer = _call(strategy, inputs, rows, num_kept)
            ids = sample_ids[members]
            is_kept[members[_choose_by(strategy, answer, ids, num_kept, seed)]] = True
            if isinstance(answer, Quotas):
                has_quotas = True
                strata[members] = num_strata + answer.groups
                num_strata += len(answer.sizes)
                continue
        strata[members] = num_strata
        num_strata += 1
    missing = total - int(is_kept.sum())
    is_drawn = top_k(np.full(len(sample_ids), np.nan), sample_ids, missing, seed, exclude=is_kept)
    return Choice(is_kept | is_drawn, strata if has_quotas else None)


def _choose_by(
    strategy: str, answer: np.ndarray | Quotas, sample_ids: np.ndarray, num_kept: int, seed: int
) -> np.ndarray:
    if not isinstance(answer, Quotas):
        return top_k(answer, sample_ids, num_kept, seed)
    sizes = np.bincount(answer.groups, minlength=len(answer.sizes))
    num_filled = int(np.minimum(answer.sizes, sizes).sum())
    if num_filled != num_kept or (answer.sizes > sizes).any():
        raise CurateError(
            f"the groups of the strategy '{strategy}' can fill {num_filled:,} of {num_kept:,} "
            "samples to keep: lower --keep, or change its options"
        )
    return select_with_quotas(
        answer.groups, answer.priorities, sample_ids, answer.sizes, num_kept, seed
    )


def _call(strategy: str, inputs: CandidateInputs, rows: Any, num_kept: int) -> np.ndarray | Quotas:
    function: Callable[..., Any] = strategies[strategy]
    answer = function(**inputs.arguments(rows, num_kept))
    num_samples = inputs.num_rows if isinstance(rows, slice) else len(rows)
    is_quotas = isinstance(answer, Quotas)
    priorities = np.asarray(answer.priorities if is_quotas else answer)
    if priorities.shape != (num_samples,) or np.isnan(priorities).any():
        raise CurateError(
            f"the strategy '{strategy}' gave no number for every one of {num_samples} samples "
            f"(shape {priorities.shape})"
        )
    priorities = priorities.astype(np.float64, copy=False)
    return answer._replace(priorities=priorities) if is_quotas else priorities
