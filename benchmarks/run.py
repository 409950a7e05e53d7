"""Run all benchmarks, or those named, and write benchmarks/results.json and the table in docs/performance.md.

python benchmarks/run.py [NAME ...]        (`make bench` runs all)
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

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "performance.md"
ALL = ("start", "tar", "decode", "embed", "clip", "export", "kmeans", "select", "heads")
BEGIN, END = "<!-- table: made by benchmarks/run.py -->", "<!-- end of table -->"


def main() -> None:
    names = sys.argv[1:] or ALL
    rows = {row["stage"]: row for row in (json.loads(RESULTS.read_text()) if RESULTS.is_file() else [])}
    for name in names:
        for row in importlib.import_module(f"bench_{name}").measure():
            found = dataclasses.asdict(row) | {"ratio_to_limit": row.of_limit, "ratio_to_peer": row.of_peer, "met": row.met}
            rows[row.stage] = found | {"benchmark": name, "commit": commit(), "hardware": hardware()}
            print(shown(rows[row.stage]), flush=True)
    kept = sorted(rows.values(), key=lambda row: ALL.index(row["benchmark"]))
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table = "\n".join(["| stage | ours | of the limit | times the peer | target | met |", "|---|---|---|---|---|---|"]
                      + [shown(row) for row in kept])  # fmt: skip
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    peer = f"{ratio(row['ratio_to_peer'])} × {row['peer_name']}" if row["ratio_to_peer"] else ""
    target = ", ".join(filter(None, (
        f"≥ {row['least_of_limit']:g} of the limit" if row["least_of_limit"] else "",
        f"≥ {row['least_of_peer']:g} × the peer" if row["least_of_peer"] else "",
    )))  # fmt: skip
    met = "yes" if row["met"] else "no"
    return f"| {row['stage']} | {row['ours']:.3g} s | {ratio(row['ratio_to_limit'])} | {peer} | {target} | {met} |"


def commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=HERE, capture_output=True, text=True).stdout.strip()  # noqa: S603


def hardware() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine()
    )
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
