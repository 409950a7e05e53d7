"""Which pairs of vectors are near: one rule, and bounds that find its pairs without comparing all.

The rule. Two vectors are near where their cosine is above 1 − eps, computed by `exact_cosines` from
the half-precision numbers on disk, in double precision, each pair by itself. So the answer depends
on the two vectors alone: not on tiles, clusters, workers or the order of sums in a matrix product.
Products in single precision only decide what is far from the threshold, where their rounding
cannot change the answer (`product_margin`).
"""

import numpy as np

from curate.distances import l2_normalize

_GATHERED_VALUES = 1 << 20  # numbers of the pairs that are compared at a time
_ROUNDING = 2.0**-24  # of one operation in single precision, relative


def exact_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosines of rows, float16 [p, d] twice -> float64 [p]; 0 where one is all zeros."""
    cosines = np.zeros(len(left))
    step = max(_GATHERED_VALUES // max(left.shape[1], 1), 1)
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        one, two = left[rows].astype(np.float64), right[rows].astype(np.float64)
        lengths = np.sqrt(np.einsum("pd,pd->p", one, one) * np.einsum("pd,pd->p", two, two))
        products = np.einsum("pd,pd->p", one, two)
        np.divide(products, lengths, out=cosines[rows], where=lengths > 0)
    return cosines


def product_margin(dim: int) -> float:
    """How far a single-precision product of two rows of length 1 may be from their cosine.

    A sum of d products, in any order, is off by at most d · 2⁻²⁴ times the sum of their absolute
    values (Higham 2002, section 3.1), which for rows of length 1 is at most 1. Twice that covers
    the rounding of the rows' own lengths.
    """
    return 2 * (dim + 4) * _ROUNDING


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """float16 [n, d] -> float32 [n, d] of length 1; a row of zeros stays zero."""
    return l2_normalize(rows.astype(np.float32))


def near_pairs(
    left: np.ndarray, right: np.ndarray, candidates: np.ndarray, eps: float
) -> np.ndarray:
    """Those candidates that are near: rows float16 [n, d] and [m, d], int [2, p] -> bool [p]."""
    threshold, margin = 1 - eps, product_margin(left.shape[1])
    num_pairs = candidates.shape[1]
    if num_pairs < (len(left) + len(right)) // 4:  # converting all rows would take longer
        i, j = candidates
        return np.asarray(exact_cosines(left[i], right[j]) > threshold)
    is_near = np.zeros(num_pairs, bool)
    left_units, right_units = unit_rows(left), unit_rows(right)
    step = max(_GATHERED_VALUES // left.shape[1], 1)
    for start in range(0, num_pairs, step):
        i, j = candidates[:, start : start + step]
        products = np.einsum("pd,pd->p", left_units[i], right_units[j])
        block = products > threshold + margin
        is_close = np.abs(products - threshold) <= margin
        block[is_close] = exact_cosines(left[i[is_close]], right[j[is_close]]) > threshold
        is_near[start : start + step] = block
    return is_near


# -- sketches --------------------------------------------------------------------------------------

_MAX_SKETCH_DIM = 128
_POWER_ITERATIONS = 2


def fit_basis(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """An orthonormal basis, float64 [d, m], that holds most of the rows, float32 [n, d].

    By the randomized range finder (Halko, Martinsson and Tropp 2011). Any orthonormal basis gives
    right answers; a good one gives them soon.
    """
    dim = rows.shape[1]
    num_columns = min(_MAX_SKETCH_DIM, max(dim // 4, 1))
    basis = np.random.default_rng(seed).standard_normal((dim, num_columns))
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(rows.T @ (rows @ basis))
    return np.asarray(basis)


def sketch_rows(units: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What bounds the cosine of two rows from above: [n, d], [d, m] -> float32 [n, m + 1].

    The rows x of length 1 are split into Px inside the basis and Qx orthogonal to it. A sketch is
    Px and the length of Qx. With Cauchy and Schwarz

        x·y = Px·Py + Qx·Qy ≤ Px·Py + ‖Qx‖ ‖Qy‖,

    the product of the sketches, with m + 1 numbers instead of d.
    """
    inside = units.astype(np.float64) @ basis
    # Rows have length 1 but for rounding, here always upwards.
    squares = 1 + product_margin(1) - np.einsum("nm,nm->n", inside, inside)
    outside = np.sqrt(np.maximum(squares, 0))
    return np.concatenate([inside, outside[:, None]], axis=1).astype(np.float32)


# -- angles to centroids ---------------------------------------------------------------------------


def centroid_cosines(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Rows float16 [n, d], centroids float32 [k, d] of length 1 -> float32 [n, k].

    Right to `product_margin`; the products are divided, which are fewer than the rows' numbers.
    """
    numbers = rows.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", numbers, numbers))
    products = numbers @ centroids.T
    products /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return np.asarray(products)


_ANGLE_MARGIN = 1e-6  # radians, of an angle from a cosine in double precision


def cosine_limits(
    smallest: np.ndarray, largest: np.ndarray, eps: float, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """What cosine with a tile's centroid a row must have to be near a row of the tile.

    `smallest` and `largest` are the angles, in radians, between the tile's rows and its centroid c.
    Angles between directions are distances on the sphere, so for a row y of the tile and any x

        |∠(x, c) − ∠(y, c)| ≤ ∠(x, y),

    and where x and y are near, ∠(x, y) < θ with cos θ = 1 − eps. So x can only be near a row of the
    tile where smallest − θ ≤ ∠(x, c) ≤ largest + θ. Returned are the cosines of these ends, the
    lower and the upper one, moved outwards by what single precision may lose. It holds for any c:
    whether x or y is assigned to the nearest centroid does not matter. (For y assigned to the
    nearest centroid it says what is often said: with c' the centroid of x,
    ∠(x, c) ≤ ∠(x, c') + 2θ.)
    """
    theta = np.arccos(np.clip(1 - eps, -1, 1)) + _ANGLE_MARGIN
    margin = product_margin(dim)
    lowest = np.cos(np.minimum(largest + theta, np.pi)) - margin
    highest = np.cos(np.maximum(smallest - theta, 0)) + margin
    return lowest, highest
