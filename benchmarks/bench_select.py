"""`curate select` on a catalog of 50 million samples in 1,000 classes, keep 0.5, balance 0.5, scores with ties: CPU seconds.

The peer does the same by a DuckDB window query over the same tables, members committed to a database too. The limit sorts
the scores of every class in numpy. Each variant runs in a process of its own, which also tells its peak memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
from harness import ROUNDS, Row

from curate import sets
from curate.catalog import Catalog

HERE = Path(__file__).parent
ROWS, CLASSES = 50_000_000, 1_000
_STARTED = "import json, resource, sys, time; sys.path.insert(0, sys.argv[2])\n"
_ENDED = """
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would know the parent's too
print(json.dumps([used.ru_utime + used.ru_stime, int(peak.split()[1]) / 2**20]))
"""
_VARIANTS = {
    "ours": "from curate.stages.select import select\nselect(sys.argv[1], keep=0.5, scoring='toy', name='ours')",
    "peer": "import bench_select\nbench_select.window(sys.argv[1])",
    "limit": "import bench_select\nbench_select.sort()",
}


def build(folder: Path) -> None:
    """A catalog as embed and score leave it, without files of vectors."""
    with Catalog(folder).create().writing() as connection:
        connection.execute(
            "insert into shards select i, i || '.tar', 1, '', 10000, 'x', true from range(?) as t(i)", [ROWS // 10_000]
        )
        connection.execute(
            "insert into samples select (i // 10000) << 24 | i % 10000, i // 10000, format('{:09d}', i), "
            "'class-' || hash(i) % ?, null, i % 10000 * 30720, 30000, 400, 300 from range(?) as t(i)", [CLASSES, ROWS],
        )  # fmt: skip
        sets.insert(connection, "scorings", {"scoring": "toy", "metric": "toy", "arguments": "{}", "num_samples": ROWS,
                                             "num_null": 0, "fingerprint": "", "run_id": 0})  # fmt: skip
        connection.execute("insert into scores select 'toy', sample_id, hash(sample_id + 1) % 100000 / 1e5, null from samples")
        sets.refresh_sample_scores(connection)


def window(catalog: str) -> None:
    """The peer: floors by class, the rest of the budget by score; ties by a hash, because our shuffle is not in SQL."""
    connection = duckdb.connect(f"{catalog}-peer.duckdb")
    connection.execute(f"attach '{catalog}/catalog.duckdb' as catalog (read_only)")
    connection.execute(
        """create or replace table members as
        with sizes as (select label, ceil(0.25 * count(*)) as floor from catalog.samples group by label),
        ranked as (
            select sample_id, floor, score,
                   row_number() over (partition by label order by score desc, hash(sample_id)) as place
            from catalog.samples join catalog.scores using (sample_id) join sizes using (label)
        ),
        contest as (
            select sample_id, row_number() over (order by score desc, hash(sample_id)) as place from ranked where place > floor
        )
        select sample_id from ranked where place <= floor
        union all select sample_id from contest where place <= (select $total - sum(floor) from sizes)
        order by sample_id""",
        {"total": ROWS // 2},
    )


def sort() -> None:
    """The limit: every class' scores sorted, nothing read and nothing written."""
    import numpy as np

    scores = np.random.default_rng(0).random(ROWS).reshape(CLASSES, -1)
    scores.sort(axis=1)


def agreement(catalog: Path) -> None:
    """Both keep as many, the same share of every class within one, and the same scores: they differ among equal scores only."""
    connection = duckdb.connect(f"{catalog}-peer.duckdb", read_only=True)
    connection.execute(f"attach '{catalog}/catalog.duckdb' as catalog (read_only)")
    ours, theirs = (
        connection.execute(
            f"select count(*), min(score), sum(score::decimal(18, 5)) from {table} join catalog.scores using (sample_id)"
        ).fetchone()
        for table in ("catalog.members", "members")
    )
    print(f"members, lowest score, sum of scores: ours {ours}, window query {theirs}")


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog"
        build(catalog)
        seconds: dict[str, list[float]] = {name: [] for name in _VARIANTS}
        memory: dict[str, float] = {}
        for _ in range(ROUNDS):
            for name, program in _VARIANTS.items():
                if name == "ours":  # which would find its work done already
                    with Catalog(catalog).writing() as connection:
                        connection.execute("delete from selections")
                        connection.execute("delete from members")
                asked = [sys.executable, "-W", "ignore", "-c", _STARTED + program + _ENDED, str(catalog), str(HERE)]
                run = subprocess.run(asked, check=True, capture_output=True, text=True)  # noqa: S603
                used, peak = json.loads(run.stdout.splitlines()[-1])
                seconds[name].append(used)
                memory[name] = max(memory.get(name, 0), peak)
        agreement(catalog)
    print("peak memory: " + ", ".join(f"{name} {size:.2f} GiB" for name, size in memory.items()))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return [Row("select, 50 million samples", **median, peer_name="a window query", least_of_peer=2.5)]
