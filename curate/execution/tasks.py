"""What every engine does with a task: run it on one item, and merge results in a fixed order."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from curate.errors import CurateError
from curate.execution.types import Outcome, Task

Result = TypeVar("Result")


def run_task(task: Task, item: Any) -> Outcome:
    """Run the task on one item; an exception becomes the outcome's error."""
    try:
        return Outcome(item, task(item), None)
    except CurateError as error:
        return Outcome(item, None, str(error))
    except Exception as error:  # the boundary of the engine: one failure must not end the others
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        location = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        return Outcome(item, None, f"{type(error).__name__}: {error} ({location})")


def sort_outcomes(outcomes: Iterable[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """Outcomes in the order of their positions, which are 0, 1, 2 … in any order."""
    waiting: dict[int, Outcome] = {}
    next_position = 0
    for position, outcome in outcomes:
        waiting[position] = outcome
        while next_position in waiting:
            yield waiting.pop(next_position)
            next_position += 1


def tree_reduce(
    leaves: Iterable[tuple[int, Result]], merge: Callable[[Result, Result], Result]
) -> Result | None:
    """Merge neighbours two by two, and the results again; None without leaves.

    Leaves come in any order, each with its position, 0, 1, 2 … The tree depends on their number
    alone, so that floating-point sums are the same for any engine. Each leaf that is late keeps at
    most log2(n) results waiting beside it.
    """
    nodes: dict[tuple[int, int], Result] = {}  # by depth of the subtree, and position at that depth
    for position, result in leaves:
        depth = 0
        while (sibling := (depth, position ^ 1)) in nodes:
            other = nodes.pop(sibling)
            result = merge(other, result) if position % 2 else merge(result, other)
            depth, position = depth + 1, position // 2
        nodes[depth, position] = result
    if not nodes:
        return None
    # Subtrees of different depths are left, the deepest first in the order of the leaves.
    results = [nodes[node] for node in sorted(nodes)]
    return functools.reduce(lambda later, earlier: merge(earlier, later), results)
