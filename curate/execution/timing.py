"""How the time of a task divides between kinds of work."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Seconds by kind of work. A kind that starts inside another takes the time alone.

    For use by one thread.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._kind, self._started = "other", time.perf_counter()

    def switch(self, kind: str) -> str:
        """From now on count time as this kind; returns the previous one."""
        now = time.perf_counter()
        self.seconds[self._kind] = self.seconds.get(self._kind, 0.0) + now - self._started
        previous, self._kind, self._started = self._kind, kind, now
        return previous

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the block as this kind."""
        previous = self.switch(kind)
        try:
            yield
        finally:
            self.switch(previous)

    def measure_each(self, kind: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; producing each of them counts as this kind."""
        iterator = iter(items)
        while True:
            with self.measure(kind):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def add_seconds(total: dict[str, float], seconds: dict[str, float]) -> None:
    """Add the seconds of one task to a total."""
    for kind, value in seconds.items():
        total[kind] = total.get(kind, 0.0) + value


def format_shares(seconds: dict[str, float]) -> str:
    """encode 88%, decode 9%, …: the largest first."""
    total = sum(seconds.values()) or 1.0
    by_size = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{kind} {value / total:.0%}" for kind, value in by_size)
