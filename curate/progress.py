"""Messages and progress bars; silent unless the command line turns them on."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

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
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if messages else logging.ERROR)


@contextlib.contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left; yields the function that moves it on by so many units."""
    if not _bars:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else f"… {unit}/s", style="cyan")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    # transient: the bar vanishes when the work is done, and the summary line stands in its place.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total or None)
        yield lambda count: progress.advance(task, count)
