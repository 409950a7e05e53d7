"""Catalogs that earlier versions wrote, kept in tests/catalogs, open in this one.

Each is of three shards /corpus/000.tar … with ten samples, made by the version of its schema (4 and
5 never landed by themselves: theirs are the catalog of schema 3 after the migrations of that time).
"""

import os
import tarfile
from pathlib import Path

import duckdb
import pytest
from conftest import rows

import curate
from curate.catalog import database
from curate.catalog.catalog import Catalog
from curate.catalog.database import SCHEMA_VERSION, is_for_newer_clients
from curate.errors import CurateError
from curate.package_data import SQL_DIR, list_names

ARCHIVES = Path(__file__).resolve().parents[1] / "catalogs"
VERSIONS = range(1, SCHEMA_VERSION)


@pytest.fixture(params=VERSIONS, ids=lambda version: f"schema {version}")
def old_catalog(request, tmp_path) -> Catalog:
    with tarfile.open(ARCHIVES / f"schema-{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return Catalog(tmp_path / "old")


def schema(catalog: Catalog) -> dict[str, list[tuple]]:
    """The columns of every table and view, by name; views of sets differ with the sets."""
    found = rows(
        catalog,
        "select table_name, column_name, data_type from duckdb_columns() "
        "where not internal and table_name <> 'sample_scores' order by all",
    )
    return {
        table: [row[1:] for row in found if row[0] == table] for table in {row[0] for row in found}
    }


def test_there_is_a_catalog_of_every_schema_before_this_one():
    assert sorted(path.name for path in ARCHIVES.iterdir()) == sorted(
        f"schema-{version}.tar.xz" for version in VERSIONS
    )


def test_an_old_catalog_gets_the_tables_of_a_new_one(old_catalog, catalog):
    assert schema(old_catalog) == schema(catalog)
    assert rows(old_catalog, "select schema_version from meta") == [(SCHEMA_VERSION,)]


def test_what_an_old_catalog_holds_is_still_there(old_catalog):
    assert rows(old_catalog, "select count(*), count(label) from samples") == [(30, 30)]
    assert rows(old_catalog, "select count(*) from assignments where clustering = 'kmeans'") == [
        (30,)
    ]
    sizes = dict(rows(old_catalog, "select selection, count(*) from members group by all"))
    assert sizes["ssl_prototypes-hardest-0.8"] == 24
    assert rows(old_catalog, "select num_samples from exports") == [(24,)]
    assert rows(old_catalog, "select count(*) from sample_scores where random is not null") == [
        (30,)
    ]
    parents = rows(
        old_catalog, "select made_from from lineage where name = 'ssl_prototypes-hardest-0.8'"
    )
    assert parents == [("ssl_prototypes",)]
    assert rows(old_catalog, "select count(*) from embedding('pixels@2')") == [(30,)]


def test_the_saved_queries_answer_in_an_old_catalog(old_catalog):
    parameters = {"nearest": {"sample_id": "3"}}
    for name in list_names(SQL_DIR / "queries", ".sql"):
        curate.query(old_catalog, name, params=parameters.get(name, {}))


def test_work_goes_on_in_an_old_catalog(old_catalog):
    curate.cluster(old_catalog, k=4, name="four")
    curate.score(old_catalog, ["supervised_prototypes"])
    name = curate.select(old_catalog, keep=0.5, scoring="supervised_prototypes")
    assert rows(old_catalog, "select count(*) from members where selection = ?", name) == [(15,)]


def test_a_catalog_of_a_newer_curate_is_left_alone(catalog):
    with catalog.writing() as connection:
        connection.execute("update meta set schema_version = 99")
    with pytest.raises(CurateError, match=r"made by a newer curate \(schema 99\): upgrade"):
        rows(catalog, "select 1")


def test_a_catalog_of_a_newer_storage_version_is_converted_when_it_is_written(tmp_path):
    """What DuckDB 2.0 writes by itself, 1.x refuses."""
    catalog = Catalog(tmp_path / "catalog").create()
    assert not is_for_newer_clients(catalog.database_path)
    newest = tmp_path / "newest.duckdb"
    with duckdb.connect() as connection:
        connection.execute(f"attach '{catalog.database_path}' as here (read_only)")
        connection.execute(f"attach '{newest}' as newest (storage_version 'latest')")
        connection.execute("copy from database here to newest")
    os.replace(newest, catalog.database_path)
    if not is_for_newer_clients(catalog.database_path):
        pytest.skip("this DuckDB has no newer storage version")
    database._databases.clear()  # as in another process
    tables = schema(catalog)
    with catalog.writing() as connection:
        connection.execute("update meta set next_shard_id = 7")
    assert not is_for_newer_clients(catalog.database_path)
    assert rows(catalog, "select next_shard_id from meta") == [(7,)]
    assert schema(catalog) == tables
    assert [path.name for path in catalog.path.iterdir()] == ["catalog.duckdb"]
