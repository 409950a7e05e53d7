"""The rows of forgotten samples in the database: deleted, with the numbers that count them."""

from typing import TYPE_CHECKING, NamedTuple

from curate.catalog import sets
from curate.catalog.sql import quote_identifier
from curate.stages.forget.rewriting import RewrittenShard
from curate.stages.forget.targets import Target, redact

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_LEAST_KEY = 8  # characters: what is shorter is part of other texts too
# What must agree with the rows that are left: see stages/verify.sql.
_RECOUNTS = (
    "update shards set num_samples = num_samples - gone from ("
    "select shard_id, count(*) as gone from forgotten group by shard_id) as counts "
    "where shards.shard_id = counts.shard_id and num_samples is not null",
    "update embedded_shards set num_embedded = num_embedded - gone from ("
    "select embedding, forgotten.shard_id, count(*) as gone from forgotten join samples "
    "using (sample_id) join embedded_shards on embedded_shards.shard_id = forgotten.shard_id "
    "where (embedding, sample_id) not in (select (embedding, sample_id) from failures "
    "where sample_id is not null) group by all) as counts "
    "where embedded_shards.embedding = counts.embedding "
    "and embedded_shards.shard_id = counts.shard_id",
    "update embedded_shards set num_failed = num_failed - gone from ("
    "select embedding, failures.shard_id, count(*) as gone from forgotten join failures "
    "using (sample_id) group by all) as counts where embedded_shards.embedding = counts.embedding "
    "and embedded_shards.shard_id = counts.shard_id",
    "update selections set num_candidates = num_candidates - gone, "
    "num_samples = num_samples - gone from (select selection, count(*) as gone "
    "from members join forgotten using (sample_id) "
    "group by selection) as counts where selections.selection = counts.selection",
    "update selections set keep = num_samples / greatest(num_candidates, 1) "
    "where repeats is null and num_samples <> round_even(keep * num_candidates, 0)",
    "update selections set keep = total / greatest(num_candidates, 1) from ("
    "select selection, sum(repeats) as total from members "
    "where sample_id not in (select sample_id from forgotten) group by selection) as rest "
    "where selections.selection = rest.selection and repeats is not null "
    "and total <> round_even(keep * num_candidates, 0)",
)
_RECOUNTS_AFTER = (
    "update clusterings set num_samples = rest.num_rows, objective = rest.total from ("
    "select clustering, count(*) as num_rows, sum(if(clusterings.distance = 'cosine', "
    "assignments.distance::double, assignments.distance::double ** 2)) as total "
    "from assignments join clusterings using (clustering) group by clustering) as rest "
    "where clusterings.clustering = rest.clustering and clusterings.num_samples <> rest.num_rows",
    "update scorings set num_samples = rest.num_rows, num_null = rest.num_unscored from ("
    "select scoring, count(*) as num_rows, count(*) filter (score is null) as num_unscored "
    "from scores group by scoring) as rest "
    "where scorings.scoring = rest.scoring and scorings.num_samples <> rest.num_rows",
    # Of a group whose best sample goes, the first of the others stays; one alone is no group.
    "update duplicates set stays = true, kind = null, similarity = 1 "
    "where (deduplication, group_id, sample_id) in ("
    "select (duplicates.deduplication, group_id, min(sample_id)) from duplicates "
    "join deduplications using (deduplication) where against is null "
    "group by duplicates.deduplication, group_id having not bool_or(stays))",
    "delete from duplicates where (deduplication, group_id) in ("
    "select (duplicates.deduplication, group_id) from duplicates "
    "join deduplications using (deduplication) where against is null "
    "group by duplicates.deduplication, group_id having count(*) = 1)",
    "update deduplications set num_rows = rest.num_rows, num_groups = rest.groups, "
    "num_exact = rest.exact, num_near = rest.near from ("
    "select deduplication, count(sample_id) as num_rows, count(distinct group_id) as groups, "
    "count(*) filter (kind in ('bytes', 'pixels')) as exact, "
    "count(*) filter (kind = 'near') as near "
    "from deduplications left join duplicates using (deduplication) group by deduplication) "
    "as rest where deduplications.deduplication = rest.deduplication "
    "and deduplications.num_rows <> rest.num_rows",
)


class FileChecksums(NamedTuple):
    """The checksums of vector files that were written anew, by (embedding, shard id)."""

    vectors: dict[tuple[str, int], str]
    captions: dict[tuple[str, int], str]


def delete_rows(
    connection: "DuckDBPyConnection",
    targets: list[Target],
    shards: list[RewrittenShard],
    checksums: FileChecksums,
    searched_keys: list[str],
) -> dict[str, int]:
    """In an open transaction: delete all rows of the samples; returns how many of which table.

    Shards that were rewritten get their new size, and their samples their new places. Keys in texts
    are replaced by a mark.
    """
    connection.execute(
        "create or replace temp table forgotten as "
        "select unnest($1::bigint[]) as sample_id, unnest($2::bigint[]) as shard_id",
        [[target.sample_id for target in targets], [target.shard_id for target in targets]],
    )
    # Those that a killed call has deleted are counted no more.
    connection.execute(
        "delete from forgotten where sample_id not in (select sample_id from samples) "
        "and sample_id not in (select sample_id from failures where sample_id is not null)"
    )
    for statement in _RECOUNTS:
        connection.execute(statement)
    tables = connection.execute(
        "select table_name from duckdb_columns() join duckdb_tables() using (table_name) "
        "where column_name = 'sample_id' and not duckdb_tables.temporary order by 1"
    ).fetchall()
    removed = {}
    for (table,) in tables:
        name = quote_identifier(table)
        ((count,),) = connection.execute(
            f"select count(*) from {name} where sample_id in (select sample_id from forgotten)"
        ).fetchall()
        connection.execute(
            f"delete from {name} where sample_id in (select sample_id from forgotten)"
        )
        if count:
            removed[table] = count
    # Vectors of samples may be among what metrics were given; the next update computes them again.
    connection.execute("delete from scoring_inputs")
    for statement in _RECOUNTS_AFTER:
        connection.execute(statement)
    for shard in shards:
        _move_shard(connection, shard, targets)
    for table_column, by_file in (
        ("vectors_checksum", checksums.vectors),
        ("captions_checksum", checksums.captions),
    ):
        for (embedding, shard_id), checksum in by_file.items():
            connection.execute(
                f"update embedded_shards set {table_column} = ? "
                "where embedding = ? and shard_id = ?",
                [checksum, embedding, shard_id],
            )
    connection.execute("drop table forgotten")
    redacted = _redact_texts(connection, searched_keys)
    if redacted:
        removed["texts with a key"] = redacted
    sets.refresh_sample_scores(connection)
    return removed


def _move_shard(
    connection: "DuckDBPyConnection", shard: RewrittenShard, targets: list[Target]
) -> None:
    ((is_moved,),) = connection.execute(
        "select count(*) from shards where shard_id = ? and checksum = ?",
        [shard.shard_id, shard.checksum],
    ).fetchall()
    if is_moved:  # before a kill
        return
    cuts = [target for target in targets if target.shard_id == shard.shard_id and target.length]
    connection.execute(
        "update samples set byte_offset = byte_offset - coalesce((select sum(cut_length) from ("
        "select unnest($1::bigint[]) as cut_offset, unnest($2::bigint[]) as cut_length) "
        "where cut_offset < byte_offset), 0)::bigint where shard_id = $3",
        [[target.offset for target in cuts], [target.length for target in cuts], shard.shard_id],
    )
    connection.execute(
        "update shards set num_bytes = ?, etag = ?, checksum = ? where shard_id = ?",
        [shard.num_bytes, shard.etag, shard.checksum, shard.shard_id],
    )


def distinctive_keys(connection: "DuckDBPyConnection", targets: list[Target]) -> list[str]:
    """The keys that can be searched for in texts: long enough, and of no sample that stays."""
    long_keys = sorted({target.key for target in targets if len(target.key) >= _LEAST_KEY})
    rows = connection.execute(
        "select distinct key from samples where key in (select unnest($1::text[])) "
        "and sample_id not in (select unnest($2::bigint[]))",
        [long_keys, [target.sample_id for target in targets]],
    ).fetchall()
    in_use = {key for (key,) in rows}
    return [key for key in long_keys if key not in in_use]


def _redact_texts(connection: "DuckDBPyConnection", keys: list[str]) -> int:
    """In all texts of the catalog, such as the conditions of selections."""
    if not keys:
        return 0
    columns = connection.execute(
        "select table_name, column_name, data_type from duckdb_columns() "
        "join duckdb_tables() using (table_name) where data_type in ('VARCHAR', 'JSON') "
        "and table_name not in ('samples', 'sample_columns', 'duplicates', 'shards')"
    ).fetchall()
    count = 0
    for table, column, _ in columns:
        name = quote_identifier(column)
        rows = connection.execute(
            f"select rowid, {name}::text from {quote_identifier(table)} where {name} is not null"
        ).fetchall()
        for row_id, text in rows:
            new_text = redact(text, keys)
            if new_text != text:
                connection.execute(
                    f"update {quote_identifier(table)} set {name} = ? where rowid = ?",
                    [new_text, row_id],
                )
                count += 1
    return count
