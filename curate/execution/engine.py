"""Where work runs. A stage says what is done for one item; an engine says where.

`map` is nearly the whole interface: a stage gives it a task and items, and receives
(item, result, error) as they finish, or in the order of the items. A task is a picklable callable
that works on files and returns something small; heavy state is loaded once per worker process, by a
cached function. It may have the attribute `modules`, names of what takes long to import: workers on
this machine are forked from a process that has imported them.
`reduce` merges what tasks return. An engine is a module with the functions of `types.Engine`,
listed in `ENGINES` and connected by `use_engine`; no engine knows a stage.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from curate.errors import CurateError, OptionError
from curate.execution import local
from curate.execution.reporting import no_progress
from curate.execution.tasks import sort_outcomes
from curate.execution.types import Engine, Outcome, ReportProgress, Resources

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("local", "ray")
_current: Engine = local


@contextlib.contextmanager
def use_engine(name: str = "local", address: str | None = None) -> Iterator[None]:
    """Run the stages that are called in the block on this engine.

    `ray` joins the cluster at `address`, or starts one on this machine for the block. Raises
    CurateError.
    """
    global _current
    if name not in ENGINES:
        raise OptionError(f"--engine {name}: choose one of {', '.join(ENGINES)}")
    if address and name != "ray":
        raise OptionError("--ray-address goes with --engine ray")
    previous = _current
    with contextlib.ExitStack() as stack:
        _current = local
        if name == "ray":
            from curate.execution import ray

            stack.enter_context(ray.connect(address))
            _current = ray
        stack.callback(_restore, previous)
        yield


def _restore(engine: Engine) -> None:
    global _current
    _current = engine


def current_engine() -> Engine:
    """The engine in use."""
    return _current


def map(  # noqa: A001 - the usual word for it
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = no_progress,
    in_order: bool = False,
) -> Iterator[Outcome]:
    """Run `task` on every item and yield the outcomes as they finish, or in the items' order.

    Items are taken as they are needed, a few ahead of the work: one that takes long holds no other
    back. With `in_order`, outcomes that finish before an earlier item's wait in this process.
    `advance` is called from time to time, in this process, with the progress that tasks reported.
    An exception in a task becomes that item's error; the other items continue. The engine is that
    of the first outcome.
    """
    outcomes = _current.map(task, items, resources, advance)
    if in_order:
        yield from sort_outcomes(outcomes)
    else:
        for _, outcome in outcomes:
            yield outcome


def reduce(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    merge: Callable[[Result, Result], Result],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = no_progress,
) -> Outcome:
    """Run `task` on every item and merge the results in the tree of `tasks.tree_reduce`.

    Returns the outcome of an item that failed, or of all, with None as its item.
    """
    return _current.reduce(task, items, merge, resources, advance)


def map_or_raise(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    resources: Resources = Resources(),
    *,
    advance: ReportProgress = no_progress,
    describe_item: Callable[[Item], str] = lambda item: "",
    in_order: bool = False,
) -> Iterator[tuple[Item, Result]]:
    """Like `map`, where every item must succeed: CurateError for the first that fails."""
    for item, result, error in map(task, items, resources, advance=advance, in_order=in_order):
        if error:
            prefix = describe_item(item)
            raise CurateError(f"{prefix}: {error}" if prefix else error)
        yield item, result
