"""How a task advances the progress bar of the driver, on any engine."""

from curate.execution.types import ReportProgress


def no_progress(work: int, num_samples: int) -> None:
    """Discard a report."""


_reporter: ReportProgress = no_progress


def set_reporter(reporter: ReportProgress) -> None:
    """Called by an engine in each worker: where the reports of its tasks go."""
    global _reporter
    _reporter = reporter


def report_progress(work: int, num_samples: int | None = None) -> None:
    """Called by a task: report completed work, in the unit of the progress bar's total.

    Where that unit is samples, one number is enough.
    """
    _reporter(work, work if num_samples is None else num_samples)
