"""Where work runs. A stage says what is done for one item; an engine says in which process, on which machine.

`map` is nearly the whole interface: a stage gives it a task and items, and takes (item, result, error)
in the order of the items. A task is a picklable callable that does its own work on files, skips
what is finished, and returns something small; heavy state is loaded once per worker process, by a
cached function. `reduce` adds up what tasks return. Nothing here knows a stage, so another engine needs
no change in any of them: an engine is a module with the functions of `Engine`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from curate.errors import CurateError

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int, int], None]


class Outcome(NamedTuple):
    """What became of one item: `error` is None, or the one-line reason why there is no result."""

    item: Any
    result: Any
    error: str | None


@dataclass(frozen=True)
class Resources:
    """What a map may use: worker processes, threads inside each, and GPUs dealt out one a worker."""

    workers: int = 1
    threads: int = 1
    gpus: tuple[int, ...] = ()


class Engine(Protocol):
    """What the modules `local` and `ray` have in common."""

    def map(
        self, task: Callable[[Any], Any], items: Iterable[Any], resources: Resources, advance: Advance
    ) -> Iterator[Outcome]: ...

    def reduce(
        self, task: Callable[[Any], Any], items: Iterable[Any], merge: Callable[[Any, Any], Any], resources: Resources,
        advance: Advance,
    ) -> Outcome: ...  # fmt: skip

    def devices(self, wanted: str) -> tuple[str, tuple[int, ...]]: ...

    def cores(self, device: str = "cpu") -> tuple[int, int]: ...


ENGINES = ("local", "ray")
_current: Engine | None = None


@contextlib.contextmanager
def on(name: str = "local", address: str | None = None) -> Iterator[None]:
    """Let the stages that are called in the block work on this engine: `local`, or `ray` at the address of a cluster.

    Without an address Ray makes a cluster of this machine, for this block alone. Raises CurateError.
    """
    global _current
    if name not in ENGINES or (address and name != "ray"):
        raise CurateError(f"--engine {name}: choose one of {', '.join(ENGINES)}; --ray-address goes with ray")
    if name == "local":
        yield
        return
    from curate.engine import ray

    with ray.connected(address):
        _current, before = ray, _current
        try:
            yield
        finally:
            _current = before


def current() -> Engine:
    """The engine in use."""
    from curate.engine import local

    return _current or local


def map(  # noqa: A001 - the word for it
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: Advance = lambda amount, samples: None,
) -> Iterator[Outcome]:
    """Run `task` on every item and yield the outcomes in the items' order.

    Items are taken as they are needed, a few ahead of the work. `advance` is called now and then, in
    this process, with what tasks reported through `tick`. An exception in a task becomes that item's
    error; the other items go on.
    """
    yield from current().map(task, items, resources, advance)


def reduce(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    merge: Callable[[Result, Result], Result],
    resources: Resources = Resources(),
    *,
    advance: Advance = lambda amount, samples: None,
) -> Outcome:
    """Run `task` on every item and merge the results, neighbours first, in a tree; the outcome of the first that failed, else
    of all, its item None.

    The tree depends on the number of items alone: whoever works, the same numbers are added in the same order.
    """
    return current().reduce(task, items, merge, resources, advance)


def tree(leaves: Iterable[Result], merge: Callable[[Result, Result], Result]) -> Result | None:
    """Merge neighbours two by two, and what comes of it again; None without leaves. At most log2(n) + 1 are held at once."""
    held: list[tuple[int, Result]] = []  # how many merges deep, and what came of them
    for leaf in leaves:
        depth = 0
        while held and held[-1][0] == depth:
            leaf, depth = merge(held.pop()[1], leaf), depth + 1
        held.append((depth, leaf))
    results = [result for _, result in reversed(held)]
    return functools.reduce(lambda later, earlier: merge(earlier, later), results) if results else None


def cores() -> int:
    """The processor cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_tick: Advance = lambda amount, samples: None  # noqa: E731 - replaced in a worker, hence a plain name


def tick(amount: int, samples: int | None = None) -> None:
    """Called by a task, for the progress bar only: so much of its work is done, and so many samples.

    `amount` is in the unit of the bar's total; where that is samples, one number says both.
    """
    _tick(amount, amount if samples is None else samples)
