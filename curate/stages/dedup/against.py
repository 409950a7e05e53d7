"""Duplicates across two catalogs, such as training and test data: leakage."""

from typing import NamedTuple

import numpy as np

from curate.stages.dedup.exact import ExactMatches
from curate.stages.dedup.neighbours import VectorSets

LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


class Matches(NamedTuple):
    """Pairs of a sample and one of the other catalog, each once: ids int64 [p] each, the index in
    KINDS int8 [p], and the cosine float64 [p]."""

    sample_ids: np.ndarray
    other_ids: np.ndarray
    kinds: np.ndarray
    similarities: np.ndarray


def merge_matches(exact: ExactMatches, near: Matches | None) -> Matches:
    """Exact and near pairs; what is exact is not near too."""
    kinds = np.where(exact.has_same_bytes, 0, 1).astype(np.int8)
    matches = Matches(exact.sample_ids, exact.other_ids, kinds, np.ones(len(kinds)))
    if near is not None:
        matches = Matches(*map(np.concatenate, zip(matches, near, strict=True)))
    keys = np.stack([matches.sample_ids, matches.other_ids], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)  # of equal ones the exact, which is first
    return Matches(*(column[first] for column in matches))


def find_near_matches(vectors: VectorSets, eps: float) -> Matches:
    """The near pairs of the first side's samples with the second's."""
    samples = vectors.locate()
    num_samples = len(samples.sample_ids)
    located = vectors.sort(samples, np.arange(num_samples))
    # Ranks are in the order of the sides, so the earlier of a pair is a sample of ours.
    pairs = located.find_pairs(eps, "greedy", vectors.resources, across=True).astype(np.int64)
    cosines = located.cosines(pairs[:, 0], pairs[:, 1])
    return Matches(
        samples.sample_ids[pairs[:, 0]],
        samples.sample_ids[pairs[:, 1]],
        np.full(len(pairs), 2, np.int8),
        np.minimum(cosines, 1),
    )


def count_by_eps(matches: Matches, eps: float | None) -> list[tuple[str, int, int]]:
    """How many samples of the other catalog have a duplicate, and how many of ours are one: by
    threshold, exact ones first, up to `eps`."""
    rungs = [("exact", matches.kinds < 2)]
    if eps is not None:
        steps = [*(step for step in LADDER if step < eps), eps]
        rungs += [(f"eps {step:.4g}", matches.similarities > 1 - step) for step in steps]
    return [
        (
            name,
            len(np.unique(matches.other_ids[is_within])),
            len(np.unique(matches.sample_ids[is_within])),
        )
        for name, is_within in rungs
    ]
