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
    from curate.engine import local

    yield from local.map(task, items, resources, advance)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_tick: Advance = lambda amount, samples: None  # noqa: E731 - replaced in a worker, hence a plain name


def tick(amount: int, samples: int | None = None) -> None:
    """Called by a task, for the progress bar only: so much of its work is done, and so many samples.

    `amount` is in the unit of the bar's total; where that is samples, one number says both.
    """
    _tick(amount, amount if samples is None else samples)
