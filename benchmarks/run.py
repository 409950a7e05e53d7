"""Run all benchmarks, or those named; write results.json and the table in docs/performance.md.

python benchmarks/run.py [NAME ...]        (`make bench` runs all; ROUNDS=3 is a shorter run)
"""

import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER.parent / "docs" / "performance.md"
BENCHMARKS = (
    "start",
    "tar",
    "decode",
    "embed",
    "feeding",
    "clip",
    "export",
    "stream",
    "kmeans",
    "dedup",
    "select",
    "heads",
    "end_to_end",
)
TABLE_START, TABLE_END = "<!-- table: made by benchmarks/run.py -->", "<!-- end of table -->"
TABLE_HEADER = """\
| stage | ours | of the limit | times the peer | target | met |
|---|---|---|---|---|---|"""


def main() -> None:
    previous = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    results = {result["stage"]: result for result in previous}
    for benchmark in sys.argv[1:] or BENCHMARKS:
        for row in importlib.import_module(f"bench_{benchmark}").measure():
            results[row.stage] = {
                **dataclasses.asdict(row),
                "ratio_to_limit": row.ratio_to_limit,
                "ratio_to_peer": row.ratio_to_peer,
                "met": row.met,
                "benchmark": benchmark,
                "commit": git_commit(),
                "hardware": describe_hardware(),
            }
            print(format_row(results[row.stage]), flush=True)
        store(results)  # now: all of them take an hour


def store(results: dict[str, dict[str, Any]]) -> None:
    """Write results.json and the table."""
    ordered = sorted(results.values(), key=lambda result: BENCHMARKS.index(result["benchmark"]))
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    before, _, after = PAGE.read_text().partition(TABLE_START)
    table = "\n".join([TABLE_HEADER, *map(format_row, ordered)])
    PAGE.write_text(f"{before}{TABLE_START}\n{table}\n{TABLE_END}{after.partition(TABLE_END)[2]}")


def format_row(result: dict[str, Any]) -> str:
    """A line of the table."""
    ratio_to_limit, ratio_to_peer = result["ratio_to_limit"], result["ratio_to_peer"]
    targets = []
    if result["least_of_limit"]:
        targets.append(f"≥ {result['least_of_limit']:g} of the limit")
    if result["least_of_peer"]:
        targets.append(f"≥ {result['least_of_peer']:g} × the peer")
    cells = (
        result["stage"],
        f"{result['ours']:.3g} {result.get('unit', 's')}",
        "" if ratio_to_limit is None else f"{ratio_to_limit:.2f}",
        f"{ratio_to_peer:.2f} × {result['peer_name']}" if ratio_to_peer else "",
        ", ".join(targets),
        "yes" if result["met"] else "no",
    )
    return f"| {' | '.join(cells)} |"


def git_commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    process = subprocess.run(  # noqa: S603 - our own command
        command, cwd=FOLDER, capture_output=True, text=True
    )
    return process.stdout.strip()


def describe_hardware() -> str:
    """The processor's model, or its architecture where /proc does not tell, and the cores."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    models = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    model = models[0] if models else platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
