"""How alike the scorings of a catalog rank its samples: Fig. 5A of Sorscher et al. 2022."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import resources
from curate.catalog import Catalog
from curate.errors import CurateError


class Correlations(NamedTuple):
    """Names of scorings, those that rank alike beside each other, and Spearman's rank correlations, float64 [s, s]."""

    names: list[str]
    matrix: np.ndarray


def correlations(catalog: Catalog | str | Path) -> Correlations:
    """Spearman's rank correlation of every pair of scorings, in the order of a hierarchical clustering.

    Scorings are as far apart as 1 − ρ; clusters are joined by their mean distance. NaN where one of a pair ranks all
    samples alike. Raises CurateError if there are no two scorings.
    """
    with Catalog(catalog).reading() as connection:
        rows = connection.execute(resources.sql("queries/correlations")).fetchall()
    names = sorted({first for first, *_ in rows})
    if len(names) < 2:
        raise CurateError("there are no two scorings to compare: make more with `curate score METRIC`")
    place = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for first, second, _, spearman in rows:
        matrix[place[first], place[second]] = np.nan if spearman is None else spearman
    order = _clustered(matrix)
    return Correlations([names[index] for index in order], matrix[np.ix_(order, order)])


def _clustered(matrix: np.ndarray) -> list[int]:
    """The leaves of the tree, ordered so that neighbours are as near as the tree allows (Bar-Joseph et al. 2001)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    far = 1 - np.nan_to_num(matrix)
    np.fill_diagonal(far, 0)
    tree = linkage(squareform((far + far.T) / 2, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
