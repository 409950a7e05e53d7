"""What the small commands cost before they do anything: seconds of CPU, against 0.4."""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Row

from curate.catalog.catalog import Catalog

LIMIT, ROUNDS = 0.4, 7


def run_command(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("curate")), *arguments]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_command(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = str(Path(folder) / "catalog")
        Catalog(catalog).create()
        commands = {
            "--help": ("--help",),
            "query": ("query", "sets", "-c", catalog),
            "list": ("list", "metrics", "-c", catalog),
        }
        rows = []
        for name, arguments in commands.items():
            seconds = statistics.median(cpu_seconds(*arguments) for _ in range(ROUNDS))
            rows.append(Row(f"curate {name}", seconds, limit=LIMIT, least_of_limit=1.0))
    return rows
