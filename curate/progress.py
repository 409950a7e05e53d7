"""Messages and progress bars; silent unless the command line turns them on."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from curate.formatting import escape_control_characters

log = logging.getLogger("curate")
_bars_enabled = False


def configure_output(*, messages: bool, bars: bool) -> None:
    """Send messages to stderr, and progress bars too where stderr is a terminal."""
    global _bars_enabled
    _bars_enabled = bars and sys.stderr.isatty()
    # Libraries log to the root logger too (open_clip: every failed download). Our own line says
    # what matters.
    logging.getLogger().addHandler(logging.NullHandler())
    if messages and not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter())
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if messages else logging.ERROR)


class _PlainFormatter(logging.Formatter):
    """The message alone. Names of shards and error texts come from strangers, hence the escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control_characters(record.getMessage(), "\n")


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, unit: str = "samples"
) -> Iterator[Callable[[int, int], None]]:
    """A bar with samples, rate and time left; yields the function that advances it.

    That function takes (work, num_samples): `work` counts towards `total`. `unit` is the word for
    what the bar shows in place of samples.
    """
    if not _bars_enabled:
        yield lambda work, num_samples: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class SamplesColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            num_samples = task.fields["samples"]
            # rich knows the recent speed in the unit of the total; turn it into samples.
            speed = task.finished_speed or task.speed or 0
            rate = speed * num_samples / max(task.completed, 1)
            suffix = f" · {rate:,.0f}/s" if rate else ""
            return Text(f"{num_samples:,} {unit}{suffix}", style="cyan")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        SamplesColumn(),
        TimeRemainingColumn(),
    )
    # transient: the bar vanishes when the work is finished, and the summary line replaces it.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, samples_seen = progress.add_task(description, total=total, samples=0), 0

        def advance(work: int, num_samples: int) -> None:
            nonlocal samples_seen
            samples_seen += num_samples
            progress.update(task, advance=work, samples=samples_seen)

        yield advance
