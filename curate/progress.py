"""Messages, progress bars and the line that says what is being waited for.

All is silent unless the command line turns it on. On a terminal one thing at a time has the last
line: a bar, or else what is being done, with the seconds that it has taken. Messages go above it.
"""

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from curate.formatting import escape_control_characters

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("curate")
_messages_enabled = False
_bars_enabled = False
_FIRST_SECONDS, _INTERVAL = 0.2, 0.5  # until the line of what is waited for appears, and changes
_BAR_WIDTH = 40
_CLEAR_LINE = "\r\x1b[2K"


def configure_output(*, messages: bool, bars: bool) -> None:
    """Send messages to stderr, and progress bars too where stderr is a terminal."""
    global _messages_enabled, _bars_enabled
    _messages_enabled = messages
    _bars_enabled = bars and sys.stderr.isatty()
    # Libraries log to the root logger too (open_clip: every failed download). Our own line says
    # what matters.
    logging.getLogger().addHandler(logging.NullHandler())
    if messages and not log.handlers:
        handler = _MessageHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter())
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if messages else logging.ERROR)


class _PlainFormatter(logging.Formatter):
    """The message alone. Names of shards and error texts come from strangers, hence the escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control_characters(record.getMessage(), "\n")


class _MessageHandler(logging.StreamHandler[Any]):
    """Writes messages above the bars, and in place of the line of what is waited for."""

    def emit(self, record: logging.LogRecord) -> None:
        if _screen.progress is not None:
            from rich.text import Text

            message = Text(self.format(record))
            _screen.progress.console.print(message, soft_wrap=True, highlight=False)
            return
        with _screen.lock:
            _screen.clear()
            super().emit(record)


class _Screen:
    """What is on the last line of the terminal: bars, or the text of what is being waited for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.progress: Progress | None = None
        self.text = ""
        self._since = 0.0
        self._is_drawn = False

    def set_text(self, text: str) -> None:
        with self.lock:
            self.text, self._since = text, time.monotonic()
            self.clear()

    def clear(self) -> None:
        """Take the text off the screen, until it is drawn again."""
        if self._is_drawn:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
            self._is_drawn = False

    def draw(self) -> None:
        with self.lock:
            if not self.text or self.progress is not None:
                return
            seconds = int(time.monotonic() - self._since)
            duration = f" {seconds} s" if seconds else ""
            line = escape_control_characters(self.text)[: _line_width()]
            sys.stderr.write(f"{_CLEAR_LINE}{line} …{duration}")
            sys.stderr.flush()
            self._is_drawn = True


_screen = _Screen()


def _line_width() -> int:
    import shutil

    return max(shutil.get_terminal_size().columns - 12, 10)


def say_first(text: str) -> None:
    """Say at once on a terminal what begins, before libraries are imported."""
    if sys.stderr is not None and sys.stderr.isatty():
        _screen.set_text(text)
        _screen.draw()
        atexit.register(clear_line)


def clear_line() -> None:
    """Take what is being waited for off the screen: something else is written now."""
    with _screen.lock, contextlib.suppress(OSError, ValueError):  # of a stream that was closed
        _screen.set_text("")


def announce(text: str) -> None:
    """Say what is done or loaded now, before a step that takes long: `loading torch`.

    On a terminal it is on the last line until something else is said; elsewhere it is a line.
    """
    if _bars_enabled:
        _screen.set_text(text)
    elif _messages_enabled:
        sys.stderr.write(f"{escape_control_characters(text)} …\n")
        sys.stderr.flush()


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """For the block, a terminal says what is being waited for whenever there is no bar."""
    if not _bars_enabled:
        yield
        return
    is_done = threading.Event()

    def keep_drawing() -> None:
        delay = _FIRST_SECONDS
        while not is_done.wait(delay):
            delay = _INTERVAL
            _screen.draw()

    _screen.set_text(text)
    thread = threading.Thread(target=keep_drawing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        _screen.set_text("")


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
    with _shared_progress(unit) as progress:
        task = progress.add_task(description, total=total, samples=0)
        samples_seen = 0

        def advance(work: int, num_samples: int) -> None:
            nonlocal samples_seen
            samples_seen += num_samples
            progress.update(task, advance=work, samples=samples_seen)

        yield advance
        progress.remove_task(task)


@contextlib.contextmanager
def _shared_progress(unit: str) -> Iterator["Progress"]:
    """The bars on the screen: a second bar goes below the first."""
    if _screen.progress is not None:
        yield _screen.progress
        return
    with _make_progress(unit) as progress:
        with _screen.lock:
            _screen.clear()
            _screen.progress = progress
        try:
            yield progress
        finally:
            with _screen.lock:
                _screen.progress = None


def _make_progress(unit: str) -> "Progress":
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
        BarColumn(min(_line_width() // 4, _BAR_WIDTH)),  # room for the rate in a narrow terminal
        TaskProgressColumn(),
        SamplesColumn(),
        TimeRemainingColumn(),
    )
    # transient: the bar vanishes when the work is finished, and the summary line replaces it.
    return Progress(*columns, console=Console(stderr=True), transient=True)
