"""`curate select` on a catalog of 50 million samples in 1,000 classes, keep 0.5, balance 0.5,
scores with ties: CPU seconds.

The peer does the same by a DuckDB window query over the same tables, members committed to a
database too. Two more peers, numpy and polars (in `.peers/polars`, which `make peers` sets up),
have ids, labels and scores in one Parquet file, and write the ids that they keep to another; they
keep no catalog. The limit sorts the scores of every class in numpy. Each variant runs in a process
of its own, which also prints its peak memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
from harness import ROUNDS, Row

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord

FOLDER = Path(__file__).parent
NUM_SAMPLES, NUM_CLASSES = 50_000_000, 1_000
POLARS_PYTHON = FOLDER.parent / ".peers" / "polars" / "bin" / "python"
_PREAMBLE = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
"""
# ru_maxrss would know the parent's peak too.
_REPORT = """
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([used.ru_utime + used.ru_stime, int(peak.split()[1]) / 2**20]))
"""
_VARIANTS = {
    "ours": """
from curate.stages.select.stage import select
select(sys.argv[1], keep=0.5, scoring="toy", name="ours")
""",
    "peer": """
import bench_select
bench_select.select_by_window_query(sys.argv[1])
""",
    "limit": """
import bench_select
bench_select.sort_scores()
""",
    "numpy": """
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
table = pq.read_table(sys.argv[1] + "-samples.parquet", read_dictionary=["label"])
labels = table["label"].unify_dictionaries().combine_chunks().indices.to_numpy()
sample_ids, scores = table["sample_id"].to_numpy(), table["score"].to_numpy()
order = np.lexsort((-scores, labels))
sizes = np.bincount(labels)
ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
is_floor = ranks < np.repeat(np.ceil(0.25 * sizes), sizes)
contenders = order[~is_floor]
count = len(order) // 2 - int(is_floor.sum())
best = contenders[np.argpartition(-scores[contenders], count)[:count]]
kept = np.sort(sample_ids[np.concatenate([order[is_floor], best])])
pq.write_table(pa.table({"sample_id": kept}), sys.argv[1] + "-numpy.parquet")
""",
    "polars": """
import polars as pl
frame = pl.read_parquet(sys.argv[1] + "-samples.parquet")
frame = frame.with_columns(
    rank=pl.col("score").rank("ordinal", descending=True).over("label"),
    floor=(0.25 * pl.len().over("label")).ceil(),
)
floor = frame.filter(pl.col("rank") <= pl.col("floor"))
best = frame.filter(pl.col("rank") > pl.col("floor"))
best = best.top_k(frame.height // 2 - floor.height, by="score")
kept = pl.concat([floor, best]).select("sample_id").sort("sample_id")
kept.write_parquet(sys.argv[1] + "-polars.parquet")
""",
}
# Floors by class, the rest of the budget by score; ties by a hash, because ours is not in SQL.
_WINDOW_QUERY = """
create or replace table members as
with sizes as (
    select label, ceil(0.25 * count(*)) as floor from catalog.samples group by label
),
ranked as (
    select
        sample_id,
        floor,
        score,
        row_number() over (partition by label order by score desc, hash(sample_id)) as rank
    from catalog.samples join catalog.scores using (sample_id) join sizes using (label)
),
contenders as (
    select sample_id, row_number() over (order by score desc, hash(sample_id)) as rank
    from ranked where rank > floor
)
select sample_id from ranked where rank <= floor
union all
select sample_id from contenders where rank <= (select $total - sum(floor) from sizes)
order by sample_id
"""


def build_catalog(folder: Path) -> None:
    """A catalog as embed and score leave it, without files of vectors."""
    with Catalog(folder).create().writing() as connection:
        connection.execute(
            "insert into shards (shard_id, url, num_bytes, etag, num_samples, checksum, complete) "
            "select i, i || '.tar', 1, '', 10000, 'x', true from range(?) as t(i)",
            [NUM_SAMPLES // 10_000],
        )
        connection.execute(
            "insert into samples (sample_id, shard_id, key, label, caption, byte_offset, "
            "num_bytes, width, height) select (i // 10000) << 24 | i % 10000, i // 10000, "
            "format('{:09d}', i), 'class-' || hash(i) % ?, null, "
            "i % 10000 * 30720, 30000, 400, 300 from range(?) as t(i)",
            [NUM_CLASSES, NUM_SAMPLES],
        )
        record = ScoringRecord(
            scoring="toy",
            metric="toy",
            source=None,
            arguments="{}",
            num_samples=NUM_SAMPLES,
            num_null=0,
            reliability=None,
            fingerprint="",
            run_id=0,
        )
        sets.replace_set(connection, record)
        connection.execute(
            "insert into scores "
            "select 'toy', sample_id, hash(sample_id + 1) % 100000 / 1e5, null from samples"
        )
        sets.refresh_sample_scores(connection)


def write_samples(catalog: Path) -> None:
    """What polars and numpy start from."""
    connection = duckdb.connect(str(catalog / "catalog.duckdb"), read_only=True)
    connection.execute(
        "copy (select sample_id, label, score from samples join scores using (sample_id) "
        f"order by sample_id) to '{catalog}-samples.parquet'"
    )


def remove_selections(catalog: Path) -> None:
    """Without this, `select` has nothing to do the second time."""
    with Catalog(catalog).writing() as connection:
        connection.execute("delete from selections")
        connection.execute("delete from members")


def select_by_window_query(catalog: str) -> None:
    """The peer."""
    connection = duckdb.connect(f"{catalog}-peer.duckdb")
    connection.execute(f"attach '{catalog}/catalog.duckdb' as catalog (read_only)")
    connection.execute(_WINDOW_QUERY, {"total": NUM_SAMPLES // 2})


def sort_scores() -> None:
    """The limit: every class' scores sorted, nothing read and nothing written."""
    import numpy as np

    scores = np.random.default_rng(0).random(NUM_SAMPLES).reshape(NUM_CLASSES, -1)
    scores.sort(axis=1)


def print_agreement(catalog: Path) -> None:
    """Both keep as many, and the same scores: they differ among equal scores only."""
    connection = duckdb.connect(f"{catalog}-peer.duckdb", read_only=True)
    connection.execute(f"attach '{catalog}/catalog.duckdb' as catalog (read_only)")
    ours, peer = (
        connection.execute(
            "select count(*), min(score), sum(score::decimal(18, 5)) "
            f"from {table} join catalog.scores using (sample_id)"
        ).fetchone()
        for table in ("catalog.members", "members")
    )
    print(f"members, lowest score, sum of scores: ours {ours}, window query {peer}")
    for name in ("numpy", "polars"):
        file = f"{catalog}-{name}.parquet"
        if Path(file).is_file():
            kept = connection.execute(
                "select count(*), min(score), sum(score::decimal(18, 5)) "
                f"from '{file}' join catalog.scores using (sample_id)"
            ).fetchone()
            print(f"{name} {kept}")


def run_variant(name: str, catalog: Path) -> tuple[float, float]:
    """CPU seconds, and peak memory in GiB."""
    program = _PREAMBLE + _VARIANTS[name] + _REPORT
    python = str(POLARS_PYTHON) if name == "polars" else sys.executable
    command = [python, "-W", "ignore", "-c", program, str(catalog), str(FOLDER)]
    process = subprocess.run(  # noqa: S603 - our own program
        command, check=True, capture_output=True, text=True
    )
    seconds, peak = json.loads(process.stdout.splitlines()[-1])
    return seconds, peak


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog"
        build_catalog(catalog)
        write_samples(catalog)
        variants = [name for name in _VARIANTS if name != "polars" or POLARS_PYTHON.is_file()]
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        memory = dict.fromkeys(variants, 0.0)
        for _ in range(ROUNDS):
            for name in variants:
                if name == "ours":
                    remove_selections(catalog)
                used, peak = run_variant(name, catalog)
                seconds[name].append(used)
                memory[name] = max(memory[name], peak)
        print_agreement(catalog)
    print("peak memory: " + ", ".join(f"{name} {size:.2f} GiB" for name, size in memory.items()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    stage = f"select, {NUM_SAMPLES // 1_000_000} million samples"
    rows = [
        Row(
            stage,
            medians["ours"],
            limit=medians["limit"],
            peer=medians["peer"],
            peer_name="a window query",
            least_of_peer=2.5,
        )
    ]
    for name in ("numpy", "polars"):
        if name in medians:
            peer = medians[name]
            rows.append(Row(f"{stage}, {name}", medians["ours"], peer=peer, peer_name=name))
    return rows
