"""From near pairs to groups, by one of three rules: who stays, and for whom.

Samples are ranks: 0 is the best, which stays first. Pairs are uint32 [p, 2], the earlier first.
"""

import numpy as np

from curate.errors import CurateError

METHODS = ("greedy", "components", "upper")
MAX_PAIRS = 1 << 27  # of greedy, which needs all of them at once: 1 GiB


def reduce_pairs(pairs: np.ndarray, method: str) -> np.ndarray:
    """As few of the pairs as give the same groups, so that most need not be held or sent.

    upper needs the first earlier neighbour of each sample, components a spanning forest; greedy
    needs all pairs.
    """
    if method == "greedy" or not len(pairs):
        return np.asarray(pairs)
    if method == "components":
        nodes, local = np.unique(pairs, return_inverse=True)
        first = _smallest_of_component(local.reshape(pairs.shape), len(nodes))
        is_other = first != np.arange(len(nodes))
        return np.stack([nodes[first[is_other]], nodes[is_other]], axis=1)
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    pairs = pairs[order]
    is_first = np.append(True, pairs[1:, 1] != pairs[:-1, 1])
    return np.asarray(pairs[is_first])


def find_survivors(num_samples: int, pairs: np.ndarray, method: str) -> np.ndarray:
    """For each rank the rank of the sample that stays for it, itself where it stays: int64 [n].

    greedy, in the order of the ranks: a sample goes if one that stays is near; it goes for the
    first such. components: of all that are connected by pairs, the first stays. upper, the rule of
    the published SemDeDup (Abbas et al. 2023): a sample goes if any earlier one is near, whether
    that one stays or goes; it goes for the one that is reached from neighbour to first neighbour.
    """
    everyone = np.arange(num_samples)
    if not len(pairs):
        return everyone
    if method == "components":
        return _smallest_of_component(pairs, num_samples)
    if method == "upper":
        survivors = everyone.copy()
        first = reduce_pairs(pairs, method)
        survivors[first[:, 1]] = first[:, 0]
        while not np.array_equal(survivors, following := survivors[survivors]):
            survivors = following
        return survivors
    stays = _stay_greedily(num_samples, pairs)
    survivors = np.where(stays, everyone, num_samples)
    by_survivor = pairs[stays[pairs[:, 0]]].astype(np.int64)
    np.minimum.at(survivors, by_survivor[:, 1], by_survivor[:, 0])
    return survivors


def count_split_chains(pairs: np.ndarray, survivors: np.ndarray) -> tuple[int, int]:
    """Of the sets that near pairs connect, how many have several samples that stay; and how many
    of their samples stay.

    With all pairs, as greedy has them: `survivors` int64 [n] are by rank.
    """
    if not len(pairs):
        return 0, 0
    components = _smallest_of_component(pairs, len(survivors))
    stays = survivors == np.arange(len(survivors))
    num_staying = np.bincount(components[stays])
    split = num_staying[num_staying > 1]
    return len(split), int(split.sum())


def check_num_pairs(num_pairs: int, eps: float, limit: int = MAX_PAIRS) -> None:
    """CurateError where a method that holds all pairs finds too many."""
    if num_pairs > limit:
        raise CurateError(
            f"--eps {eps:g} makes more than {limit:,} near pairs, nearly all of which say nothing: "
            "lower --eps, or take --method components or upper, which hold few of them"
        )


def _smallest_of_component(pairs: np.ndarray, num_nodes: int) -> np.ndarray:
    """The smallest node of each node's connected component: [p, 2] -> int64 [num_nodes]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = pairs.astype(np.int64)
    graph = coo_array(
        (np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(num_nodes, num_nodes)
    )
    count, labels = connected_components(graph, directed=False)
    smallest = np.full(count, num_nodes)
    np.minimum.at(smallest, labels, np.arange(num_nodes))
    return np.asarray(smallest[labels])


def _stay_greedily(num_samples: int, pairs: np.ndarray) -> np.ndarray:
    """Which samples stay when each is looked at in turn: bool [n].

    In rounds, over arrays: who has no undecided earlier neighbour stays, and its later neighbours
    go. Each round decides the first undecided sample at least; a few decide nearly all.
    """
    stays = np.ones(num_samples, bool)
    is_decided = np.zeros(num_samples, bool)
    while len(pairs):  # of two undecided samples
        earlier, later = pairs[:, 0], pairs[:, 1]
        waits = np.zeros(num_samples, bool)
        waits[later] = True
        is_settled = ~waits[earlier]
        is_decided[earlier[is_settled]] = True
        gone = later[is_settled]
        stays[gone], is_decided[gone] = False, True
        pairs = pairs[~(is_decided[earlier] | is_decided[later])]
    return stays
