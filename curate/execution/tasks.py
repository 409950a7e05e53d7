"""What every engine does with a task: run it on one item, and merge results in a fixed order."""

import functools
import os
from collections.abc import Callable, Iterable
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


def tree_reduce(
    leaves: Iterable[Result], merge: Callable[[Result, Result], Result]
) -> Result | None:
    """Merge neighbours two by two, and the results again; None without leaves.

    The tree depends on the number of leaves alone, so that floating-point sums are the same for any
    engine. At most log2(n) + 1 results are held at once.
    """
    pending: list[tuple[int, Result]] = []  # (depth of the subtree, its result)
    for leaf in leaves:
        depth = 0
        while pending and pending[-1][0] == depth:
            leaf, depth = merge(pending.pop()[1], leaf), depth + 1
        pending.append((depth, leaf))
    if not pending:
        return None
    results = [result for _, result in reversed(pending)]
    return functools.reduce(lambda later, earlier: merge(earlier, later), results)
