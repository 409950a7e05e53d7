import json
import os
import re
import subprocess
import sys

import duckdb
import pytest
from conftest import make_catalog, rows

from curate import resources
from curate.errors import CurateError
from curate.stages.cluster import cluster
from curate.stages.export import export
from curate.stages.query import query
from curate.stages.score import score
from curate.stages.select import select

QUERIES = resources.names(resources.CATALOG / "queries", ".sql")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A catalog with one set of every kind, and two selections; only to be read."""
    folder = tmp_path_factory.mktemp("full")
    catalog = make_catalog(folder)
    cluster(catalog, k=3)
    score(catalog, ["ssl_prototypes", "random"])
    export(catalog, select(catalog, keep=0.5), folder / "out")
    select(catalog, keep=0.5, strategy="random")
    return catalog


def test_there_are_at_least_eight_saved_queries_and_each_says_what_it_is_for():
    assert len(QUERIES) >= 8
    for name in QUERIES:
        assert len(resources.describe(resources.CATALOG / "queries" / f"{name}.sql", "--")) > 20


@pytest.mark.parametrize("name", QUERIES)
def test_every_saved_query_answers(full, name):
    table = query(full, name, params={"sample_id": "3"})
    assert table.num_columns >= 2
    assert table.num_rows > 0 or name in ("failures", "duplicate_shards")


@pytest.mark.parametrize("name", QUERIES)
def test_plain_duckdb_in_another_folder_gives_the_same_answer(full, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (resources.CATALOG / "queries" / f"{name}.sql").read_text()
    with duckdb.connect(str(full.database), read_only=True) as connection:
        connection.execute("set variable sample_id = '3'")
        if name == "nearest":  # the one that reads vectors; catalog/views.sql has this line
            (line,) = re.findall("^-- (set variable catalog .*;)$", resources.sql("views"), re.MULTILINE)
            connection.execute(line)
        plain = connection.sql(text).to_arrow_table()
    assert plain.num_rows > 0 or name in ("failures", "duplicate_shards")
    assert plain.equals(query(full, name, params={"sample_id": "3"}))


def test_the_embedding_macro_works_in_the_catalogs_folder(full, monkeypatch):
    monkeypatch.chdir(full.path)
    with duckdb.connect("catalog.duckdb", read_only=True) as connection:
        assert connection.execute("select count(*), len(any_value(vector)) from embedding('pixels')").fetchone() == (30, 192)


def test_answers_are_right_where_they_can_be_counted_by_hand(full):
    balance = query(full, "class_balance", params={"selection": "ssl_prototypes-hardest-0.5"}).to_pylist()
    assert [(row["label"], row["num_samples"]) for row in balance] == [("0", 24), ("1", 6)]
    assert sum(row["num_kept"] for row in balance) == 15
    hardest = query(full, "hardest", params={"scoring": "ssl_prototypes", "n": "3", "label": "1"}).to_pylist()
    assert len(hardest) == 3
    assert all(row["label"] == "1" for row in hardest)
    assert hardest[0]["score"] == max(
        row["score"] for row in query(full, "hardest", params={"scoring": "ssl_prototypes", "label": "1"}).to_pylist()
    )
    nearest = query(full, "nearest", params={"sample_id": "3", "n": "2"}).to_pylist()
    assert nearest[0] == {"sample_id": 3, "key": "0003", "label": "0", "cosine": 1.0}
    assert sum(row["num_samples"] for row in query(full, "score_histogram", params={"scoring": "random"}).to_pylist()) == 30


def test_lineage_walks_from_the_export_to_the_embedding(full):
    chain = [row["kind"] for row in query(full, "lineage").to_pylist() if row["result"] == "out"]
    assert chain == ["export", "selection", "scoring", "clustering", "embedding"]


@pytest.mark.parametrize("sql", [
    "drop table samples", "insert into meta values (2)", "attach '/tmp/x.duckdb'", "copy samples to '/tmp/x.csv'",
    "select * from read_csv('/etc/passwd')", "select * from '/etc/passwd'", "install httpfs",
    "set enable_external_access = true", "select * from read_text('/etc/hostname')",
])  # fmt: skip
def test_a_query_can_only_read_the_catalog(full, sql):
    with pytest.raises(CurateError):
        query(full, sql)
    assert rows(full, "select count(*) from samples") == [(30,)]


def test_mistakes_name_what_exists(full):
    with pytest.raises(CurateError, match="no saved query called 'hardst'; there are: .*hardest"):
        query(full, "hardst")
    with pytest.raises(CurateError, match="nocolumn"):
        query(full, "select nocolumn from samples")
    with pytest.raises(CurateError, match="--param"):
        query(full, "hardest", params={"a; drop": "1"})


def run(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run([sys.executable, "-m", "curate", "query", *words], capture_output=True, text=True, env=environment)


def test_formats(full, tmp_path):
    import pyarrow.parquet as pq

    sql, place = "select sample_id, label, null as nothing from samples order by 1 limit 2", ("-c", str(full.path))
    assert run(sql, *place, "-f", "csv").stdout == "sample_id,label,nothing\n0,1,\n1,0,\n"
    assert json.loads(run(sql, *place, "-f", "json").stdout)[1] == {"sample_id": 1, "label": "0", "nothing": None}
    assert [line.split() for line in run(sql, *place).stdout.splitlines()[2:4]] == [["0", "1"], ["1", "0"]]
    file = tmp_path / "answer.parquet"
    assert run(sql, *place, "-f", "parquet", "-o", str(file)).returncode == 0
    assert pq.read_table(file).num_rows == 2
    for words, reason in ((("-f", "parquet"), "--out FILE"), (("-f", "xml"), "no format called")):
        asked = run(sql, *place, *words)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert reason in asked.stderr
        assert len(asked.stderr.splitlines()) == 1
