"""Fields of .json members on their way into the catalog: which are wanted, and their commit."""

import json
from typing import TYPE_CHECKING

from curate.catalog import columns as catalog_columns
from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.columns import JSON_SOURCE, add_columns, insert_values, read_requests
from curate.catalog.records import EmbeddingRecord
from curate.errors import CurateError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.json_fields import (
    MAX_FIELDS,
    FieldsHeader,
    FieldTable,
    covers,
    merge_requests,
    parse_fields,
    read_fields_header,
)
from curate.formats.member_roles import MemberRoles
from curate.formats.sample_ids import first_sample_id, shard_filename
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import TarReader
from curate.formats.tombstones import Tombstones
from curate.formatting import count_of
from curate.progress import log, progress_bar
from curate.stages.embed.worker import ReadFields, ShardTask, make_reader
from curate.storage import files

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from curate.formats.json_fields import FieldType

_CHECKED_SAMPLES = 2_000  # of the first shard, before anything is written
_SHARDS_PER_COMMIT = 64
_SHOWN_COLUMNS = 12


def check_number_of_fields(url: str, requested: str | list[str]) -> None:
    """CurateError where the first samples of a shard have more fields than there can be columns.

    A shard that cannot be read is for the embedding to report.
    """
    if not isinstance(requested, str):
        return
    table = FieldTable(requested)
    try:
        with files.open_binary(url, sequential=True) as stream:
            for number, sample in enumerate(iterate_samples(TarReader(stream))):
                table.add(number, sample.members.get("json"))
                if number >= _CHECKED_SAMPLES or table.header().is_cut:
                    break
    except (CorruptShardError, OSError):
        return
    if table.header().is_cut:
        raise _too_many_fields([field.path for field in table.header().fields])


def requested_fields(catalog: Catalog, columns: list[str] | str | None) -> str | list[str] | None:
    """The fields to keep: those asked for, with the ones that were named before; None for none."""
    with catalog.reading() as connection:
        previous = [request for request in read_requests(connection).values() if request]
    if columns is None:
        return previous[-1] if previous else None
    requested = parse_fields(columns)
    if isinstance(requested, str) or not previous or isinstance(previous[-1], str):
        return requested
    return merge_requests([previous[-1], requested])


def commit_fields(
    connection: "DuckDBPyConnection",
    locations: dict[int, str],
    requested: str | list[str],
    run_id: int | None,
) -> None:
    """In an open transaction: the fields in the files of some shards become columns.

    `locations` are by shard id. Raises CurateError for more fields than there can be columns.
    """
    if run_id is None:  # what an earlier run has left: it becomes part of the newest
        ((run_id,),) = connection.execute("select coalesce(max(run_id), 0) from runs").fetchall()
    with files.localize(locations.values()) as paths:
        headers = dict(zip(locations, map(read_fields_header, paths), strict=True))
        fields_by_shard = {
            shard_id: _wanted_fields(header, requested) for shard_id, header in headers.items()
        }
        columns = catalog_columns.list_columns(connection, JSON_SOURCE)
        names = {column.field for column in columns}
        names |= {field.path for fields in fields_by_shard.values() for field in fields}
        if len(names) > MAX_FIELDS or any(
            header.is_cut and isinstance(requested, str) for header in headers.values()
        ):
            raise _too_many_fields(sorted(names))
        by_field = add_columns(
            connection,
            JSON_SOURCE,
            [field for fields in fields_by_shard.values() for field in fields],
            int(run_id),
        )
        # One statement for the files with the same fields, which are usually all.
        groups: dict[tuple[FieldType, ...], dict[int, Path]] = {}
        for (shard_id, header), path in zip(headers.items(), paths, strict=True):
            groups.setdefault(tuple(header.fields), {})[shard_id] = path
        for group_fields, group_paths in groups.items():
            expressions = {
                by_field[field.path]: (f"field_{index}", field.type)
                for index, field in enumerate(group_fields)
                if field in fields_by_shard[next(iter(group_paths))]
            }
            if expressions:
                connection.execute(
                    "create or replace temp table incoming_fields as "
                    "select * from read_parquet(?, hive_partitioning = false)",
                    [[str(path) for path in group_paths.values()]],
                )
                bounds = (first_sample_id(min(group_paths)), first_sample_id(max(group_paths) + 1))
                insert_values(connection, expressions, "incoming_fields", bounds)
                connection.execute("drop table incoming_fields")
    connection.execute(
        "update column_sources set run_id = ? where source = ?", [run_id, JSON_SOURCE]
    )
    _record_requests(connection, headers, requested)
    sets.refresh_sample_scores(connection)
    num_unreadable = sum(header.num_unreadable for header in headers.values())
    if num_unreadable:
        log.warning(
            "%s .json members are no JSON objects: their samples have no columns",
            f"{num_unreadable:,}",
        )


def _wanted_fields(header: FieldsHeader, requested: str | list[str]) -> "list[FieldType]":
    if isinstance(requested, str):
        return header.fields
    return [field for field in header.fields if field.path in requested]


def _record_requests(
    connection: "DuckDBPyConnection",
    headers: dict[int, FieldsHeader],
    requested: str | list[str],
) -> None:
    """Store what was read of each shard's .json members, with what was read of them before."""
    previous = read_requests(connection)
    rows = []
    for shard_id, header in headers.items():
        was_read = header.requested
        if not covers(requested, was_read):
            was_read = requested  # of a file with all fields, some were taken
        if header.is_cut:
            was_read = []
        if shard_id in previous:
            was_read = merge_requests([previous[shard_id], was_read])
        rows.append([shard_id, json.dumps(was_read)])
    connection.execute(
        "delete from column_shards where shard_id in (select unnest(?))", [list(headers)]
    )
    connection.executemany("insert into column_shards values (?, ?)", rows)


def add_missing_fields(
    catalog: Catalog,
    embedding: str,
    shards: dict[str, ShardTask],
    roles: MemberRoles,
    requested: str | list[str],
    workers: int,
) -> None:
    """Read the .json members of shards that are in the catalog without these fields.

    `shards` are by URL. Raises CurateError for a shard that cannot be read; what was read before it
    stays.
    """
    with catalog.reading() as connection:
        were_read = read_requests(connection)
    missing = [
        shard
        for shard in shards.values()
        if not covers(were_read.get(shard.shard_id, []), requested)
        or shard.shard_id not in were_read
    ]
    if not missing:
        return
    record = catalog.find(EmbeddingRecord, embedding)
    with (
        catalog.record_run(
            "embed columns",
            JSON_SOURCE,
            {"columns": requested, "label": roles.label},
            parents=[record.run_id] if record else [],
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        task = ReadFields(
            make_reader(folder, roles, requested, Tombstones.load(catalog.path)), folder
        )
        total = sum(shard.num_bytes for shard in missing) >> 10
        finished: dict[int, str] = {}

        def commit() -> None:
            with catalog.writing() as connection:
                commit_fields(connection, finished, requested, run_id)
            files.delete_files(finished.values())
            finished.clear()

        with progress_bar("columns", total) as advance:
            for shard, _ in engine.map_or_raise(
                task,
                missing,
                Resources(workers),
                advance=advance,
                describe_item=lambda shard: f"cannot read the columns of '{shard.url}'",
            ):
                finished[shard.shard_id] = files.join(folder, shard_filename(shard.shard_id))
                if len(finished) >= _SHARDS_PER_COMMIT:
                    commit()
        if finished:
            commit()
    log.info("read the .json members of %s embedded before", count_of(len(missing), "shard"))


def log_columns(catalog: Catalog, requested: str | list[str]) -> None:
    """Log the columns that there are now, and warn of fields that no sample has."""
    with catalog.reading() as connection:
        columns = catalog_columns.list_columns(connection, JSON_SOURCE)
    missing = set() if isinstance(requested, str) else set(requested) - {c.field for c in columns}
    if missing:
        log.warning("no sample has the fields %s in its .json member", ", ".join(sorted(missing)))
    shown = [f"{column.column_name} ({column.type})" for column in columns[:_SHOWN_COLUMNS]]
    more = ", …" if len(columns) > _SHOWN_COLUMNS else ""
    log.info("%s: %s%s", count_of(len(columns), "column"), ", ".join(shown), more)


def _too_many_fields(paths: list[str]) -> CurateError:
    examples = ",".join(paths[:3])
    return CurateError(
        f"the .json members have more than {MAX_FIELDS:,} different fields, too many for columns: "
        f"name those to keep, such as --columns '{examples}'"
    )
