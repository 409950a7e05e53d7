"""Messages and progress bars; silent unless the command line turns them on."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from curate.units import printable

log = logging.getLogger("curate")
_bars = False


def show(*, messages: bool, bars: bool) -> None:
    """Let messages go to stderr, and bars too where stderr is a terminal."""
    global _bars
    _bars = bars and sys.stderr.isatty()
    # Libraries log to the root as well (open_clip: every download that fails); our own line says what matters.
    logging.getLogger().addHandler(logging.NullHandler())
    if messages and not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Line())
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if messages else logging.ERROR)


class _Line(logging.Formatter):
    """The message and nothing else; names of shards and errors come from strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage(), "\n")


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar with samples, rate and time left; yields the function that moves it on.

    That function takes (amount, samples): `amount` counts towards `total`, whatever its unit.
    """
    if not _bars:
        yield lambda amount, samples: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Samples(ProgressColumn):
        def render(self, task: Task) -> Text:
            done = task.fields["samples"]
            # The speed of late, which rich knows in the unit of the total, turned into samples.
            speed = (task.finished_speed or task.speed or 0) * done / max(task.completed, 1)
            return Text(f"{done:,} samples" + (f" · {speed:,.0f}/s" if speed else ""), style="cyan")

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Samples(), TimeRemainingColumn())
    # transient: the bar vanishes when the work is done, and the summary line stands in its place.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, seen = progress.add_task(what, total=total, samples=0), 0

        def advance(amount: int, samples: int) -> None:
            nonlocal seen
            seen += samples
            progress.update(task, advance=amount, samples=seen)

        yield advance
