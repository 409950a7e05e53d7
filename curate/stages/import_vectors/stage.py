"""`curate import-vectors`: an embedding from vectors that another tool computed.

The shards are read as embed reads them, but for the pixels; each sample gets the vector of its key.
Nothing is written to the catalog before all files and keys have been looked at.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import roles_to_preprocessing
from curate.catalog.sql import quote_identifier, quote_literal
from curate.encoders import check_spec
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.limits import cpu_count, memory_limit
from curate.execution.types import Resources
from curate.formats.json_fields import parse_fields
from curate.formats.member_roles import MemberRoles
from curate.formats.sample_ids import first_sample_id, shard_filename
from curate.formats.shard_patterns import expand_patterns
from curate.formats.tombstones import Tombstones
from curate.formats.vectors import write_vectors
from curate.formatting import count_of
from curate.options import Option, SetName, WorkersPerCore, verb
from curate.progress import log, progress_bar
from curate.stages.embed.columns import (
    add_missing_fields,
    check_number_of_fields,
    log_columns,
    requested_fields,
)
from curate.stages.embed.commit import commit_pending, record_unreadable
from curate.stages.embed.pending import (
    SampleRecord,
    ShardMetadata,
    pending_file,
    read_metadata,
    read_records,
    write_pending,
)
from curate.stages.embed.registration import (
    list_read_shards,
    make_shard_task,
    register_shards,
    stat_shards,
)
from curate.stages.embed.stage import (
    Checkpoint,
    JsonColumns,
    Shards,
    check_label_source,
    choose_roles,
)
from curate.stages.embed.worker import ReadSamples, ShardTask, make_reader
from curate.stages.import_vectors.layouts import (
    VectorFolder,
    VectorSummary,
    check_parts,
    find_parts,
    is_finite,
)
from curate.storage import files as storage
from curate.storage.files import FileStat
from curate.storage.locks import local_tempdir

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

UNKNOWN_ENCODER = "imported"
_SHARDS_PER_COMMIT = 64
_MAX_SHOWN = 5


def check_sample_key(sample_key: str) -> None:
    """OptionError for what is neither key nor json:FIELD."""
    if sample_key != "key" and not sample_key.startswith("json:"):
        raise OptionError(
            f"--sample-key {sample_key}: write key, or json:FIELD for a field of the .json member"
        )


@verb()
def import_vectors(
    catalog: Catalog | str | Path,
    folder: Annotated[str | Path, Option("Folder with vectors and keys.", metavar="FOLDER")],
    shards: Shards,
    *,
    key: Annotated[
        str | None,
        Option("Parquet column with the keys.", metavar="COLUMN", default="image_path, uid or key"),
    ] = None,
    sample_key: Annotated[
        str | None,
        Option(
            "What the keys are of a sample: its key, or json:FIELD.",
            metavar="key|json:FIELD",
            default="key; json:uid for the column uid",
            check=check_sample_key,
        ),
    ] = None,
    array: Annotated[
        str | None,
        Option("Array in .npz files, such as b32_img.", default="required if there are several"),
    ] = None,
    encoder: Annotated[
        str | None,
        Option(
            "The encoder that made the vectors, to embed test shards by.",
            default="unknown",
            check=check_spec,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    label: Annotated[
        str, Option("Where labels come from: cls, or json:FIELD.", check=check_label_source)
    ] = "cls",
    columns: JsonColumns = None,
    strict: Annotated[
        bool,
        Option("Import nothing unless every sample has one vector, and every vector a sample."),
    ] = False,
    workers: WorkersPerCore = None,
    name: SetName = None,
) -> str:
    """Import vectors in the layout of clip-retrieval or DataComp, and return the embedding's name.

    Every sample of the shards whose key has one vector is embedded; the others are failures, and so
    are vectors that are not finite in half precision. Shards that are in the embedding already are
    left alone. Raises CurateError, before anything is written, where files do not fit together,
    where no key is that of a sample, or with `strict` where one is missing.
    """
    vectors = find_parts(folder, array, key)
    sample_key = sample_key or ("json:uid" if vectors.key == "uid" else "key")
    embedding = sets.check_name(name or Path(folder).expanduser().absolute().name)
    urls = expand_patterns([shards] if isinstance(shards, str) else shards)
    stats = stat_shards(urls)
    if columns is not None:
        check_number_of_fields(urls[0], parse_fields(columns))
    summary = _check_vectors(vectors)
    catalog = Catalog(catalog)
    settings = _Settings(
        embedding,
        str(Path(folder).expanduser().absolute()),
        encoder or UNKNOWN_ENCODER,
        str(Path(checkpoint).expanduser().absolute()) if checkpoint else None,
        choose_roles(catalog, label),
        sample_key,
    )
    _check_embedding(catalog, settings, summary)
    num_workers = workers or cpu_count()
    with local_tempdir() as temporary:
        unfinished = _list_unfinished(catalog, embedding, stats)
        samples = _read_samples(
            settings, unfinished, temporary, num_workers, Tombstones.load(catalog.path)
        )
        matches = _match_keys(vectors, samples, temporary)
        _log_matches(matches, summary, samples, strict=strict)
        catalog.create()
        with catalog.write_lock(
            catalog.embedding_folder(embedding), f"the embedding '{embedding}'"
        ):
            commit_pending(catalog, embedding)
            missing = register_shards(catalog, embedding, stats)
            tasks = [task for task in missing if task.url in samples.files]
            if tasks:
                _commit_vectors(catalog, settings, summary, vectors, tasks, samples, matches)
            fields = requested_fields(catalog, columns)
            if fields is not None:
                read_shards = list_read_shards(catalog, stats)
                add_missing_fields(
                    catalog, embedding, read_shards, settings.roles, fields, num_workers
                )
                log_columns(catalog, fields)
    _log_summary(catalog, embedding)
    return embedding


class _Settings(NamedTuple):
    """What an imported embedding is made with."""

    embedding: str
    folder: str
    encoder: str
    checkpoint: str | None
    roles: MemberRoles
    sample_key: str


class _Samples(NamedTuple):
    """The samples of shards, read but for their pixels.

    `files` and `problems` are by URL; the ids in the files count the shards of this call. `keys`
    are the files with what the vectors' keys are compared with.
    """

    files: dict[str, Path]
    keys: list[Path]
    problems: dict[str, str]


class _Matches(NamedTuple):
    """`file` has sample_id, part and row for samples with one vector, in the order of the ids.

    The counts are of samples and of keys; the lists are examples.
    """

    file: Path
    num_matched: int
    without_vector: int
    ambiguous: int
    without_sample: int
    example_keys: list[str]
    example_samples: list[str]


def _check_vectors(vectors: VectorFolder) -> VectorSummary:
    summary = VectorSummary(0, 0, "", 0, "")
    with progress_bar("check", len(vectors.parts), "vectors") as advance:
        for summary_so_far in check_parts(vectors):
            advance(1, summary_so_far.num_rows - summary.num_rows)
            summary = summary_so_far
    if not summary.num_rows:
        raise CurateError(f"'{vectors.parts[0].vectors}' holds no vectors")
    return summary


def _check_embedding(catalog: Catalog, settings: _Settings, summary: VectorSummary) -> None:
    """CurateError where the embedding exists and is another one."""
    if not catalog.database_path.exists():
        return
    record = catalog.find(EmbeddingRecord, settings.embedding)
    if record is None:
        return
    if not is_imported(record):
        raise CurateError(
            f"the embedding '{settings.embedding}' was made by curate embed: "
            "give the imported one another --name"
        )
    if record.dim != summary.dim or record.encoder != settings.encoder:
        raise CurateError(
            f"the embedding '{settings.embedding}' has {record.dim} numbers by the encoder "
            f"{record.encoder}, these vectors {summary.dim} by {settings.encoder}: "
            "choose another --name"
        )


def is_imported(record: EmbeddingRecord) -> bool:
    """Whether the vectors of an embedding were computed by another tool."""
    return "imported_from" in json.loads(record.preprocessing)


def _list_unfinished(
    catalog: Catalog, embedding: str, stats: dict[str, FileStat]
) -> list[ShardTask]:
    """The shards that the embedding lacks, numbered from 0, with the checksums that are known."""
    checksums: dict[str, tuple[str | None, bool]] = {}
    if catalog.database_path.exists():
        with catalog.reading() as connection:
            rows = connection.execute(
                "select url, checksum, shard_id in "
                "(select shard_id from embedded_shards where embedding = ?) from shards",
                [embedding],
            ).fetchall()
        checksums = {url: (checksum, is_finished) for url, checksum, is_finished in rows}
    missing = [url for url in stats if not checksums.get(url, (None, False))[1]]
    return [
        make_shard_task(number, url, stats[url], checksums.get(url, (None, False))[0])
        for number, url in enumerate(missing)
    ]


def _read_samples(
    settings: _Settings,
    tasks: list[ShardTask],
    temporary: Path,
    workers: int,
    tombstones: Tombstones,
) -> _Samples:
    """Read the shards but for the pixels, into files in a temporary folder."""
    reader = make_reader(str(temporary), settings.roles, None, tombstones)
    task = ReadSamples(reader, str(temporary), settings.sample_key)
    samples = _Samples({}, [], {})
    total = sum(shard.num_bytes for shard in tasks) >> 10
    # On this machine, because the files are in its temporary folder.
    with engine.use_engine(), progress_bar("read", total) as advance:
        for shard, problem, error in engine.map(
            task, tasks, Resources(workers), advance=advance, in_order=True
        ):
            if error or problem:
                samples.problems[shard.url] = error or problem
            else:
                samples.files[shard.url] = temporary / shard_filename(shard.shard_id)
                samples.keys.append(temporary / f"keys-{shard_filename(shard.shard_id)}")
    return samples


def _match_keys(vectors: VectorFolder, samples: _Samples, temporary: Path) -> _Matches:
    """Join the keys of vectors and samples, on the disk where they do not fit into memory."""
    import duckdb

    file = temporary / "matches.parquet"
    with duckdb.connect() as connection:
        connection.execute("set enable_progress_bar = false")
        connection.execute(f"set memory_limit = '{memory_limit() // 4 >> 20}MiB'")
        connection.execute(f"set temp_directory = {quote_literal(str(temporary))}")
        _load_keys(connection, vectors, samples)
        connection.execute(
            "create table matches as select sample_id, min(part) as part, min(row) as row, "
            "count(row) as num_vectors, any_value(key) as key "
            "from sample_keys left join vector_keys using (key) group by sample_id"
        )
        connection.execute(
            "create table repeated as select key from sample_keys where key is not null "
            "group by key having count(*) > 1"
        )
        connection.execute(
            "copy (select sample_id, part, row, case "
            "when num_vectors = 0 then 'no vector has its key' "
            "when num_vectors > 1 then format('{} vectors have its key', num_vectors) "
            "when key in (from repeated) then 'other samples have its key' end as problem "
            f"from matches order by sample_id) to {quote_literal(str(file))} (format parquet)"
        )
        ((matched, without, ambiguous),) = connection.execute(
            "select count(*) filter (problem is null), "
            "count(*) filter (problem = 'no vector has its key'), "
            "count(*) filter (problem <> 'no vector has its key') from read_parquet(?)",
            [str(file)],
        ).fetchall()
        orphans = "from vector_keys anti join sample_keys using (key)"
        ((num_orphans,),) = connection.execute(f"select count(*) {orphans}").fetchall()
        examples = connection.execute(f"select key {orphans} limit {_MAX_SHOWN}").fetchall()
        lacking = connection.execute(
            f"select key from matches where num_vectors <> 1 limit {_MAX_SHOWN}"
        ).fetchall()
    return _Matches(
        file,
        matched,
        without,
        ambiguous,
        num_orphans,
        [str(key) for (key,) in examples],
        [str(key) for (key,) in lacking],
    )


def _load_keys(connection: "DuckDBPyConnection", vectors: VectorFolder, samples: _Samples) -> None:
    connection.execute("create table vector_keys (key text, part integer, row bigint)")
    key = quote_identifier(vectors.key)
    for number, part in enumerate(vectors.parts):
        connection.execute(
            f"insert into vector_keys select {key}::text, ?, file_row_number "
            "from read_parquet(?, file_row_number = true, hive_partitioning = false)",
            [number, str(part.keys)],
        )
    connection.execute("create table sample_keys (sample_id bigint, key text)")
    for start in range(0, len(samples.keys), 1_000):
        connection.execute(
            "insert into sample_keys select sample_id, key "
            "from read_parquet(?, hive_partitioning = false)",
            [list(map(str, samples.keys[start : start + 1_000]))],
        )


def _log_matches(
    matches: _Matches, summary: VectorSummary, samples: _Samples, *, strict: bool
) -> None:
    """Say what does not fit. Raises CurateError where nothing does, or with `strict` for less."""
    if not samples.files and not samples.problems:  # every shard is in the embedding
        return
    if samples.files and not matches.num_matched:
        raise CurateError(
            "no vector has the key of a sample: the vectors have keys such as "
            f"{', '.join(matches.example_keys)}, the samples {', '.join(matches.example_samples)}; "
            "choose others with --key and --sample-key (nothing was written)"
        )
    problems = []
    if matches.without_vector:
        count = count_of(matches.without_vector, "sample has", "samples have")
        problems.append(f"{count} no vector, such as {', '.join(matches.example_samples)}")
    if matches.ambiguous:
        count = count_of(matches.ambiguous, "sample has", "samples have")
        problems.append(f"{count} a key that several vectors or samples have")
    if matches.without_sample:
        count = count_of(matches.without_sample, "vector has", "vectors have")
        problems.append(f"{count} no sample, such as {', '.join(matches.example_keys)}")
    if summary.num_not_finite:
        count = count_of(summary.num_not_finite, "vector is", "vectors are")
        problems.append(f"{count} not finite in half precision")
    if samples.problems:
        count = count_of(len(samples.problems), "shard")
        problems.append(f"{count} cannot be read")
    if strict and problems:
        raise CurateError(f"{'; '.join(problems)} (--strict: nothing was written)")
    for problem in problems:
        log.warning("%s", problem)


def _commit_vectors(
    catalog: Catalog,
    settings: _Settings,
    summary: VectorSummary,
    vectors: VectorFolder,
    tasks: list[ShardTask],
    samples: _Samples,
    matches: _Matches,
) -> None:
    """Write the vectors of each shard, then its pending file, and commit, as one run."""
    previous = catalog.find(EmbeddingRecord, settings.embedding)
    arguments = {
        "folder": settings.folder,
        "encoder": settings.encoder,
        "checkpoint": settings.checkpoint,
        "label": settings.roles.label,
        "sample_key": settings.sample_key,
        "num_vectors": summary.num_rows,
        "dtype": summary.dtype,
        "checksum": summary.checksum,
        "shards": len(tasks),
    }
    with catalog.record_run(
        "import-vectors",
        settings.embedding,
        arguments,
        parents=[previous.run_id] if previous else [],
        fingerprint=summary.checksum,
    ) as run_id:
        if previous is None:
            preparation = {
                "imported_from": settings.folder,
                "dtype": summary.dtype,
                **roles_to_preprocessing(settings.roles),
            }
            record = EmbeddingRecord(
                embedding=settings.embedding,
                encoder=settings.encoder,
                checkpoint=settings.checkpoint,
                weights_sha256=summary.checksum,
                dim=summary.dim,
                preprocessing=provenance.canonical_json(preparation),
                label_source=settings.roles.label,
                run_id=run_id,
            )
            with catalog.writing() as connection:
                sets.insert_row(connection, record.table, record.to_dict())
        by_url = {task.url: task for task in tasks}
        uncommitted: list[int] = []
        with progress_bar("import", matches.num_matched) as advance:
            for url, shard_matches in _iterate_matches(matches, samples):
                shard = by_url.get(url)
                if shard is None:  # another process has imported it meanwhile
                    continue
                num_samples = _write_shard(
                    catalog.embedding_folder(settings.embedding),
                    shard,
                    samples.files[url],
                    shard_matches,
                    vectors,
                )
                advance(num_samples, num_samples)
                uncommitted.append(shard.shard_id)
                if len(uncommitted) >= _SHARDS_PER_COMMIT:
                    commit_pending(catalog, settings.embedding, run_id, uncommitted)
                    uncommitted.clear()
        commit_pending(catalog, settings.embedding, run_id, uncommitted)
        record_unreadable(catalog, settings.embedding, _by_shard_id(catalog, samples.problems))


def _by_shard_id(catalog: Catalog, problems: dict[str, str]) -> dict[int, str]:
    """Problems of shards by their ids instead of their URLs."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, url from shards where url in (select unnest(?))", [list(problems)]
        ).fetchall()
    return {shard_id: problems[url] for shard_id, url in rows}


class _ShardMatches(NamedTuple):
    """Positions in the shard, int64 [n]; parts and rows of the vectors, −1 with a problem."""

    positions: np.ndarray
    parts: np.ndarray
    rows: np.ndarray
    problems: list[str | None]


def _iterate_matches(matches: _Matches, samples: _Samples) -> Iterator[tuple[str, _ShardMatches]]:
    """The matches of each shard that was read, in order; the file is read in batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {int(path.stem): url for url, path in samples.files.items()}
    batches = pq.ParquetFile(matches.file).iter_batches(1 << 16)
    pending = pa.table({"sample_id": pa.array([], pa.int64())})
    for number, url in sorted(numbers.items()):
        stop = first_sample_id(number + 1)
        while not len(pending) or pending["sample_id"][-1].as_py() < stop:
            more = next(batches, None)
            if more is None:
                break
            table = pa.Table.from_batches([more])
            pending = pa.concat_tables([pending, table]) if len(pending) else table
        ids = pending["sample_id"].to_numpy()
        count = int(np.searchsorted(ids, stop))
        shard = pending.slice(0, count)
        pending = pending.slice(count)
        if not count:  # no sample of it can be used
            yield url, _ShardMatches(ids[:0], ids[:0], ids[:0], [])
            continue
        yield (
            url,
            _ShardMatches(
                ids[:count] - first_sample_id(number),
                shard["part"].fill_null(-1).to_numpy(),
                shard["row"].fill_null(-1).to_numpy(),
                shard["problem"].to_pylist(),
            ),
        )


def _write_shard(
    folder: str,
    shard: ShardTask,
    samples_file: Path,
    matches: _ShardMatches,
    vectors: VectorFolder,
) -> int:
    """Write the vectors of a shard, then its pending file; returns the number of its samples."""
    records = read_records(samples_file)
    metadata = read_metadata(samples_file)
    by_position = {
        int(position): index for index, position in enumerate(matches.positions.tolist())
    }
    embedded: list[SampleRecord] = []
    match_indices: list[int] = []
    for record in records:
        if record.sample_id is None:
            record.shard_id = shard.shard_id
            continue
        position = record.sample_id & (first_sample_id(1) - 1)
        record.shard_id = shard.shard_id
        record.sample_id = first_sample_id(shard.shard_id) | position
        if record.error:
            continue
        index = by_position[position]
        if problem := matches.problems[index]:
            record.fail("import", problem)
        else:
            embedded.append(record)
            match_indices.append(index)
    rows = _gather(vectors, matches.parts[match_indices], matches.rows[match_indices])
    for record, is_good in zip(embedded, is_finite(rows) if len(rows) else [], strict=True):
        if not is_good:
            record.fail("import", "its vector is not finite in half precision")
    is_embedded = np.array([not record.error for record in embedded], bool)
    vectors_checksum = ""
    if is_embedded.any():
        ids = np.array([record.sample_id for record in embedded if not record.error])
        location = storage.join(folder, shard_filename(shard.shard_id))
        vectors_checksum = write_vectors(location, ids, rows[is_embedded].astype(np.float16))
    num_failed = metadata.num_samples - int(is_embedded.sum())
    write_pending(
        pending_file(folder, shard.shard_id),
        records,
        ShardMetadata(
            **{
                **vars(metadata),
                "num_embedded": int(is_embedded.sum()),
                "num_failed": num_failed,
                "vectors_checksum": vectors_checksum,
            }
        ),
    )
    return metadata.num_samples


def _gather(vectors: VectorFolder, parts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of several parts, in the order given: [n, dim]; each part is opened once."""
    gathered: np.ndarray | None = None
    for part in np.unique(parts).tolist():
        array = vectors.load(int(part))
        if gathered is None:
            gathered = np.empty((len(parts), array.shape[1]), array.dtype)
        is_here = parts == part
        gathered[is_here] = array[rows[is_here]]
    return np.empty((0, 1), np.float16) if gathered is None else gathered


def _log_summary(catalog: Catalog, embedding: str) -> None:
    with catalog.reading() as connection:
        ((num_shards, num_embedded, num_failed),) = connection.execute(
            "select count(*), coalesce(sum(num_embedded), 0), coalesce(sum(num_failed), 0) "
            "from embedded_shards where embedding = ?",
            [embedding],
        ).fetchall()
    log.info(
        "embedding '%s', imported: %s, %s samples with a vector, %s failed",
        embedding,
        count_of(num_shards, "shard"),
        f"{num_embedded:,}",
        f"{num_failed:,}",
    )
