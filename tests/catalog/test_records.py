"""Records have the columns of their tables, and a new catalog is made one way."""

import typing

import pytest
from conftest import rows

from curate.catalog import records
from curate.catalog.records import SET_TYPES
from curate.package_data import read_sql

ROW_TYPES = {
    "shards": records.ShardRecord,
    "column_sources": records.ColumnRecord,
    "training_runs": records.TrainingRunRecord,
    "comparisons": records.ComparisonRecord,
    "class_accuracies": records.ClassAccuracyRecord,
    "probe_models": records.ProbeModelRecord,
    "fit_points": records.FitPointRecord,
    "audit_groups": records.AuditGroupRecord,
    "audit_contributions": records.AuditContributionRecord,
}
SQL_TYPES = {
    str: ("VARCHAR", "JSON"),
    int: ("INTEGER", "BIGINT"),
    float: ("DOUBLE", "FLOAT"),
    bool: ("BOOLEAN",),
    bytes: ("BLOB",),
    list[str]: ("VARCHAR[]",),
    list[int]: ("BIGINT[]",),
}
RECORDS = {record_type.table: record_type for record_type in SET_TYPES} | ROW_TYPES


@pytest.mark.parametrize("table", RECORDS)
def test_the_fields_of_a_record_are_the_columns_of_its_table(catalog, table):
    columns = rows(
        catalog,
        "select column_name, data_type, is_nullable from duckdb_columns() "
        "where table_name = ? order by column_index",
        table,
    )
    hints = typing.get_type_hints(RECORDS[table])
    fields = {name: hint for name, hint in hints.items() if "ClassVar" not in str(hint)}
    assert list(fields) == [name for name, _, _ in columns]
    for name, sql_type, is_nullable in columns:
        members = typing.get_args(fields[name])
        plain = fields[name]
        if type(None) in members:
            assert is_nullable, name
            (plain,) = (member for member in members if member is not type(None))
        assert sql_type in SQL_TYPES[plain], name


def test_every_kind_of_set_is_in_the_view_of_named_sets(catalog):
    sql = read_sql("views")
    named = sql[sql.index("view named_sets") : sql.index(";", sql.index("view named_sets"))]
    for record_type in SET_TYPES:
        assert f"'{record_type.kind}'" in named
        assert f"from {record_type.table}" in named


def test_every_table_that_has_a_sets_name_is_its_body(catalog):
    columns = rows(
        catalog, "select table_name, column_name from duckdb_columns() where not internal"
    )
    for record_type in SET_TYPES:
        bodies = {
            table
            for table, column in columns
            if column == record_type.kind and table != record_type.table
        }
        tables = {name for (name,) in rows(catalog, "select table_name from duckdb_tables()")}
        others = {other.table for other in SET_TYPES} | {
            "training_runs",
            "comparisons",
            "class_accuracies",
            "audit_contributions",
        }
        assert (bodies & tables) - others <= set(record_type.body_tables)
