"""Where work runs. A stage says what is done for one item; an engine says in which process.

`map` is the whole interface: a stage gives it a task and items, and takes (item, result, error)
in the order of the items. A task is a picklable callable that does its own work on files, skips
what is finished, and returns something small; heavy state is loaded once per worker process, by a
cached function. Nothing here knows a stage, so another engine needs no change in any of them.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def map(  # noqa: A001 - the word for it
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Outcome]:
    """Run `task` on every item and yield the outcomes in the items' order.

    `advance` is called now and then, in this process, with the count that tasks reported through
    `tick`. An exception in a task becomes that item's error; the other items go on.
    """
    from curate.engine import local

    yield from local.map(task, list(items), resources, advance)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_tick: Callable[[int], None] = lambda count: None  # noqa: E731 - replaced in a worker, hence a plain name


def tick(count: int) -> None:
    """Called by a task: so many units of its work are done. For the progress bar only."""
    _tick(count)
