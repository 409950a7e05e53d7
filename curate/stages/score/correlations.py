"""How alike the scorings of a catalog rank its samples: Fig. 5A of Sorscher et al. 2022."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.package_data import read_sql


class Correlations(NamedTuple):
    """Names of scorings, similar ones side by side, and Spearman's rank correlations [s, s]."""

    names: list[str]
    matrix: np.ndarray


def correlations(catalog: Catalog | str | Path) -> Correlations:
    """Spearman's rank correlation of every pair of scorings, in the order of a clustering of them.

    Scorings are as far apart as 1 − ρ; clusters are joined by their mean distance. NaN where one of
    a pair ranks all samples alike. Raises CurateError for fewer than two scorings.
    """
    with Catalog(catalog).reading() as connection:
        rows = connection.execute(read_sql("queries/correlations")).fetchall()
    names = sorted({first for first, *_ in rows})
    if len(names) < 2:
        raise CurateError(
            "there are no two scorings to compare: make more with `curate score METRIC`"
        )
    indices = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for first, second, _, spearman in rows:
        if spearman is not None:
            matrix[indices[first], indices[second]] = spearman
    order = _cluster_order(matrix)
    return Correlations([names[index] for index in order], matrix[np.ix_(order, order)])


def _cluster_order(matrix: np.ndarray) -> list[int]:
    """The leaves of the tree, ordered so that neighbours are as near as the tree allows.

    Bar-Joseph et al. 2001.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distances = 1 - np.nan_to_num(matrix)
    np.fill_diagonal(distances, 0)
    condensed = squareform((distances + distances.T) / 2, checks=False)
    tree = linkage(condensed, "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
