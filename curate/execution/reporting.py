"""How a task tells the progress bar of the driver what it has done, on any engine."""

from curate.execution.types import ReportProgress


def _ignore(amount: int, num_samples: int) -> None:
    pass


_reporter: ReportProgress = _ignore


def set_reporter(reporter: ReportProgress | None) -> None:
    """Called by an engine in each worker: where reports go; None is nowhere."""
    global _reporter
    _reporter = reporter or _ignore


def report_progress(amount: int, num_samples: int | None = None) -> None:
    """Called by a task, for the progress bar only: so much of its work is done.

    `amount` is in the unit of the bar's total; where that is samples, one number is enough.
    """
    _reporter(amount, amount if num_samples is None else num_samples)
