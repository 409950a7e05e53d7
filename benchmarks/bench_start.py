"""What the small commands cost before they do anything: seconds of CPU, against 0.4."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Row

from curate.catalog import Catalog

SECONDS = 0.4


def command(*words: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("curate")), *words], check=True, capture_output=True)  # noqa: S603


def cpu(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        Catalog(Path(folder) / "catalog").create()
        asked = {"--help": ("--help",), "query": ("query", "sets", "-c", f"{folder}/catalog"),
                 "list": ("list", "metrics", "-c", f"{folder}/catalog")}  # fmt: skip
        rows = []
        for name, words in asked.items():
            seconds = sorted(cpu(*words) for _ in range(7))[3]
            rows.append(Row(f"curate {name}", seconds, limit=SECONDS, least_of_limit=1.0))
    return rows
