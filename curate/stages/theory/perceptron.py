"""Data pruning in the teacher–student perceptron: section 3 of Sorscher et al. 2022.

arXiv:2206.14486. Inputs are normal in N → ∞ dimensions, labels are the teacher's; alpha_tot = P/N
examples are ranked by their margin to a probe at an angle theta from the teacher, the fraction
`keep` with the smallest (hard) or the largest (easy) margin is kept, and the student is the
separator of what is kept with the largest margin.

The student, scaled to margin 1, is a along the probe, b across it in the plane of the teacher, c
out of that plane. With u and v the inputs along a and b times the label, t = a·u + b·v + c·g (g
normal) is an example's margin, and stationarity says

    c² = α E(1−t)₊²,   a (1 − α Pr[t<1]) = α E[(1−t)₊ u],   b (1 − α Pr[t<1]) = α E[(1−t)₊ v].

These are the optimality conditions of a convex problem, so the solution is the only one. Below,
A = a/c, B = b/c and k = 1/c.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

STRATEGIES = ("hardest", "easiest", "random")
MARGINS = ("absolute", "signed")
_REACH = 9.0  # the normal density beyond is 1e-18
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class Solution(NamedTuple):
    """The student: test error, cosine with the teacher, and margin kappa (in units of √N)."""

    error: float
    overlap: float
    kappa: float


def solve(
    alpha_tot: float,
    keep: float = 1.0,
    *,
    theta: float = 0.0,
    strategy: str = "hardest",
    margin: str = "absolute",
) -> Solution:
    """The student's test error after pruning; theta in radians.

    Raises ValueError for what is out of range.
    """
    if not (alpha_tot > 0 and 0 < keep <= 1 and 0 <= theta < np.pi / 2):
        raise ValueError("alpha_tot must be above 0, keep in (0, 1], theta in [0°, 90°)")
    if strategy not in STRATEGIES or margin not in MARGINS:
        raise ValueError(
            f"strategy is one of {', '.join(STRATEGIES)}; margin one of {', '.join(MARGINS)}"
        )
    alpha = keep * alpha_tot
    if strategy == "random":
        keep = 1.0  # so many examples, drawn from all
    if theta == 0:
        return _perfect_probe(alpha, keep, strategy)
    return _imperfect_probe(alpha, keep, theta, strategy, margin)


# -- the probe is the teacher ----------------------------------------------------------------------


def _perfect_probe(alpha: float, keep: float, strategy: str) -> Solution:
    """theta = 0, where b = 0: two equations, by nested bisection."""
    low, high = _kept_range(keep, strategy)

    def averages(slope: float, k: float) -> tuple[float, float, float]:
        u, weights = _grid(
            _panels(low, high, [k / slope, *(k + np.array([-8, -3, -1, 1, 3, 8])) / slope])
        )
        weights = weights * 2 * _normal(u) / keep
        r = k - slope * u
        squares, first, below = _truncated(r)
        return float(weights @ squares), float(weights @ (first * u)), float(weights @ below)

    def height(slope: float) -> float:
        """k for a slope A, from the first equation, whose right side grows with k."""
        return float(
            optimize.brentq(
                lambda k: alpha * averages(slope, k)[0] - 1,
                -60 - 10 * slope,
                60 + 10 * slope,
                xtol=1e-13,
            )
        )

    def excess(log_slope: float) -> float:
        slope = np.exp(log_slope)
        _, first, below = averages(slope, height(slope))
        return float(slope * (1 - alpha * below) - alpha * first)

    slope = float(np.exp(optimize.brentq(excess, *_bracket(excess), xtol=1e-12)))
    return _solution(slope, 0.0, height(slope), 0.0)


def _bracket(function: Callable[[float], float]) -> tuple[float, float]:
    """Neighbouring points of a coarse grid between which the function changes its sign."""
    low = -7.0
    first = function(low)
    while low < 12:
        high = low + 0.5
        second = function(high)
        if first <= 0 <= second or second <= 0 <= first:
            return low, high
        low, first = high, second
    raise ArithmeticError("no solution was found")


# -- the probe is at an angle ----------------------------------------------------------------------


def _imperfect_probe(
    alpha: float, keep: float, theta: float, strategy: str, margin: str
) -> Solution:
    """theta > 0: three equations, followed from small alpha.

    There the student is the sum of the examples.
    """
    cut = _cut(keep, theta, strategy, margin)
    points, weights = _plane(keep, theta, strategy, margin, cut, np.array([0.0]))
    means = points @ weights
    current = 0.05 if alpha > 0.05 else alpha
    state = np.array([*(np.sqrt(current) * means), -0.5 * np.log(current)])
    factor = 2.0
    state = _newton(current, keep, theta, strategy, margin, cut, state)
    while current < alpha:
        following = min(current * factor, alpha)
        try:
            state = _newton(following, keep, theta, strategy, margin, cut, state)
            current, factor = following, min(factor * 1.2, 2.0)
        except ArithmeticError:
            factor = 1 + (factor - 1) / 2
            if factor < 1.001:
                raise
    return _solution(state[0], state[1], float(np.exp(state[2])), theta)


def _newton(
    alpha: float,
    keep: float,
    theta: float,
    strategy: str,
    margin: str,
    cut: float,
    start: np.ndarray,
) -> np.ndarray:
    slope, k = max(abs(start[0]), 1e-3), np.exp(start[2])
    breaks = np.concatenate([[0.0, k / slope, -k / slope], (k + np.array([-6, -2, 2, 6])) / slope])
    points, weights = _plane(keep, theta, strategy, margin, cut, breaks)

    def residuals(state: np.ndarray) -> np.ndarray:
        r = np.exp(np.clip(state[2], -30, 30)) - state[:2] @ points
        squares, first, below = _truncated(r)
        share = 1 - alpha * float(weights @ below)
        return np.array(
            [
                alpha * float(weights @ squares) - 1,
                *(state[:2] * share - alpha * (points * first) @ weights),
            ]
        )

    solution = optimize.root(residuals, start, method="hybr", options={"xtol": 1e-11})
    if not solution.success and np.abs(solution.fun).max() > 1e-8:
        raise ArithmeticError("the equations were not solved")
    return np.asarray(solution.x)


def _plane(
    keep: float, theta: float, strategy: str, margin: str, cut: float, breaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (u, v) and weights of the kept inputs times their labels: [2, n], [n].

    They lie in u cosθ + v sinθ > 0.
    """
    edges = {
        ("hardest", "absolute"): [(-cut, cut)],
        ("easiest", "absolute"): [(-_REACH, -cut), (cut, _REACH)],
        ("hardest", "signed"): [(-_REACH, cut)],
        ("easiest", "signed"): [(cut, _REACH)],
    }
    steps = np.tan(theta) * np.array([1, 3, 6, 9])
    all_breaks = np.concatenate([breaks, steps, -steps, [-4, -2, -1, 1, 2, 4]])
    us, vs, weights = [], [], []
    for low, high in edges.get((strategy, margin), [(-_REACH, _REACH)]):
        for u, weight in zip(*_grid(_panels(low, high, all_breaks)), strict=True):
            lowest = -u / np.tan(theta)  # below, the label would be the other
            if lowest >= _REACH:
                continue
            v, across = _grid(_panels(max(lowest, -_REACH), _REACH, [-3, -1, 0, 1, 3]))
            us.append(np.full(len(v), u))
            vs.append(v)
            weights.append(2 * weight * across * _normal(u) * _normal(v) / keep)
    return np.stack([np.concatenate(us), np.concatenate(vs)]), np.concatenate(weights)


def _cut(keep: float, theta: float, strategy: str, margin: str) -> float:
    """Where the margins are cut, so that the fraction `keep` remains."""
    if strategy == "random" or keep == 1:
        return _REACH if strategy != "easiest" else (-_REACH if margin == "signed" else 0.0)
    if margin == "absolute":
        return float(_kept_range(keep, strategy)[1 if strategy == "hardest" else 0])
    # The density of u = y z is 2 φ(u) Φ(u cotθ).
    share = keep if strategy == "hardest" else 1 - keep
    nodes, weights = _grid(np.linspace(-_REACH, _REACH, 60))
    density = weights * 2 * _normal(nodes) * special.ndtr(nodes / np.tan(theta))

    def below(cut: float) -> float:
        u, weight = _grid(
            _panels(-_REACH, cut, [0, *(np.tan(theta) * np.array([-9, -3, -1, 1, 3, 9]))])
        )
        return float(weight @ (2 * _normal(u) * special.ndtr(u / np.tan(theta)))) / float(
            density.sum()
        )

    return float(
        optimize.brentq(lambda cut: below(cut) - share, -_REACH + 1e-6, _REACH, xtol=1e-13)
    )


# -- what both share -------------------------------------------------------------------------------


def _kept_range(keep: float, strategy: str) -> tuple[float, float]:
    """The margins |z| that are kept: from, to."""
    if keep == 1:
        return 0.0, _REACH
    if strategy == "hardest":
        return 0.0, float(-special.ndtri((1 - keep) / 2))
    return float(-special.ndtri(keep / 2)), _REACH


def _truncated(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E(r − g)₊², E(r − g)₊ and Pr[g < r] for g normal."""
    below, density = special.ndtr(r), _normal(r)
    return (1 + r * r) * below + r * density, r * below + density, below


def _normal(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))


def _panels(low: float, high: float, breaks: "list[float] | np.ndarray") -> np.ndarray:
    """Edges of the panels of an integral: ends, breaks between them, steps of at most 1.5."""
    inside = [float(value) for value in breaks if low < value < high]
    edges = np.unique([low, *inside, high])
    fine = [
        np.linspace(a, b, max(int(np.ceil((b - a) / 1.5)), 1) + 1)[:-1]
        for a, b in itertools.pairwise(edges)
    ]
    return np.concatenate([*fine, [high]])


def _grid(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss–Legendre integration on each panel."""
    middles, halves = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middles[:, None] + halves[:, None] * _NODES).ravel(), (
        halves[:, None] * _WEIGHTS
    ).ravel()


def _solution(a: float, b: float, k: float, theta: float) -> Solution:
    along, across = a * np.cos(theta) + b * np.sin(theta), b * np.cos(theta) - a * np.sin(theta)
    length = np.sqrt(1 + a * a + b * b)
    return Solution(
        float(np.arctan2(np.hypot(1, across), along) / np.pi),
        float(along / length),
        float(k / length),
    )


# -- simulation ------------------------------------------------------------------------------------


class Simulation(NamedTuple):
    """Mean test error over seeds, and its standard error."""

    error: float
    standard_error: float


def simulate(
    alpha_tot: float,
    keep: float = 1.0,
    *,
    theta: float = 0.0,
    strategy: str = "hardest",
    dimensions: int = 200,
    seeds: int = 20,
    seed: int = 0,
) -> Simulation:
    """Draw examples, prune them, and separate what is kept with exactly the largest margin."""
    errors = []
    for index in range(seeds):
        generator = np.random.default_rng([seed, index])
        inputs = generator.standard_normal((round(alpha_tot * dimensions), dimensions))
        labels = np.sign(
            inputs[:, 0]
        )  # the teacher is the first axis, the probe lies in the plane of the first two
        margins = np.abs(inputs[:, 0] * np.cos(theta) + inputs[:, 1] * np.sin(theta))
        order = generator.permutation(len(inputs)) if strategy == "random" else np.argsort(margins)
        count = max(round(keep * len(inputs)), 1)
        kept_rows = order[-count:] if strategy == "easiest" else order[:count]
        weights = _max_margin(inputs[kept_rows] * labels[kept_rows, None])
        errors.append(np.arccos(weights[0] / np.linalg.norm(weights)) / np.pi)
    return Simulation(float(np.mean(errors)), float(np.std(errors, ddof=1) / np.sqrt(seeds)))


def _max_margin(rows: np.ndarray) -> np.ndarray:
    """The shortest w with rows · w ≥ 1, as a least-distance problem by non-negative least squares.

    Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    system = np.vstack([rows.T, np.ones(len(rows))])
    target = np.zeros(len(system))
    target[-1] = 1
    multipliers, _ = optimize.nnls(system, target, maxiter=30 * system.shape[1])
    residual = system @ multipliers - target
    return np.asarray(-residual[:-1] / residual[-1])


# -- information -----------------------------------------------------------------------------------


def information(alphas: np.ndarray, keep: float = 1.0) -> np.ndarray:
    """The information an example gives about the teacher at theta = 0, in nats: [n] -> [n].

    Hard examples are kept. From the replica-symmetric entropy of the posterior; for keep below 1
    the overlap q of two of its samples is not that with the teacher, so both are kept:
    A = R/√(1 − q) and B = √((q − R²)/(1 − q)).
    """
    low, high = _kept_range(keep, "hardest")
    z, along = _grid(_panels(low, high, [0.1, 0.3, 1.0, 3.0]))
    t, across = _grid(_panels(-_REACH, _REACH, [-3.0, -1.0, 0.0, 1.0, 3.0]))
    weights = np.outer(along * 2 * _normal(z) / keep, across * _normal(t)).ravel()
    points = np.stack([np.repeat(z, len(t)), np.tile(t, len(z))])

    def averages(state: np.ndarray) -> tuple[float, float, float]:
        values = state @ points
        logs = special.log_ndtr(values)
        slopes = np.exp(-0.5 * values * values - logs) / np.sqrt(2 * np.pi)
        first, second = slopes * points[0], slopes * points[1]
        return float(weights @ logs), float(weights @ first), float(weights @ second)

    def residuals(logs: np.ndarray, alpha: float) -> np.ndarray:
        a, b = np.exp(logs)
        _, first, second = averages(np.array([a, b]))
        whole = 1 + a * a + b * b
        return np.array(
            [a / whole / (alpha * first) - 1, b * (a * a + b * b) / whole / (-alpha * second) - 1]
        )

    # Where alpha is small, L is near its expansion at 0, L′ = √(2/π) and L″ = −2/π.
    first = min(0.05, float(np.min(alphas)))
    gains, current = [], 0.0
    state = np.log(
        [np.sqrt(2 / np.pi) * first * float(weights @ points[0]), np.sqrt(2 / np.pi * first)]
    )
    for alpha in np.sort(alphas):
        for step in np.linspace(current, alpha, max(int((alpha - current) / first), 1) + 1)[1:]:
            solution = optimize.root(
                residuals, state, args=(step,), method="hybr", options={"xtol": 1e-10}
            )
            state = solution.x
        current = float(alpha)
        gains.append(-averages(np.exp(state))[0])
    return np.asarray(gains)[np.argsort(np.argsort(alphas))]
