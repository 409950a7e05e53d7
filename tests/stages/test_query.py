import json
import os
import re
import subprocess
import sys

import duckdb
import numpy as np
import pytest
from conftest import add_scoring, make_catalog, png, rows, write_shard

from curate import resources, vectors
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.export import export
from curate.stages.plan import plan
from curate.stages.query import query
from curate.stages.score import score
from curate.stages.select import select
from curate.stages.validate import validate

QUERIES = resources.names(resources.CATALOG / "queries", ".sql")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A catalog with one set of every kind, and two selections; only to be read."""
    folder = tmp_path_factory.mktemp("full")
    catalog = make_catalog(folder)
    plan(catalog, k=3)
    cluster(catalog, k=3)
    score(catalog, ["ssl_prototypes", "random"])
    export(catalog, select(catalog, keep=0.5), folder / "out")
    validate(catalog, [select(catalog, keep=0.5, strategy="random")], model="mlp:8", seeds=2, epochs=2)
    return catalog


def needed(name: str) -> dict[str, str]:
    """The parameters that a saved query cannot do without."""
    return {"sample_id": "3"} if name == "nearest" else {}


def test_there_are_at_least_eight_saved_queries_and_each_says_what_it_is_for():
    assert len(QUERIES) >= 8
    for name in QUERIES:
        assert len(resources.describe(resources.CATALOG / "queries" / f"{name}.sql", "--")) > 20


@pytest.mark.parametrize("name", QUERIES)
def test_every_saved_query_answers(full, name):
    table = query(full, name, params=needed(name))
    assert table.num_columns >= 2
    assert table.num_rows > 0 or name in ("failures", "duplicate_shards")


@pytest.mark.parametrize("name", QUERIES)
def test_plain_duckdb_in_another_folder_gives_the_same_answer(full, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (resources.CATALOG / "queries" / f"{name}.sql").read_text()
    with duckdb.connect(str(full.database), read_only=True) as connection:
        for variable, value in needed(name).items():
            connection.execute(f"set variable {variable} = '{value}'")
        if name == "nearest":  # the one that reads vectors; catalog/views.sql has this line
            (line,) = re.findall("^-- (set variable catalog .*;)$", resources.sql("views"), re.MULTILINE)
            connection.execute(line)
        plain = connection.sql(text).to_arrow_table()
    assert plain.num_rows > 0 or name in ("failures", "duplicate_shards")
    assert plain.equals(query(full, name, params=needed(name)))


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
    assert nearest[0] == {"embedding": "pixels", "sample_id": 3, "key": "0003", "label": "0", "cosine": 1.0}
    assert sum(row["num_samples"] for row in query(full, "score_histogram", params={"scoring": "random"}).to_pylist()) == 30


def test_lineage_walks_from_the_export_to_the_embedding(full):
    chain = [(row["stage"], row["name"]) for row in query(full, "lineage", params={"name": "out"}).to_pylist()]
    assert chain == [("export", "out"), ("select", "ssl_prototypes-hardest-0.5"), ("score", "ssl_prototypes"),
                     ("cluster", "kmeans"), ("embed", "pixels")]  # fmt: skip
    newest = query(full, "lineage").to_pylist()
    assert [row["name"] for row in newest] == ["mlp-8", "random-0.5"]


def test_the_same_scoring_is_meant_everywhere_when_none_is_named(full):
    assert query(full, "hardest").to_pylist()[0]["scoring"] == "ssl_prototypes"
    assert query(full, "score_histogram").to_pylist()[0]["scoring"] == "ssl_prototypes"


@pytest.mark.parametrize("sql", [
    "drop table samples", "insert into meta values (2)", "attach '/tmp/x.duckdb'", "copy samples to '/tmp/x.csv'",
    "select * from read_csv('/etc/passwd')", "select * from '/etc/passwd'", "install httpfs",
    "set enable_external_access = true", "select * from read_text('/etc/hostname')", "", ";", "select 1; select 2",
    "explain analyze copy (select 1) to '/tmp/x'", "export database 'x'", "set variable x = 1",
])  # fmt: skip
def test_a_query_can_only_read_the_catalog(full, sql):
    with pytest.raises(CurateError):
        query(full, sql)
    assert rows(full, "select count(*) from samples") == [(30,)]


def test_not_even_the_catalogs_own_files_can_be_written(full):
    files = {path: path.stat().st_mtime_ns for path in full.path.rglob("*")}
    for target in (full.vector_file("pixels", 0), full.path / "catalog.duckdb.wal", full.database):
        with pytest.raises(CurateError, match="only one SELECT"):
            query(full, f"copy (select 1 as x) to '{target}' (use_tmp_file false)")
        with pytest.raises(CurateError, match="--where"):
            select(full, keep=0.5, where=f"true)); copy (select 1) to '{target}'; select ((1")
    assert {path: path.stat().st_mtime_ns for path in full.path.rglob("*")} == files


def test_neighbours_are_those_of_one_embedding(tmp_path):
    catalog = make_catalog(tmp_path)
    embed(catalog, [str(tmp_path / "corpus")], encoder="pixels@4", workers=1)
    found = query(catalog, "nearest", params={"sample_id": "3"}).to_pylist()
    assert {row["embedding"] for row in found} == {"pixels@4"}  # the newest
    assert len({row["sample_id"] for row in found}) == len(found) == 10
    older = query(catalog, "nearest", params={"sample_id": "3", "embedding": "pixels"}).to_pylist()
    assert {row["embedding"] for row in older} == {"pixels"}
    with pytest.raises(CurateError, match="give --param sample_id=ID"):
        query(catalog, "nearest")


def test_vectors_that_are_not_committed_or_not_whole_are_no_part_of_an_answer(tmp_path):
    catalog = make_catalog(tmp_path)
    folder = catalog.embedding_folder("pixels")
    (folder / ".tmp-abc-00000009.parquet").write_bytes(b"PAR1half")
    vectors.write(folder / "00000009.parquet", np.array([9 << 24]), np.ones((1, 192), np.float16))
    assert query(catalog, "select count(*) as n from embedding('pixels')").to_pylist() == [{"n": 30}]
    with pytest.raises(CurateError, match="No files found"):
        query(catalog, "select count(*) from embedding('nosuch')")


def test_unlabelled_samples_are_a_class_of_the_balance(tmp_path):
    url = write_shard(tmp_path / "a.tar", [(f"{n}", {"png": png(n), **({"cls": b"1"} if n < 4 else {})}) for n in range(10)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    select(catalog, keep=0.5, strategy="random")
    kept = {row["label"]: row["num_kept"] for row in query(catalog, "class_balance").to_pylist()}
    assert kept == dict(rows(catalog, "select label, count(*) from members join samples using (sample_id) group by label"))


def test_parameters_that_mean_nothing_are_refused(full):
    with pytest.raises(CurateError, match="--param scorin: the query has no such parameter; there are: label, n, scoring"):
        query(full, "hardest", params={"scorin": "random"})
    with pytest.raises(CurateError, match="no scoring is called so; there are: ssl_prototypes, random"):
        query(full, "hardest", params={"scoring": "el2n"})
    with pytest.raises(CurateError, match="no set is called nope"):
        query(full, "lineage", params={"name": "nope"})


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
    odd = "select 'nan'::float as x, 1.5::decimal(3, 1) as d, [1, null] as l, date '2026-01-02' as t"
    assert json.loads(run(odd, *place, "-f", "json").stdout) == [{"x": None, "d": 1.5, "l": [1, None], "t": "2026-01-02"}]
    for name, words in (("answer.parquet", ()), ("answer", ("-f", "parquet"))):
        asked = run(sql, *place, "-o", str(tmp_path / name), *words)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert pq.read_table(tmp_path / name).num_rows == 2
    many = "select a.sample_id from samples a, samples b"
    assert run(many, *place, "-o", str(tmp_path / "all.csv")).returncode == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 901
    assert "more than 200 rows" in run(many, *place).stderr
    for words, reason in ((("-f", "parquet"), "--out FILE"), (("-f", "xml"), "no format called")):
        asked = run(sql, *place, *words)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert reason in asked.stderr
        assert len(asked.stderr.splitlines()) == 1


def test_other_files_are_read_only_where_that_is_allowed(catalog, tmp_path):
    file = tmp_path / "marks.csv"
    file.write_text("sample_id,mark\n0,7\n")
    text = f"select label, mark from samples join read_csv('{file}') using (sample_id)"
    with pytest.raises(CurateError, match="disabled by configuration"):
        query(catalog, text)
    assert query(catalog, text, allow_files=True).to_pylist() == [{"label": "1", "mark": 7}]
    with pytest.raises(CurateError, match="only one SELECT"):
        query(catalog, f"copy samples to '{tmp_path}/out.csv'", allow_files=True)


def test_an_export_leads_back_to_the_shards(catalog, tmp_path):
    score(catalog, "random")
    select(catalog, keep=0.5, scoring="random", name="half")
    export(catalog, "half", tmp_path / "out", samples_per_shard=4)
    found = query(catalog, "sources", params={"export": "out"}).to_pylist()
    assert sum(row["num_samples"] for row in found) == 15
    shards = dict(rows(catalog, "select url, fingerprint from shards"))
    assert {row["url"]: row["shard_fingerprint"] for row in found} == shards


def test_ranks_are_those_among_the_samples_that_both_scorings_have(catalog):
    ids = [row[0] for row in rows(catalog, "select sample_id from samples order by 1")]
    generator = np.random.default_rng(0)
    scores = generator.normal(size=len(ids))
    add_scoring(catalog, "all", dict(zip(ids, scores.tolist(), strict=True)))
    add_scoring(
        catalog, "some", {key: score**3 if score < 0.5 else None for key, score in zip(ids, scores.tolist(), strict=True)}
    )
    found = {(row["a"], row["b"]): row for row in query(catalog, "correlations").to_pylist()}
    assert len(found) == 4
    assert found["all", "some"]["spearman"] == found["some", "all"]["spearman"] == 1
    assert found["all", "some"]["num_samples"] == (scores < 0.5).sum() < 30


def test_the_purity_of_a_cluster_is_among_samples_with_a_label(catalog):
    cluster(catalog, k=3)
    with catalog.writing() as connection:
        connection.execute("update samples set label = null where label = '0' and sample_id % 2 = 0")
    for row in query(catalog, "cluster_classes").to_pylist():
        labelled = "from samples join assignments using (sample_id) where cluster_id = ? and label is not null"
        known = rows(catalog, f"select label, count(*) {labelled} group by 1 order by 2", row["cluster_id"])
        assert row["most_frequent_label"] in [label for label, count in known if count == known[-1][1]]
        assert row["purity"] == pytest.approx(known[-1][1] / sum(count for _, count in known), abs=1e-4)
