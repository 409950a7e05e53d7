import json
import os
import re
import subprocess
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import add_scoring, load_vectors, make_catalog, png, rows, run_curate, write_shard

from curate import package_data
from curate.catalog.catalog import Catalog
from curate.cli.output import write_query
from curate.errors import CurateError, OptionError
from curate.formats.vectors import write_vectors
from curate.stages.cluster.stage import cluster
from curate.stages.dedup.stage import dedup
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.plan.stage import plan
from curate.stages.query import open_query, query
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.validate.stage import validate
from curate.stages.verify import verify

QUERIES_DIR = package_data.SQL_DIR / "queries"
QUERIES = package_data.list_names(QUERIES_DIR, ".sql")
# What a sound catalog has none of.
MAY_BE_EMPTY = ("failures", "duplicate_shards", "exponents", "changes", "drift")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A catalog with one set of every kind, and two selections; only to be read."""
    folder = tmp_path_factory.mktemp("full")
    catalog = make_catalog(folder)
    plan(catalog, k=3)
    cluster(catalog, k=3)
    score(catalog, ["ssl_prototypes", "random"])
    dedup(catalog, eps=1.0)  # so wide that pictures of several labels are in one group
    export(catalog, select(catalog, keep=0.5, scoring="ssl_prototypes"), folder / "out")
    validate(
        catalog, [select(catalog, keep=0.5, strategy="random")], model="mlp:8", seeds=2, epochs=2
    )
    return catalog


def required_params(name: str) -> dict[str, str]:
    """The parameters that a saved query cannot do without."""
    return {"sample_id": "3"} if name == "nearest" else {}


def test_there_are_at_least_eight_saved_queries_and_each_says_what_it_is_for():
    assert len(QUERIES) >= 8
    for name in QUERIES:
        assert len(package_data.first_comment(QUERIES_DIR / f"{name}.sql", "--")) > 20


@pytest.mark.parametrize("name", QUERIES)
def test_every_saved_query_answers(full, name):
    table = query(full, name, params=required_params(name))
    assert table.num_columns >= 2
    assert table.num_rows > 0 or name in MAY_BE_EMPTY


@pytest.mark.parametrize("name", QUERIES)
def test_plain_duckdb_in_another_folder_gives_the_same_answer(full, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (QUERIES_DIR / f"{name}.sql").read_text()
    with duckdb.connect(str(full.database_path), read_only=True) as connection:
        for variable, value in required_params(name).items():
            connection.execute(f"set variable {variable} = '{value}'")
        if name == "nearest":  # the one that reads vectors; catalog/views.sql has this line
            views = package_data.read_sql("views")
            (line,) = re.findall("^-- (set variable catalog .*;)$", views, re.MULTILINE)
            connection.execute(line)
        plain = connection.sql(text).to_arrow_table()
    assert plain.num_rows > 0 or name in MAY_BE_EMPTY
    assert plain.equals(query(full, name, params=required_params(name)))


def test_the_embedding_macro_works_in_the_catalogs_folder(full, monkeypatch):
    monkeypatch.chdir(full.path)
    sql = "select count(*), len(any_value(vector)) from embedding('pixels')"
    with duckdb.connect("catalog.duckdb", read_only=True) as connection:
        assert connection.execute(sql).fetchone() == (30, 192)


def test_class_balance_counts_every_class(full):
    params = {"selection": "ssl_prototypes-hardest-0.5"}
    balance = query(full, "class_balance", params=params).to_pylist()
    assert [(row["label"], row["num_samples"]) for row in balance] == [("0", 24), ("1", 6)]
    assert sum(row["num_kept"] for row in balance) == 15


def test_hardest_are_those_with_the_highest_scores_of_a_class(full):
    params = {"scoring": "ssl_prototypes", "label": "1"}
    hardest = query(full, "hardest", params={**params, "n": "3"}).to_pylist()
    assert len(hardest) == 3
    assert all(row["label"] == "1" for row in hardest)
    scores = query(full, "hardest", params=params)["score"].to_pylist()
    assert hardest[0]["score"] == max(scores)


def test_the_nearest_sample_is_the_sample_itself(full):
    nearest = query(full, "nearest", params={"sample_id": "3", "n": "2"}).to_pylist()
    assert nearest[0] == {
        "embedding": "pixels",
        "sample_id": 3,
        "key": "0003",
        "label": "0",
        "cosine": 1.0,
    }


def test_a_histogram_counts_every_sample(full):
    histogram = query(full, "score_histogram", params={"scoring": "random"})
    assert sum(histogram["num_samples"].to_pylist()) == 30


def test_lineage_walks_from_the_export_to_the_embedding(full):
    lineage = query(full, "lineage", params={"name": "out"}).to_pylist()
    assert [(row["stage"], row["name"]) for row in lineage] == [
        ("export", "out"),
        ("select", "ssl_prototypes-hardest-0.5"),
        ("score", "ssl_prototypes"),
        ("cluster", "kmeans"),
        ("embed", "pixels"),
    ]
    newest = query(full, "lineage").to_pylist()
    assert [row["name"] for row in newest] == ["mlp-8-epochs2", "random-0.5", "pixels"]


def test_the_same_scoring_is_meant_everywhere_when_none_is_named(full):
    assert query(full, "hardest").to_pylist()[0]["scoring"] == "ssl_prototypes"
    assert query(full, "score_histogram").to_pylist()[0]["scoring"] == "ssl_prototypes"


@pytest.mark.parametrize(
    "sql",
    [
        "drop table samples",
        "insert into meta values (2)",
        "attach 'x.duckdb'",
        "copy samples to 'x.csv'",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "install httpfs",
        "set enable_external_access = true",
        "select * from read_text('/etc/hostname')",
        "",
        ";",
        "select 1; select 2",
        "explain analyze copy (select 1) to 'x'",
        "export database 'x'",
        "set variable x = 1",
    ],
)
def test_a_query_can_only_read_the_catalog(full, sql):
    with pytest.raises(CurateError):
        query(full, sql)
    assert rows(full, "select count(*) from samples") == [(30,)]


def test_not_even_the_catalogs_own_files_can_be_written(full):
    def modification_times() -> dict:
        return {path: path.stat().st_mtime_ns for path in full.path.rglob("*")}

    before = modification_times()
    for target in (
        full.vector_file("pixels", 0),
        full.path / "catalog.duckdb.wal",
        full.database_path,
    ):
        with pytest.raises(CurateError, match="only one SELECT"):
            query(full, f"copy (select 1 as x) to '{target}' (use_tmp_file false)")
        with pytest.raises(CurateError, match="--where"):
            select(full, keep=0.5, where=f"true)); copy (select 1) to '{target}'; select ((1")
    assert modification_times() == before


def test_a_catalog_works_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "of [a]* {b}"
    folder.mkdir()
    make_catalog(tmp_path / "plain")
    (tmp_path / "plain" / "catalog").rename(folder / "moved")
    for catalog in (Catalog(folder / "moved"), make_catalog(folder)):
        cluster(catalog, k=2)
        score(catalog, "ssl_prototypes")
        table = query(
            catalog, "select count(*) as n, any_value(len(vector)) from embedding('pixels')"
        )
        assert table["n"].to_pylist() == [30]
        assert verify(catalog) == []
    # As docs/catalog.md says for plain clients.
    client = duckdb.connect(str(folder / "moved" / "catalog.duckdb"), read_only=True)
    client.execute(
        "set variable catalog = (select parse_dirpath(path) from duckdb_databases() "
        "where database_name = current_database())"
    )
    assert client.execute("select count(*) from embedding('pixels')").fetchall() == [(30,)]
    client.close()


def test_neighbours_are_those_of_one_embedding(tmp_path):
    catalog = make_catalog(tmp_path)
    embed(catalog, [str(tmp_path / "corpus")], encoder="pixels@4", workers=1)
    newest = query(catalog, "nearest", params={"sample_id": "3"}).to_pylist()
    assert {row["embedding"] for row in newest} == {"pixels@4"}
    assert len({row["sample_id"] for row in newest}) == len(newest) == 10
    older = query(catalog, "nearest", params={"sample_id": "3", "embedding": "pixels"}).to_pylist()
    assert {row["embedding"] for row in older} == {"pixels"}
    with pytest.raises(CurateError, match="give --param sample_id=ID"):
        query(catalog, "nearest")


def test_vectors_that_are_not_committed_or_not_whole_are_no_part_of_an_answer(tmp_path):
    catalog = make_catalog(tmp_path)
    folder = Path(catalog.embedding_folder("pixels"))
    (folder / ".tmp-abc-00000009.parquet").write_bytes(b"PAR1half")
    uncommitted = str(folder / "00000009.parquet")
    write_vectors(uncommitted, np.array([9 << 24]), np.ones((1, 192), np.float16))
    table = query(catalog, "select count(*) as n from embedding('pixels')")
    assert table.to_pylist() == [{"n": 30}]
    with pytest.raises(CurateError, match="No files found"):
        query(catalog, "select count(*) from embedding('nosuch')")


def test_unlabelled_samples_are_a_class_of_the_balance(tmp_path):
    labelled = [(f"{position}", {"png": png(position), "cls": b"1"}) for position in range(4)]
    unlabelled = [(f"{position}", {"png": png(position)}) for position in range(4, 10)]
    url = write_shard(tmp_path / "a.tar", labelled + unlabelled)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    select(catalog, keep=0.5, strategy="random")
    counts = rows(
        catalog,
        "select label, count(*) from members join samples using (sample_id) group by label",
    )
    assert {label for label, _ in counts} == {"1", None}
    balance = query(catalog, "class_balance").to_pylist()
    assert {row["label"]: row["num_kept"] for row in balance} == dict(counts)


def test_parameters_that_mean_nothing_are_refused(full):
    with pytest.raises(
        OptionError,
        match="--param scorin: the query has no such parameter; there are: label, n, scoring",
    ):
        query(full, "hardest", params={"scorin": "random"})
    with pytest.raises(
        CurateError, match="no scoring is called so; there are: ssl_prototypes, random"
    ):
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


TWO_ROWS = "select sample_id, label, null as nothing from samples order by 1 limit 2"
MANY_ROWS = "select a.sample_id from samples a, samples b"


def run_query(catalog: Catalog, sql: str, *options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80"}
    return run_curate("query", sql, "-c", catalog.path, *options, env=environment)


def test_an_answer_is_printed_as_csv_json_or_a_table(full):
    csv = run_query(full, TWO_ROWS, "-f", "csv").stdout
    assert csv == "sample_id,label,nothing\n0,1,\n1,0,\n"
    records = json.loads(run_query(full, TWO_ROWS, "-f", "json").stdout)
    assert records[1] == {"sample_id": 1, "label": "0", "nothing": None}
    lines = run_query(full, TWO_ROWS).stdout.splitlines()
    assert [line.split() for line in lines[2:4]] == [["0", "1"], ["1", "0"]]


def test_every_type_has_a_form_in_json(full):
    sql = (
        "select 'nan'::float as x, 1.5::decimal(3, 1) as d, [1, null] as l, date '2026-01-02' as t"
    )
    assert json.loads(run_query(full, sql, "-f", "json").stdout) == [
        {"x": None, "d": 1.5, "l": [1, None], "t": "2026-01-02"}
    ]


def test_vectors_are_written_as_float32_for_readers_that_have_no_float16(full, tmp_path):
    """The catalog's own files are float16, which older readers of Parquet refuse or misread."""
    out = tmp_path / "vectors.parquet"
    sql = "select sample_id, vector from embedding('pixels') order by sample_id"
    with open_query(full, sql) as (connection, text):
        write_query(connection, text, None, out, limit=200)
    (own, *_) = full.vector_files("pixels")
    assert pq.read_schema(own).field("vector").type.value_type == pa.float16()
    written = pq.read_table(out)
    assert written["vector"].type.value_type == pa.float32()
    np.testing.assert_array_equal(
        np.array(written["vector"].to_pylist(), np.float32),
        load_vectors(full, "pixels").astype(np.float32),
    )


@pytest.mark.parametrize(("name", "options"), [("a.parquet", ()), ("a", ("-f", "parquet"))])
def test_an_answer_is_written_to_a_file(full, tmp_path, name, options):
    result = run_query(full, TWO_ROWS, "-o", tmp_path / name, *options)
    assert result.returncode == 0
    num_bytes = (tmp_path / name).stat().st_size
    assert result.stderr == f"wrote 2 rows, {num_bytes:,} bytes, to {tmp_path / name}\n"
    assert pq.read_table(tmp_path / name).num_rows == 2


def test_a_long_answer_is_whole_in_a_file_only(full, tmp_path):
    assert run_query(full, MANY_ROWS, "-o", tmp_path / "all.csv").returncode == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 901
    assert "more than 200 rows" in run_query(full, MANY_ROWS).stderr


@pytest.mark.parametrize(
    ("format", "reason"), [("parquet", "--out FILE"), ("xml", "--format xml: choose one of")]
)
def test_formats_that_cannot_be_printed_are_refused(full, format, reason):
    result = run_query(full, TWO_ROWS, "-f", format)
    assert (result.returncode, result.stdout) == (2, "")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


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
    sources = query(catalog, "sources", params={"export": "out"}).to_pylist()
    assert sum(row["num_samples"] for row in sources) == 15
    checksums = dict(rows(catalog, "select url, checksum from shards"))
    assert {row["url"]: row["shard_checksum"] for row in sources} == checksums


def test_ranks_are_those_among_the_samples_that_both_scorings_have(catalog):
    samples = rows(catalog, "select sample_id from samples order by 1")
    scores = np.random.default_rng(0).normal(size=len(samples))
    all_scores = {
        sample_id: score for (sample_id,), score in zip(samples, scores.tolist(), strict=True)
    }
    some_scores = {
        sample_id: score**3 if score < 0.5 else None for sample_id, score in all_scores.items()
    }
    add_scoring(catalog, "all", all_scores)
    add_scoring(catalog, "some", some_scores)
    correlations = {(row["a"], row["b"]): row for row in query(catalog, "correlations").to_pylist()}
    assert len(correlations) == 4
    assert correlations["all", "some"]["spearman"] == 1
    assert correlations["some", "all"]["spearman"] == 1
    assert correlations["all", "some"]["num_samples"] == (scores < 0.5).sum() < 30


def test_the_purity_of_a_cluster_is_among_samples_with_a_label(catalog):
    cluster(catalog, k=3)
    with catalog.writing() as connection:
        connection.execute(
            "update samples set label = null where label = '0' and sample_id % 2 = 0"
        )
    for row in query(catalog, "cluster_classes").to_pylist():
        counts = dict(
            rows(
                catalog,
                "select label, count(*) from samples join assignments using (sample_id) "
                "where cluster_id = ? and label is not null group by 1",
                row["cluster_id"],
            )
        )
        highest = max(counts.values())
        assert counts[row["most_frequent_label"]] == highest
        assert row["purity"] == pytest.approx(highest / sum(counts.values()), abs=1e-4)
