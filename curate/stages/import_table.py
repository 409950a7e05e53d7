"""`curate import`: columns and scores of samples, computed elsewhere, from Parquet or CSV."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.columns import (
    JSON_SOURCE,
    NUMERIC_TYPES,
    add_columns,
    drop_columns,
    insert_values,
    list_columns,
)
from curate.catalog.records import ScoringRecord
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError
from curate.formats.json_fields import ALL_FIELDS, FieldType, parse_fields
from curate.formatting import count_of
from curate.options import Option, SetName, verb
from curate.progress import log
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_READERS = {
    ".parquet": "read_parquet({path}, hive_partitioning = false)",
    # All rows decide on the types. A key of digits is a text, or it would lose its zeros.
    ".csv": "read_csv({path}, sample_size = -1, types = {types})",
    ".csv.gz": "read_csv({path}, sample_size = -1, types = {types})",
    ".tsv": "read_csv({path}, sample_size = -1, delim = '\t', types = {types})",
}
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_SAMPLE_ID = "sample_id"
_MAX_SHOWN = 5


def check_table(path: str) -> None:
    """OptionError for a file that is neither Parquet nor CSV."""
    if not str(path).lower().endswith(tuple(_READERS)):
        raise OptionError(f"'{path}': a table is a file {', '.join(_READERS)}")


def _check_scorings(arguments: Mapping[str, Any]) -> None:
    for name in arguments["as_scoring"] or {}:
        sets.check_name(name)
    if arguments["name"] == JSON_SOURCE:
        raise OptionError(f"--name {JSON_SOURCE}: that is what .json members are called")


@verb(check=_check_scorings)
def import_table(
    catalog: Catalog | str | Path,
    table: Annotated[
        str | Path, Option("Parquet or CSV; a path or a URL.", metavar="TABLE", check=check_table)
    ],
    *,
    key: Annotated[
        str, Option("Column with the samples' keys, or with sample_id.", metavar="COLUMN")
    ],
    shard: Annotated[
        str | None,
        Option(
            "Column with the shard of each key (URL, file name, or that without .tar), or the "
            "one shard that the table is about.",
            metavar="COLUMN|URL",
            default="keys are looked for in all shards",
        ),
    ] = None,
    columns: Annotated[
        list[str] | str, Option("Columns to keep; repeatable.", metavar="all|NAME,…")
    ] = ALL_FIELDS,
    as_scoring: Annotated[
        dict[str, str] | None,
        Option("Make a column of numbers a scoring instead; repeatable.", metavar="NAME=COLUMN"),
    ] = None,
    strict: Annotated[
        bool, Option("Import nothing unless every key is that of one sample.")
    ] = False,
    name: SetName = None,
) -> str:
    """Join a table to the samples by their keys, and return the import's name.

    Its columns stand in `sample_scores`; the same name again replaces them. Keys that no sample
    has, or several samples, and samples with several rows are counted and listed in imports/ in the
    catalog's folder. Raises CurateError, before anything is written, where no key fits, or with
    `strict` where one does not.
    """
    catalog = Catalog(catalog)
    path = files.resolve(table)
    source = name or re.sub(r"[^A-Za-z0-9@_.,+=-]", "_", files.filename(path).partition(".")[0])
    sets.check_name(source)
    if source == JSON_SOURCE:
        raise OptionError(f"the table is called '{source}' as .json members are: give a --name")
    scorings = as_scoring or {}
    for scoring in scorings:
        catalog.check_column_name(ScoringRecord, scoring)
    try:
        checksum = file_checksum(path)
    except OSError as error:
        raise CurateError(
            f"cannot read the table '{table}' ({error.strerror or error}): check the path"
        ) from error
    arguments = {
        "table": path,
        "key": key,
        "shard": shard,
        "columns": parse_fields(columns),
        "as_scoring": scorings,
    }
    with catalog.reading() as connection:
        ((corpus,),) = connection.execute(
            "select (count(*), max(sample_id))::text from samples"
        ).fetchall()
    fingerprint = provenance.fingerprint("import", arguments, checksum, corpus)
    if _is_imported(catalog, source, list(scorings), fingerprint):
        log.info("nothing to do: '%s' is this table already", source)
        return source
    with catalog.temporary_folder() as folder, files.localize([path]) as (local_path,):
        joined = folder / "joined.parquet"
        with catalog.reading() as connection:
            fields = _join(connection, catalog, local_path, joined, source, arguments, strict)
        with catalog.record_run("import", source, arguments, fingerprint=fingerprint) as run_id:
            _commit(catalog, source, joined, fields, scorings, run_id, fingerprint)
    return source


class _TableColumn(NamedTuple):
    """A column of the table: its type here, and the SQL expression of its values."""

    name: str
    type: str
    expression: str


def _is_imported(catalog: Catalog, source: str, scorings: list[str], fingerprint: str) -> bool:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select run_id from runs where stage = 'import' and name = ? and fingerprint = ? "
            "and status = 'done'",
            [source, fingerprint],
        ).fetchall()
        run_ids = {column.run_id for column in list_columns(connection, source)}
        records = [sets.find_set(connection, ScoringRecord, scoring) for scoring in scorings]
    if not all(record is not None and record.fingerprint == fingerprint for record in records):
        return False
    return bool(rows) and run_ids <= {run_id for (run_id,) in rows} and bool(run_ids or records)


def _join(
    connection: "DuckDBPyConnection",
    catalog: Catalog,
    path: Path,
    joined: Path,
    source: str,
    arguments: dict[str, Any],
    strict: bool,
) -> list[_TableColumn]:
    """Write the rows of the table that belong to one sample, by sample_id; returns its columns."""
    import duckdb

    key, shard = arguments["key"], arguments["shard"]
    try:
        relation, table_types = _open_table(connection, path, key, shard)
        columns = _choose_columns(table_types, arguments)
        selected = "".join(
            f", {column.expression} as field_{index}" for index, column in enumerate(columns)
        )
        shard_text = f"{quote_identifier(shard)}::text" if shard in table_types else "null"
        connection.execute(
            f"create temp table incoming as select row_number() over () as row, "
            f"{quote_identifier(key)}::text as key, {shard_text} as shard{selected} "
            f"from {relation}"
        )
    except duckdb.Error as error:
        raise CurateError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error
    _match_rows(connection, key, shard, has_shards=shard in table_types)
    _report_problems(connection, catalog, source, strict)
    connection.execute(
        f"copy (select sample_id{''.join(f', field_{i}' for i in range(len(columns)))} "
        "from matches join incoming using (row) where problem is null order by sample_id) "
        f"to {quote_literal(str(joined))} (format parquet)"
    )
    return columns


def _open_table(
    connection: "DuckDBPyConnection", path: Path, key: str, shard: str | None
) -> tuple[str, dict[str, str]]:
    """SQL that reads the table, and its columns with their types. Raises OptionError."""
    reader = next(text for ending, text in _READERS.items() if path.name.lower().endswith(ending))
    literal = quote_literal(str(path))
    plain = reader.format(path=literal, types="{}").replace(", types = {}", "")
    names = [row[0] for row in connection.execute(f"describe from {plain}").fetchall()]
    if key not in names:
        raise OptionError(f"--key {key}: the table has no such column; it has {', '.join(names)}")
    texts = [name for name in (key, shard) if name in names]
    types = ", ".join(f"{quote_literal(str(name))}: 'VARCHAR'" for name in texts)
    relation = reader.format(path=literal, types=f"{{{types}}}")
    rows = connection.execute(f"describe from {relation}").fetchall()
    return relation, {row[0]: row[1] for row in rows}


def _choose_columns(table_types: dict[str, str], arguments: dict[str, Any]) -> list[_TableColumn]:
    """The columns to keep. Raises OptionError for one that the table does not have."""
    requested, scorings = arguments["columns"], arguments["as_scoring"]
    named = [] if isinstance(requested, str) else requested
    for name in [*named, *scorings.values()]:
        if name not in table_types:
            raise OptionError(f"the table has no column '{name}'; it has {', '.join(table_types)}")
    if isinstance(requested, str):
        joined_by = (arguments["key"], arguments["shard"])
        named = [name for name in table_types if name not in joined_by]
    names = dict.fromkeys([*named, *scorings.values()])
    columns = [_read_column(name, table_types[name]) for name in names]
    left_out = [column.name for column in columns if column.type == "bytes"]
    if left_out:
        log.info("columns of bytes are left out: %s", ", ".join(left_out))
    for column in columns:
        if column.name in scorings.values() and column.type not in NUMERIC_TYPES:
            raise OptionError(f"--as-scoring: the column '{column.name}' holds no numbers")
    return [column for column in columns if column.type != "bytes"]


def _read_column(name: str, sql_type: str) -> _TableColumn:
    column = quote_identifier(name)
    if sql_type in _INTEGERS:
        return _TableColumn(name, "int", f"{column}::bigint")
    if sql_type in ("FLOAT", "DOUBLE") or sql_type.startswith("DECIMAL"):
        return _TableColumn(name, "double", f"{column}::double")
    if sql_type == "BOOLEAN":
        return _TableColumn(name, "bool", column)
    if sql_type == "BLOB":
        return _TableColumn(name, "bytes", column)
    if sql_type == "JSON" or sql_type.endswith("]") or sql_type.startswith(("STRUCT", "MAP")):
        return _TableColumn(name, "json", f"to_json({column})::text")
    return _TableColumn(name, "text", f"{column}::text")


def _match_rows(
    connection: "DuckDBPyConnection", key: str, shard: str | None, *, has_shards: bool
) -> None:
    """Make the table `matches`: each row of the table with its sample, or what is wrong with it."""
    condition = "samples.key = incoming.key"
    if key == _SAMPLE_ID:
        condition = "samples.sample_id = try_cast(incoming.key as bigint)"
    if shard is not None:
        connection.execute(
            "create temp table shard_names as select shard_id, unnest([url, "
            "parse_filename(url), parse_filename(url, true)]) as name from shards"
        )
        if has_shards:
            condition += (
                " and (samples.shard_id, incoming.shard) in (select (shard_id, name) "
                "from shard_names)"
            )
        else:
            names = {shard, files.resolve(shard)}
            rows = connection.execute(
                "select distinct shard_id from shard_names where name in (select unnest(?))",
                [sorted(names)],
            ).fetchall()
            if len(rows) != 1:
                said = (
                    "is no column of the table, and no shard" if not rows else "is several shards"
                )
                raise OptionError(f"--shard {shard}: it {said} of the catalog")
            condition += f" and samples.shard_id = {rows[0][0]}"
    connection.execute(
        "create temp table pairs as select row, samples.sample_id from incoming "
        f"left join samples on {condition}"
    )
    connection.execute(
        "create temp table matches as with counted as (select row, sample_id, "
        "count(*) over (partition by row) as num_samples, "
        "count(*) over (partition by sample_id) as num_rows from pairs) "
        "select row, any_value(sample_id) as sample_id, case "
        "when any_value(sample_id) is null then 'no sample has this key' "
        "when max(num_samples) > 1 then 'several samples have this key' "
        "when max(num_rows) > 1 then 'several rows have this key' end as problem "
        "from counted group by row"
    )


def _report_problems(
    connection: "DuckDBPyConnection", catalog: Catalog, source: str, strict: bool
) -> None:
    """Count and list the rows that are not joined. CurateError where none is, or by `strict`."""
    rows = connection.execute(
        "select coalesce(problem, ''), count(*), "
        f"(list(key order by row))[:{_MAX_SHOWN}] from matches join incoming using (row) "
        "group by all order by all"
    ).fetchall()
    counts = {problem: (count, keys) for problem, count, keys in rows}
    if not counts.get("", (0, []))[0]:
        sample_keys = connection.execute(f"select key from samples limit {_MAX_SHOWN}").fetchall()
        table_keys = connection.execute(f"select key from incoming limit {_MAX_SHOWN}").fetchall()
        raise CurateError(
            "no row of the table belongs to one sample: it has keys such as "
            f"{', '.join(str(text) for (text,) in table_keys)}, the samples "
            f"{', '.join(str(text) for (text,) in sample_keys)}; choose others with --key, and "
            "--shard where keys come again in other shards (nothing was written)"
        )
    problems = {problem: value for problem, value in counts.items() if problem}
    ((without,),) = connection.execute(
        "select count(*) from samples anti join (select sample_id from matches "
        "where problem is null) using (sample_id)"
    ).fetchall()
    if without:
        log.info("%s no row in the table", count_of(without, "sample has", "samples have"))
    if not problems:
        return
    said = "; ".join(
        f"{count_of(count, 'row')}: {problem}, such as {', '.join(map(str, keys))}"
        for problem, (count, keys) in problems.items()
    )
    if strict:
        raise CurateError(f"{said} (--strict: nothing was written)")
    listing = catalog.path / "imports" / f"{source}.csv"
    with atomic_write(listing) as temporary:
        connection.execute(
            "copy (select key, shard, problem from matches join incoming using (row) "
            "where problem is not null order by row) "
            f"to {quote_literal(str(temporary))} (format csv, header true)"
        )
    log.warning("%s; all are in %s", said, listing)


def _commit(
    catalog: Catalog,
    source: str,
    joined: Path,
    columns: list[_TableColumn],
    scorings: dict[str, str],
    run_id: int,
    fingerprint: str,
) -> None:
    """In one transaction: replace the columns of this import, and the scorings."""
    by_name = {column.name: f"field_{index}" for index, column in enumerate(columns)}
    relation = f"read_parquet({quote_literal(str(joined))}, hive_partitioning = false)"
    kept = [column for column in columns if column.name not in scorings.values()]
    with catalog.writing() as connection:
        for scoring in scorings:
            sets.check_column_name(connection, ScoringRecord, scoring)
        drop_columns(connection, source)
        sets.refresh_sample_scores(connection)
        fields = [FieldType(column.name, column.type) for column in kept]
        records = add_columns(connection, source, fields, run_id)
        values = {records[column.name]: (by_name[column.name], column.type) for column in kept}
        if values:
            insert_values(connection, values, relation)
        for scoring, column_name in scorings.items():
            record = ScoringRecord(
                scoring=scoring,
                metric=column_name,
                source=source,
                arguments=provenance.canonical_json({"import": source, "column": column_name}),
                num_samples=0,  # counted when the scores are there
                num_null=0,
                reliability=None,
                fingerprint=fingerprint,
                run_id=run_id,
            )
            _insert_scoring(connection, record, by_name[column_name], relation)
        sets.refresh_sample_scores(connection)
        ((count,),) = connection.execute(f"select count(*) from {relation}").fetchall()
    names = [f"{record.column_name} ({record.type})" for record in values]
    log.info(
        "import '%s': %s with a row; %s%s",
        source,
        count_of(count, "sample"),
        ", ".join(names) or "no columns",
        "".join(f"; scoring '{scoring}'" for scoring in scorings),
    )


def _insert_scoring(
    connection: "DuckDBPyConnection", record: ScoringRecord, expression: str, relation: str
) -> None:
    """In an open transaction: a row for every sample, NULL where it has no finite score."""
    sets.replace_set(connection, record)
    connection.execute(
        "insert into scores (scoring, sample_id, score) select ?, sample_id, "
        "case when isfinite(score) then score end from samples left join "
        f"(select sample_id, {expression}::double as score from {relation}) using (sample_id) "
        "order by sample_id",
        [record.scoring],
    )
    connection.execute(
        "update scorings set num_samples = counted.num_samples, num_null = counted.num_null "
        "from (select count(*) as num_samples, count(*) - count(score) as num_null from scores "
        "where scoring = $1) as counted where scoring = $1",
        [record.scoring],
    )
