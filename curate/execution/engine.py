"""Where work runs. A stage says what is done for one item; an engine says where.

`map` is nearly the whole interface: a stage gives it a task and items, and receives
(item, result, error) in the order of the items. A task is a picklable callable that works on files,
skips what is finished, and returns something small; heavy state is loaded once per worker process,
by a cached function. `reduce` merges what tasks return. No engine knows a stage, so another engine
needs no change in any stage: it is a module with the functions of `types.Engine`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from curate.errors import CurateError, OptionError
from curate.execution import local
from curate.execution.types import Engine, Outcome, ReportProgress, Resources

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("local", "ray")
_current: Engine = local


@contextlib.contextmanager
def use_engine(name: str = "local", address: str | None = None) -> Iterator[None]:
    """Let the stages that are called in the block work on this engine.

    `ray` joins the cluster at `address`, or starts one on this machine for the block. Raises
    CurateError.
    """
    global _current
    if name not in ENGINES or (address and name != "ray"):
        raise OptionError(
            f"--engine {name}: choose one of {', '.join(ENGINES)}; --ray-address goes with ray"
        )
    if name == "local":
        yield
        return
    from curate.execution import ray

    with ray.connect(address):
        previous, _current = _current, ray
        try:
            yield
        finally:
            _current = previous


def current_engine() -> Engine:
    """The engine in use."""
    return _current


def _no_progress(amount: int, num_samples: int) -> None:
    pass


def map(  # noqa: A001 - the usual word for it
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = _no_progress,
) -> Iterator[Outcome]:
    """Run `task` on every item and yield the outcomes in the items' order.

    Items are taken as they are needed, a few ahead of the work. `advance` is called now and then,
    in this process, with what tasks reported. An exception in a task becomes that item's error;
    the other items go on.
    """
    yield from _current.map(task, items, resources, advance)


def reduce(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    merge: Callable[[Result, Result], Result],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = _no_progress,
) -> Outcome:
    """Run `task` on every item and merge the results in the tree of `tasks.tree_reduce`.

    Returns the outcome of the first item that failed, or of all, with None as its item.
    """
    return _current.reduce(task, items, merge, resources, advance)


def map_or_raise(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = _no_progress,
    describe_item: Callable[[Item], str] = lambda item: "",
) -> Iterator[tuple[Item, Result]]:
    """Like `map`, where every item must succeed: CurateError for the first that fails."""
    for item, result, error in map(task, items, resources, advance=advance):
        if error:
            prefix = describe_item(item)
            raise CurateError(f"{prefix}: {error}" if prefix else error)
        yield item, result
