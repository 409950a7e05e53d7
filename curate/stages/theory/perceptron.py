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


class _Pruning(NamedTuple):
    """What is kept, and the ranges that u, the margin to the probe times the label, has there."""

    keep: float
    theta: float
    strategy: str
    margin: str
    ranges: tuple[tuple[float, float], ...]

    def with_keep(self, keep: float) -> "_Pruning":
        return _pruning(keep, self.theta, self.strategy, self.margin)


# A, B and k of the student.
_State = tuple[float, float, float]


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
    if not alpha_tot > 0:
        raise ValueError("alpha_tot must be above 0")
    pruning = _pruning(keep, theta, strategy, margin)
    return _solution(_first_state(keep * alpha_tot, pruning), pruning.theta)


def solve_curve(
    alphas: np.ndarray,
    keep: float = 1.0,
    *,
    theta: float = 0.0,
    strategy: str = "hardest",
    margin: str = "absolute",
) -> np.ndarray:
    """Test errors at rising values of alpha_tot, [n] -> [n].

    Each solution is sought from the one before, which is many times as fast as n calls of `solve`.
    """
    pruning = _pruning(keep, theta, strategy, margin)
    states = _curve_states(keep * alphas, pruning)
    return np.array([_solution(state, pruning.theta).error for state in states])


def _pruning(keep: float, theta: float, strategy: str, margin: str) -> _Pruning:
    if not (0 < keep <= 1 and 0 <= theta < np.pi / 2):
        raise ValueError("keep must be in (0, 1], and theta in [0°, 90°)")
    if strategy not in STRATEGIES or margin not in MARGINS:
        raise ValueError(
            f"strategy is one of {', '.join(STRATEGIES)}; margin one of {', '.join(MARGINS)}"
        )
    if strategy == "random" or keep == 1:  # drawn from all, and no matter what the probe is
        return _Pruning(1.0, 0.0, "random", margin, ((0.0, _REACH),))
    return _Pruning(keep, theta, strategy, margin, _ranges(keep, theta, strategy, margin))


def _ranges(
    keep: float, theta: float, strategy: str, margin: str
) -> tuple[tuple[float, float], ...]:
    is_hardest = strategy == "hardest"
    if margin == "signed" and theta > 0:
        cut = _signed_cut(keep if is_hardest else 1 - keep, theta)
        return ((-_REACH, cut),) if is_hardest else ((cut, _REACH),)
    low, high = _kept_range(keep, strategy)
    if theta == 0:
        return ((low, high),)
    return ((-high, high),) if is_hardest else ((-_REACH, -low), (low, _REACH))


def _kept_range(keep: float, strategy: str) -> tuple[float, float]:
    """The absolute margins that are kept: from, to."""
    if keep == 1:
        return 0.0, _REACH
    if strategy == "hardest":
        return 0.0, float(-special.ndtri((1 - keep) / 2))
    return float(-special.ndtri(keep / 2)), _REACH


def _signed_cut(share: float, theta: float) -> float:
    """Below which the share of the signed margins lies; u has the density 2 φ(u) Φ(u cotθ)."""

    def excess(cut: float) -> float:
        u, weights = _grid(_panels(-_REACH, cut, [0.0, *_steps(theta)]))
        return float(weights @ (2 * _normal(u) * special.ndtr(u / np.tan(theta)))) - share

    return float(optimize.brentq(excess, -_REACH + 1e-6, _REACH, xtol=1e-13))


# -- the averages ----------------------------------------------------------------------------------


class _Averages(NamedTuple):
    """E(k−x)₊², E[(k−x)₊ u], E[(k−x)₊ v] and Pr[x < k], where x = t/c."""

    squares: float
    along: float
    across: float
    below: float


def _averages(state: _State, pruning: _Pruning) -> _Averages:
    """Over the examples that are kept: in closed form over v and g, by quadrature over u."""
    a, b, k = state
    spread = float(np.hypot(1, b))  # of B v + g
    slope = max(abs(a), 1e-3)
    breaks = [0.0, *((k + spread * np.array([-8, -3, -1, 0, 1, 3, 8])) / slope)]
    breaks += [-value for value in breaks] + _steps(pruning.theta)
    panels = [_panels(low, high, breaks) for low, high in pruning.ranges]
    u, weights = (np.concatenate(parts) for parts in zip(*map(_grid, panels), strict=True))
    weights = weights * 2 * _normal(u) / pruning.keep
    if pruning.theta == 0:
        squares, first, below = _truncated(k - a * u)
        across = np.zeros_like(u)
    else:
        squares, first, across, below = _truncated_above(k - a * u, b, -u / np.tan(pruning.theta))
    return _Averages(
        float(weights @ squares),
        float(weights @ (first * u)),
        float(weights @ across),
        float(weights @ below),
    )


def _truncated(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E(r − g)₊², E(r − g)₊ and Pr[g < r] for g normal."""
    below, density = special.ndtr(r), _normal(r)
    return (1 + r * r) * below + r * density, r * below + density, below


def _truncated_above(
    r: np.ndarray, b: float, lowest: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """E D², E D, E[D v] and Pr over v > lowest and D > 0, for D = r − b v − g; v and g normal.

    b v + g = s w, where w is normal and has correlation ρ with v. The moments follow from Stein's
    lemma, E[w f(w, v)] = E[∂f/∂w + ρ ∂f/∂v], with f the indicator of w < h = r/s and v > lowest;
    the probability is Owen's (1956, Tables for computing bivariate normal probabilities).
    """
    s = np.hypot(1, b)
    rho, h = b / s, r / s
    v_given_w, w_given_v = s * (rho * h - lowest), s * (h - rho * lowest)  # standardised
    at_h = _normal(h) * special.ndtr(v_given_w)
    at_lowest = _normal(lowest) * special.ndtr(w_given_v)
    corner = _normal(h) * _normal(v_given_w) / s  # also φ(lowest) φ(w given v) / s
    probability = np.where(h < -_REACH, 0.0, _upper_left(h, lowest, rho))
    w = rho * at_lowest - at_h
    v = at_lowest - rho * at_h
    ww = probability - h * at_h + rho * (rho * lowest * at_lowest - corner)
    vw = rho * (probability + lowest * at_lowest - h * at_h) - corner
    return (
        r * r * probability - 2 * r * s * w + s * s * ww,
        r * probability - s * w,
        r * v - s * vw,
        probability,
    )


def _upper_left(h: np.ndarray, lowest: np.ndarray, rho: float) -> np.ndarray:
    """Pr[w < h, v > lowest] of standard normal w and v with correlation rho, by Owen's T."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope_h = (lowest / h - rho) / np.sqrt(1 - rho * rho)
        slope_lowest = (h / lowest - rho) / np.sqrt(1 - rho * rho)
    have_one_sign = (h > 0) == (lowest > 0)
    return np.asarray(
        (special.ndtr(h) - special.ndtr(lowest)) / 2
        + special.owens_t(h, slope_h)
        + special.owens_t(lowest, slope_lowest)
        + np.where(have_one_sign, 0.0, 0.5)
    )


# -- the equations ---------------------------------------------------------------------------------


def _first_state(alpha: float, pruning: _Pruning) -> _State:
    """The solution, where none is known nearby."""
    if pruning.theta == 0:
        return _bisect(alpha, pruning)
    if pruning.strategy == "hardest":
        # At a small keep the student turns to the teacher within a narrow range of alpha, which is
        # too steep to be followed along alpha.
        everything = _pruning(1.0, 0.0, "random", "absolute")
        state = _rotate(_bisect(alpha, everything), pruning.theta)
        return _follow(
            lambda keep, near: _newton(alpha, pruning.with_keep(keep), near),
            1.0,
            pruning.keep,
            state,
        )
    # At small alpha the student is the sum of the examples.
    start, far = min(alpha, 0.05), 1e3
    means = _averages((0.0, 0.0, far), pruning)  # all examples lie below so large a k
    k = 1 / np.sqrt(start)
    sums = start * k * means.along / far, start * k * means.across / far
    state = _newton(start, pruning, (*sums, k))
    return _follow(lambda current, near: _newton(current, pruning, near), start, alpha, state)


def _curve_states(alphas: np.ndarray, pruning: _Pruning) -> list[_State]:
    """The solutions at rising values of alpha_prune."""

    def newton_at(alpha: float, near: _State) -> _State:
        return _newton(alpha, pruning, near)

    states: list[_State] = []
    for index, alpha in enumerate(map(float, alphas)):
        if index == 0:
            states.append(_first_state(alpha, pruning))
            continue
        try:
            states.append(_follow(newton_at, float(alphas[index - 1]), alpha, states[-1]))
        except ArithmeticError:
            states.append(_first_state(alpha, pruning))
    return states


def _bisect(alpha: float, pruning: _Pruning) -> _State:
    """theta = 0, where b = 0: two equations, by nested bisection."""
    highest = pruning.ranges[0][1]

    def height(slope: float) -> float:
        """k for a slope A, from the first equation, whose right side grows with k."""
        return float(
            optimize.brentq(
                lambda k: alpha * _averages((slope, 0.0, k), pruning).squares - 1,
                -60,
                # By Jensen's inequality, the right side is above 1 there.
                slope * highest + 1 / np.sqrt(alpha) + 1,
                xtol=1e-13,
            )
        )

    def excess(log_slope: float) -> float:
        slope = float(np.exp(log_slope))
        averages = _averages((slope, 0.0, height(slope)), pruning)
        return slope * (1 - alpha * averages.below) - alpha * averages.along

    slope = float(np.exp(optimize.brentq(excess, *_bracket(excess), xtol=1e-12)))
    return slope, 0.0, height(slope)


def _bracket(function: Callable[[float], float]) -> tuple[float, float]:
    """Neighbouring points of a coarse grid between which the function changes its sign."""
    low = -14.0
    first = function(low)
    while low < 14:
        high = low + 1
        second = function(high)
        if first <= 0 <= second or second <= 0 <= first:
            return low, high
        low, first = high, second
    raise ArithmeticError("no solution was found")


def _follow(
    solve_at: Callable[[float, _State], _State], start: float, end: float, state: _State
) -> _State:
    """From the solution at `start`, of alpha or keep, to that at `end`, in steps that succeed."""
    current, step = start, np.log(2.0)
    while current != end:
        change = np.log(end / current)
        following = end if abs(change) <= step else current * np.exp(np.sign(change) * step)
        try:
            state = solve_at(float(following), state)
            current, step = following, min(step * 1.2, np.log(2.0))
        except ArithmeticError:
            step /= 2
            if step < 1e-3:
                raise
    return state


def _newton(alpha: float, pruning: _Pruning, start: _State) -> _State:
    """The solution near `start`, where b is 0 if theta is."""
    num_unknowns = 2 if pruning.theta == 0 else 3

    def to_state(unknowns: np.ndarray) -> _State:
        k = float(np.exp(np.clip(unknowns[0], -30, 30)))
        return float(unknowns[1]), float(unknowns[2]) if num_unknowns == 3 else 0.0, k

    def residuals(unknowns: np.ndarray) -> list[float]:
        state = a, b, _ = to_state(unknowns)
        averages = _averages(state, pruning)
        share = 1 - alpha * averages.below
        return [
            alpha * averages.squares - 1,
            a * share - alpha * averages.along,
            b * share - alpha * averages.across,
        ][:num_unknowns]

    unknowns = np.array([np.log(start[2]), start[0], start[1]])[:num_unknowns]
    solution = optimize.root(residuals, unknowns, method="hybr", options={"xtol": 1e-11})
    if not solution.success and np.abs(solution.fun).max() > 1e-8:
        raise ArithmeticError("the equations were not solved")
    return to_state(solution.x)


def _solution(state: _State, theta: float) -> Solution:
    a, b, k = state
    along, across = a * np.cos(theta) + b * np.sin(theta), b * np.cos(theta) - a * np.sin(theta)
    length = np.sqrt(1 + a * a + b * b)
    return Solution(
        float(np.arctan2(np.hypot(1, across), along) / np.pi),
        float(along / length),
        float(k / length),
    )


# -- quadrature ------------------------------------------------------------------------------------


def _normal(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))


def _steps(theta: float) -> list[float]:
    """Where Φ(u cotθ) bends."""
    steps = np.tan(theta) * np.array([1, 3, 6, 9])
    return [*steps, *-steps]


def _panels(low: float, high: float, breaks: list[float]) -> np.ndarray:
    """Edges of the panels of an integral: ends, breaks between them, steps of at most 1.5."""
    inside = [value for value in breaks if low < value < high]
    edges = sorted({low, *inside, high})
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


# -- the best keep ---------------------------------------------------------------------------------


class Optimum(NamedTuple):
    """The fraction to keep with the least test error, and that error."""

    keep: float
    error: float


def envelope(
    alphas: np.ndarray, *, theta: float = 0.0, lowest_keep: float = 1e-3
) -> list[Optimum | None]:
    """The best keep of hard examples at values of alpha_prune, keep · alpha_tot: [n] -> [n].

    From keep = 1 down by constant factors as long as the error falls, then between the neighbours
    of the least value: the error has one minimum over keep (a test scans for others). None stands
    where it still falls at `lowest_keep`. At theta = 0 that is so from alpha_prune = 2 on, however
    low: hard enough examples, more than twice as many as dimensions, have labels that only the
    teacher's direction explains, and the error vanishes with keep.
    """
    return [_best_keep(float(alpha), theta, lowest_keep) for alpha in alphas]


def _best_keep(alpha: float, theta: float, lowest_keep: float) -> Optimum | None:
    log_keeps = np.linspace(0, np.log(lowest_keep), 16)

    def solve_near(log_keep: float, state: _State) -> tuple[float, _State]:
        pruning = _pruning(float(np.exp(log_keep)), theta, "hardest", "absolute")
        try:
            state = _newton(alpha, pruning, state)
        except ArithmeticError:
            state = _first_state(alpha, pruning)
        return _solution(state, pruning.theta).error, state

    unpruned = _first_state(alpha, _pruning(1.0, 0.0, "random", "absolute"))
    errors, states = [_solution(unpruned, 0.0).error], [_rotate(unpruned, theta)]
    for log_keep in log_keeps[1:]:
        error, state = solve_near(float(log_keep), states[-1])
        errors.append(error)
        states.append(state)
        if error > errors[-2]:
            break
    best = int(np.argmin(errors))
    bounds = log_keeps[min(best + 1, len(errors) - 1)], log_keeps[max(best - 1, 0)]
    minimum = optimize.minimize_scalar(
        lambda log_keep: solve_near(log_keep, states[best])[0],
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-4},
    )
    if errors[best] <= minimum.fun:  # at an end of the range
        optimum = Optimum(float(np.exp(log_keeps[best])), errors[best])
    else:
        optimum = Optimum(float(np.exp(minimum.x)), float(minimum.fun))
    return optimum if optimum.keep > lowest_keep * 1.01 else None


def _rotate(state: _State, theta: float) -> _State:
    """A student in the direction of the teacher, seen from a probe at an angle."""
    slope, _, k = state
    return float(slope * np.cos(theta)), float(slope * np.sin(theta)), k


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
        # The teacher is the first axis, and the probe lies in the plane of the first two: only what
        # is kept needs the other coordinates.
        plane = generator.standard_normal((round(alpha_tot * dimensions), 2))
        margins = np.abs(plane[:, 0] * np.cos(theta) + plane[:, 1] * np.sin(theta))
        order = generator.permutation(len(plane)) if strategy == "random" else np.argsort(margins)
        count = max(round(keep * len(plane)), 1)
        kept = plane[order[-count:] if strategy == "easiest" else order[:count]]
        other_coordinates = generator.standard_normal((count, dimensions - 2))
        weights = _max_margin(np.hstack([kept, other_coordinates]) * np.sign(kept[:, :1]))
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
    current = min(0.05, float(np.min(alphas)))
    state = np.log(
        [np.sqrt(2 / np.pi) * current * float(weights @ points[0]), np.sqrt(2 / np.pi * current)]
    )
    gains = []
    for alpha in map(float, np.sort(alphas)):
        num_steps = max(int(np.ceil(np.log(alpha / current) / np.log(1.2))), 1)
        for step in np.geomspace(current, alpha, num_steps + 1)[1:]:
            solution = optimize.root(
                residuals, state, args=(step,), method="hybr", options={"xtol": 1e-10}
            )
            state = solution.x
        current = alpha
        gains.append(-averages(np.exp(state))[0])
    return np.asarray(gains)[np.argsort(np.argsort(alphas))]
