"""How every benchmark is timed: variants in one run, in random order, medians of several rounds.

A benchmark is a module bench_NAME with a function `measure() -> list[Row]`. `make bench` runs all
of them, writes benchmarks/results.json and the table in docs/performance.md.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = int(os.environ.get("ROUNDS", "5"))


@dataclass(frozen=True)
class Row:
    """One comparison, in seconds, or in another `unit` of which less is better.

    `least_of_limit` and `least_of_peer` are the ratios that must be reached: the limit's time to
    ours, a peer's time to ours.
    """

    stage: str
    ours: float
    limit: float | None = None
    peer: float | None = None
    peer_name: str = ""
    least_of_limit: float | None = None
    least_of_peer: float | None = None
    unit: str = "s"

    @property
    def ratio_to_limit(self) -> float | None:
        """1 is as fast as the limit."""
        return self.limit / self.ours if self.limit else None

    @property
    def ratio_to_peer(self) -> float | None:
        """How many times as fast as the peer."""
        return self.peer / self.ours if self.peer else None

    @property
    def met(self) -> bool:
        """Whether every ratio that has a target reaches it."""
        targets = (
            (self.ratio_to_limit, self.least_of_limit),
            (self.ratio_to_peer, self.least_of_peer),
        )
        return all(
            ratio is not None and ratio >= target for ratio, target in targets if target is not None
        )


def time_variants(
    variants: dict[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    cpu_time: bool = False,
    warm_up: bool = True,
) -> dict[str, float]:
    """Median seconds of each variant: wall-clock, or `cpu_time` of this process.

    With `warm_up` each variant runs once before, unmeasured.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    if warm_up:
        for run in variants.values():
            run()
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
