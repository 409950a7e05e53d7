import pytest
from conftest import rows

from curate.catalog import Catalog
from curate.database import SCHEMA_VERSION
from curate.errors import CurateError
from curate.stages.score import score


def columns(catalog: Catalog, table: str) -> list[tuple]:
    return rows(catalog, "select column_name, data_type from duckdb_columns() where table_name = ? order by 1", table)


def test_a_catalog_of_the_first_schema_is_brought_up_to_date_when_it_is_read(catalog, tmp_path):
    score(catalog, "random")
    new = ("probes", "probe_models", "validations", "trainings", "class_accuracies", "fits", "fit_points")
    tables = (*new, "meta", "scorings", "scores", "selections", "clusterings", "runs", "embedded_shards")
    wanted, kept = {table: columns(catalog, table) for table in tables}, rows(catalog, "select scoring, score from scores")
    with catalog.writing() as connection:
        for view in ("lineage", "named_sets", "sample_scores", "pruned_vs_random"):
            connection.execute(f"drop view {view}")
        for table in new:
            connection.execute(f"drop table {table}")
        connection.execute("alter table runs drop column profile")
        for column in ("passes", "centroids_fingerprint"):
            connection.execute(f"alter table clusterings drop column {column}")
        connection.execute("alter table embedded_shards drop column vectors")
        connection.execute("alter table selections drop column skip_hardest")
        connection.execute("alter table scorings drop column reliability")
        connection.execute("alter table scores drop column standard_error")
        connection.execute("alter table meta drop column files")
        connection.execute("update meta set schema_version = 1")
    assert {table: columns(catalog, table) for table in tables} == wanted
    assert rows(catalog, "select scoring, score from scores") == kept
    assert rows(catalog, "select schema_version from meta") == [(SCHEMA_VERSION,)]
    assert rows(catalog, "select count(*) from sample_scores where random is not null") == [(30,)]


def test_a_catalog_of_a_newer_curate_is_left_alone(catalog):
    with catalog.writing() as connection:
        connection.execute("update meta set schema_version = 99")
    with pytest.raises(CurateError, match=r"made by a newer curate \(schema 99\): upgrade"):
        rows(catalog, "select 1")
