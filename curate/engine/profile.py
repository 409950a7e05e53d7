"""Where the time of a task goes: one clock, switched from one kind of work to the next and back."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """`seconds` by kind of work; inside one kind another may begin, which then has the time alone. For one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._kind, self._since = "other", time.perf_counter()

    def switch(self, kind: str) -> str:
        """From now on the time is of this kind; returns the one before."""
        now = time.perf_counter()
        self.seconds[self._kind] = self.seconds.get(self._kind, 0.0) + now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def each(self, kind: str, items: Iterable[T]) -> Iterator[T]:
        """The items; getting each of them is of this kind."""
        iterator = iter(items)
        while True:
            with self.during(kind):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def add(total: dict[str, float], seconds: dict[str, float]) -> None:
    """Add the seconds of one task to those of all."""
    for kind, value in seconds.items():
        total[kind] = total.get(kind, 0.0) + value


def shares(seconds: dict[str, float]) -> str:
    """encode 88%, decode 9%, …: the largest first."""
    whole = sum(seconds.values()) or 1.0
    return ", ".join(f"{kind} {value / whole:.0%}" for kind, value in sorted(seconds.items(), key=lambda pair: -pair[1]))
