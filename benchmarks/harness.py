"""How every benchmark is timed: variants side by side in one run, in random order, medians of several rounds.

A benchmark is a module bench_NAME with a function `measure() -> list[Row]`. `make bench` runs all of them, writes
benchmarks/results.json and the table in docs/performance.md.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One comparison, in seconds; `least_…` are the ratios that must be reached: the limit's time to ours, a peer's to ours."""

    stage: str
    ours: float
    limit: float | None = None
    peer: float | None = None
    peer_name: str = ""
    least_of_limit: float | None = None
    least_of_peer: float | None = None

    @property
    def of_limit(self) -> float | None:
        """1 is as fast as the limit."""
        return self.limit / self.ours if self.limit else None

    @property
    def of_peer(self) -> float | None:
        """How many times as fast as the peer."""
        return self.peer / self.ours if self.peer else None

    @property
    def met(self) -> bool:
        wanted = ((self.of_limit, self.least_of_limit), (self.of_peer, self.least_of_peer))
        return all(found is not None and found >= least for found, least in wanted if least is not None)


def timed(
    variants: dict[str, Callable[[], object]], rounds: int = ROUNDS, cpu: bool = False, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each variant, wall-clock or of this process' CPU; if `warm`, each runs once before, unmeasured."""
    clock = time.process_time if cpu else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values() if warm else ():
        run()
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            begin = clock()
            variants[name]()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(found) for name, found in seconds.items()}
