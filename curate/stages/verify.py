"""`curate verify`: whether a catalog and its exports are what they say; issues with remedies."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord
from curate.errors import CurateError
from curate.formats.centroids import load_centroids
from curate.formats.probe_outputs import read_summary
from curate.formats.sample_ids import first_sample_id
from curate.formats.samples import CorruptShardError, iterate_samples, to_unicode
from curate.formats.tar import TarReader
from curate.formats.vectors import read_vectors
from curate.formatting import count_of, escape_control_characters
from curate.options import Option, verb
from curate.package_data import read_sql
from curate.progress import announce, log, progress_bar
from curate.stages.export.layout import INDEX_ONLY, SelectionMembers
from curate.stages.export.manifest import (
    INDEX_NAME,
    KEYS_UNCHANGED,
    MANIFEST_NAME,
    KeySequence,
    Manifest,
    find_side_file,
    read_index_keys,
    read_manifest,
    summarize_index,
)
from curate.stages.export.worker import WrittenShard, expected_checksum
from curate.stages.forget.proof import REMEDY, find_remnants
from curate.stages.forget.receipt import Receipt
from curate.stages.forget.stage import load_plan
from curate.storage import files
from curate.storage.checksums import file_checksum
from curate.storage.files import FileStat

_BATCH_ROWS = 1 << 20  # vectors of files that are looked at together


class Issue(NamedTuple):
    """Something that is not as it should be: what it is about, what is wrong, and the remedy."""

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return escape_control_characters(f"{self.subject}: {self.problem}; {self.remedy}")


@verb()
def verify(
    catalog: Catalog | str | Path,
    exports: Annotated[
        list[str | Path] | None,
        Option("Exported folders.", default="the catalog, and the exports it knows"),
    ] = None,
    *,
    check_sources: Annotated[
        bool,
        Option(
            "Read the shards too, and compare exports with them byte by byte.",
            aliases=("sources",),
        ),
    ] = False,
    forgotten: Annotated[
        str | Path | None,
        Option("A receipt of `curate forget`: search all files for what it names.", metavar="FILE"),
    ] = None,
) -> list[Issue]:
    """All issues of a catalog and of the exports it knows, or of the folders `exports` alone.

    The catalog: every table can be read and adds up, every file of vectors, centroids and probes
    exists with the bytes that were written, every shard is where it was and as large. An export:
    its files have the bytes that the manifest says, their samples are those of the index. With
    `forgotten`, only whether anything of these samples is left: in tables, in files of the catalog,
    its exports and lists, free blocks included, and in the shards where they were rewritten.
    """
    catalog = Catalog(catalog)
    if forgotten is not None:
        return _verify_forgotten(catalog, files.resolve(forgotten))
    if exports:
        folders = [files.resolve(folder) for folder in exports]
        issues = [
            issue for folder in folders for issue in _verify_export(folder, catalog, check_sources)
        ]
        issues = list(dict.fromkeys(issues))
        log.info("verified %s: %s issues", count_of(len(folders), "export"), len(issues) or "no")
        return issues
    announce("verify: reading the tables")
    damage = _find_damage(catalog)
    if damage:  # nothing else that the database says counts
        return [damage]
    with catalog.reading() as connection:
        rows = connection.execute("select path from exports").fetchall()
    folders = [files.resolve(path) for (path,) in rows]
    existing = [folder for folder in folders if files.is_folder(folder)]
    for folder in set(folders) - set(existing):
        log.info("the export %s does not exist any more: not verified", folder)
    issues = [
        *_verify_no_plan(catalog),
        *_verify_tables(catalog),
        *_verify_files(catalog),
        *_verify_shards(catalog, check_sources),
    ]
    for folder in existing:
        issues += _verify_export(folder, catalog, check_sources)
    issues = list(dict.fromkeys(issues))  # several exports may have the same sources
    log.info(
        "verified the catalog and %s: %s issues",
        count_of(len(existing), "export"),
        len(issues) or "no",
    )
    return issues


def _verify_forgotten(catalog: Catalog, location: str) -> list[Issue]:
    receipt = Receipt.load(location)
    issues = [Issue(*remnant, REMEDY) for remnant in find_remnants(catalog, receipt)]
    log.info(
        "searched for %s: %s",
        count_of(len(receipt.samples), "forgotten sample"),
        count_of(len(issues), "remnant") if issues else "nothing is left",
    )
    return issues


def _verify_no_plan(catalog: Catalog) -> Iterator[Issue]:
    if load_plan(catalog) is not None:
        yield Issue(
            str(catalog.path), "a forgetting is not finished", "`curate forget` finishes it"
        )


def _find_damage(catalog: Catalog) -> Issue | None:
    """Read every block of the database, which has checksums of its own."""
    import duckdb

    try:
        with catalog.reading() as connection:
            tables = connection.execute("select table_name from duckdb_tables()").fetchall()
            for (table,) in tables:
                connection.execute(f"select sum(hash(rows)::double) from {table} as rows")
                connection.fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        return Issue(
            str(catalog.database_path),
            f"it is damaged ({reason})",
            "restore it from a copy, or embed into a new catalog",
        )
    return None


def _verify_tables(catalog: Catalog) -> Iterator[Issue]:
    """The numbers that must agree."""
    with catalog.reading() as connection:
        rows = connection.execute(read_sql("stages/verify")).fetchall()
    yield from (Issue(*row) for row in rows)


def _verify_files(catalog: Catalog) -> Iterator[Issue]:
    """Vectors, centroids and what probes wrote."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select embedding, shard_id, num_embedded, dim, vectors_checksum, captions_checksum "
            "from embedded_shards join embeddings using (embedding) "
            "where num_embedded > 0 order by all"
        ).fetchall()
        part_rows = connection.execute(
            "select distinct folder, probe, part from probes join probe_models using (probe)"
        ).fetchall()
    with progress_bar("verify", len(rows)) as advance:
        for batch in _batch_files(_VectorFile(*row) for row in rows):
            embedded = _load_embedded(catalog, batch)
            for file in batch:
                sample_ids, has_caption = embedded.of_shard(file.shard_id)
                location = catalog.vector_file(file.embedding, file.shard_id)
                shape = file.num_rows, file.dim
                yield from _verify_vectors(location, file.checksum, sample_ids, shape)
                if file.captions_checksum:
                    location = catalog.caption_file(file.embedding, file.shard_id)
                    sample_ids = sample_ids[has_caption]
                    yield from _verify_vectors(location, file.captions_checksum, sample_ids)
                advance(1, file.num_rows)
    for name in catalog.list_names(ClusteringRecord):
        yield from _verify_centroids(catalog, catalog.require(ClusteringRecord, name))
    for folder, probe, part in part_rows:
        yield from _verify_part(catalog.probe_folder(folder) / part, probe)


class _VectorFile(NamedTuple):
    """What the catalog knows of the vectors of a shard, [num_rows, dim], and of its captions'."""

    embedding: str
    shard_id: int
    num_rows: int
    dim: int
    checksum: str | None
    captions_checksum: str | None


class _Embedded(NamedTuple):
    """Embedded samples: sorted ids int64 [n], and which have a caption, bool [n]."""

    sample_ids: np.ndarray
    has_caption: np.ndarray

    def of_shard(self, shard_id: int) -> "_Embedded":
        """Those of one shard."""
        bounds = [first_sample_id(shard_id), first_sample_id(shard_id + 1)]
        rows = slice(*np.searchsorted(self.sample_ids, bounds))
        return _Embedded(self.sample_ids[rows], self.has_caption[rows])


def _batch_files(vector_files: Iterable[_VectorFile]) -> Iterator[list[_VectorFile]]:
    """Sorted files in batches of one embedding, of about _BATCH_ROWS vectors."""
    batch: list[_VectorFile] = []
    num_rows = 0
    for file in vector_files:
        if batch and (num_rows >= _BATCH_ROWS or file.embedding != batch[0].embedding):
            yield batch
            batch, num_rows = [], 0
        batch.append(file)
        num_rows += file.num_rows
    if batch:
        yield batch


def _load_embedded(catalog: Catalog, batch: list[_VectorFile]) -> _Embedded:
    """The samples of a batch of files. A query for each shard would look through all of them."""
    shard_ids = [file.shard_id for file in batch]
    with catalog.reading() as connection:
        columns = connection.execute(
            "select sample_id, coalesce(caption <> '', false) as has_caption "
            "from samples where shard_id between $1 and $2 "
            "and shard_id in (select unnest($3)) and sample_id not in "
            "(select sample_id from failures where embedding = $4 "
            "and shard_id between $1 and $2 and sample_id is not null) order by sample_id",
            [min(shard_ids), max(shard_ids), shard_ids, batch[0].embedding],
        ).fetchnumpy()
    return _Embedded(columns["sample_id"], columns["has_caption"])


def _verify_vectors(
    location: str,
    checksum: str | None,
    sample_ids: np.ndarray,
    shape: tuple[int, int] | None = None,
) -> Iterator[Issue]:
    """A file with vectors of these samples, and of a shape where the catalog knows it."""
    remedy = "remove the file, and the same `curate embed` again makes it"
    issues = list(_verify_file(location, checksum, remedy))
    yield from issues
    if issues:
        return
    try:
        shard = read_vectors(location)
    except CurateError as error:
        yield Issue(location, str(error), remedy)
        return
    has_same_ids = np.array_equal(shard.sample_ids, sample_ids)
    if not has_same_ids or shape not in (None, shard.vectors.shape):
        yield Issue(location, "its rows are not those of the shard's samples", remedy)
    elif not np.isfinite(shard.vectors).all():
        yield Issue(location, "it holds numbers that are not finite", remedy)


def _verify_centroids(catalog: Catalog, record: ClusteringRecord) -> Iterator[Issue]:
    location = catalog.centroids_file(record)
    remedy = (
        f"cluster again: `curate cluster --name {record.clustering}` with another --seed and back, "
        "or another --name"
    )
    yield from _verify_file(location, record.centroids_checksum, f"remove it; {remedy}")
    if record.centroids_checksum or not files.is_file(location):
        return
    if len(load_centroids(location)) != record.k:  # of a catalog without checksums
        yield Issue(location, f"not the {record.k} centroids that it should hold", remedy)


def _verify_part(folder: Path, probe: str) -> Iterator[Issue]:
    remedy = f"remove '{folder}', and the same `curate probe --name {probe}` again makes it"
    try:
        checksums = read_summary(folder).checksums
    except CurateError as error:
        reason = type(error.__cause__ or error).__name__
        yield Issue(str(folder), f"its summary cannot be read ({reason})", remedy)
        return
    for name, checksum in checksums.items():
        yield from _verify_file(str(folder / Path(name).name), checksum, remedy)


def _verify_file(location: str, checksum: str | None, remedy: str) -> Iterator[Issue]:
    """One file: it exists and, where a checksum is given, has the bytes that were written."""
    try:
        if checksum and file_checksum(location) != checksum:
            yield Issue(location, "its bytes are not those that were written", remedy)
        elif not files.is_file(location):
            yield Issue(location, "it is gone", remedy)
    except FileNotFoundError:
        yield Issue(location, "it is gone", remedy)
    except OSError as error:
        yield Issue(location, str(error.strerror or error), remedy)


def _verify_shards(catalog: Catalog, check_sources: bool) -> Iterator[Issue]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select url, num_bytes, checksum from shards "
            "where num_samples is not null order by shard_id"
        ).fetchall()
    total = sum(num_bytes for _, num_bytes, _ in rows) >> 10
    stats = files.stat_files(url for url, _, _ in rows)
    with progress_bar("shards", total) as advance:
        for url, num_bytes, checksum in rows:
            expected = checksum if check_sources else None
            yield from _verify_source(url, stats[url], num_bytes, expected)
            advance(num_bytes >> 10, 0)


def _verify_source(
    url: str, stat: FileStat | OSError, num_bytes: int, checksum: str | None
) -> Iterator[Issue]:
    """One shard: it exists, is as large as it was and, where a checksum is given, has its bytes."""
    try:
        if isinstance(stat, OSError):
            raise stat
        has_changed = stat.num_bytes not in (None, num_bytes)
        if not has_changed and checksum:
            has_changed = file_checksum(url, checksum) != checksum
    except OSError as error:
        yield Issue(
            url,
            f"it cannot be read ({error.strerror or error})",
            "put it back, or embed it where it is now",
        )
        return
    if has_changed:
        yield Issue(
            url,
            "it has changed since it was embedded",
            "restore it, or embed the new corpus elsewhere (-c NEW)",
        )


def _verify_export(folder: str, catalog: Catalog, check_sources: bool) -> Iterator[Issue]:
    """An exported folder against its manifest, its index and, on request, its source shards."""
    import pyarrow as pa

    if not files.is_folder(folder):
        yield Issue(folder, "there is no such folder", "check the path of the export")
        return
    remedy = (
        "export again into an empty folder, "
        f"or remove {find_side_file(folder, MANIFEST_NAME)} and the file and export again"
    )
    try:
        manifest = read_manifest(folder)
        index = summarize_index(folder)
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
        reason = f"{type(error).__name__}: {error}"
        yield Issue(folder, f"its manifest or index cannot be read ({reason})", remedy)
        return
    yield from _verify_counts(folder, manifest, index.num_rows, remedy)
    with progress_bar("export", manifest.num_samples) as advance:
        for shard in manifest.shards:
            keys = index.keys.get(shard.path, KeySequence())
            yield from _verify_exported_shard(folder, shard, keys, manifest.key_rule, remedy)
            advance(shard.num_samples, shard.num_samples)
    if check_sources:
        moved = _find_moved(catalog)
        stats = files.stat_files(source.url for source in manifest.sources)
        for source in manifest.sources:
            url, stat = source.url, stats[source.url]
            if isinstance(stat, OSError) and source.checksum in moved:
                url = moved[source.checksum]
                stat = files.stat_files([url])[url]
            yield from _verify_source(url, stat, source.num_bytes, source.checksum)
        yield from _compare_with_sources(folder, manifest, catalog, remedy)


def _find_moved(catalog: Catalog) -> dict[str, str]:
    """Where the shards of the catalog are now, by their checksums: an export has the old URLs."""
    if not catalog.database_path.is_file():
        return {}
    with catalog.reading() as connection:
        rows = connection.execute(
            "select checksum, url from shards where checksum is not null"
        ).fetchall()
    return dict(rows)


def _verify_counts(folder: str, manifest: Manifest, num_rows: int, remedy: str) -> Iterator[Issue]:
    in_shards = sum(shard.num_samples for shard in manifest.shards)
    is_inconsistent = bool(manifest.shards) and in_shards != manifest.num_samples
    if num_rows != manifest.num_samples or is_inconsistent:
        yield Issue(
            find_side_file(folder, INDEX_NAME),
            f"{num_rows} samples, but the manifest says {manifest.num_samples}",
            remedy,
        )


def _verify_exported_shard(
    folder: str, shard: WrittenShard, keys: KeySequence, key_rule: str, remedy: str
) -> Iterator[Issue]:
    if _leads_outside(folder, shard.path):  # a manifest from strangers names no file elsewhere
        location = find_side_file(folder, MANIFEST_NAME)
        yield Issue(location, f"it names '{shard.path}', outside of the export", remedy)
        return
    location = files.join(folder, shard.path)
    exported_keys, problem = KeySequence(), None
    try:
        with files.open_binary(location, sequential=True) as stream:
            reader = TarReader(stream, shard.checksum)
            try:
                for sample in iterate_samples(reader, key_rule):
                    exported_keys.append(to_unicode(sample.key))
            except CorruptShardError as error:
                problem = str(error)
                reader.drain()
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = "it is gone" if is_gone else str(error.strerror or error)
        yield Issue(location, reason, remedy)
        return
    if reader.checksum != shard.checksum:
        yield Issue(location, "its bytes are not those that were written", remedy)
    if problem:
        yield Issue(location, problem, remedy)
        return
    if exported_keys != keys:
        num_missing = len(
            {*read_index_keys(folder, shard.path)} - {*_iterate_keys(location, key_rule)}
        )
        problem = "its samples are not those of the index"
        if num_missing:
            problem = f"{num_missing} of {keys.count} samples of the index are missing"
        yield Issue(location, problem, remedy)


def _iterate_keys(location: str, key_rule: str) -> Iterator[str]:
    with files.open_binary(location, sequential=True) as stream:
        for sample in iterate_samples(TarReader(stream), key_rule):
            yield to_unicode(sample.key)


def _leads_outside(folder: str, path: str) -> bool:
    if files.is_url(folder):
        return ".." in path.split("/")
    return not Path(folder, path).resolve().is_relative_to(Path(folder).resolve())


def _compare_with_sources(
    folder: str, manifest: Manifest, catalog: Catalog, remedy: str
) -> Iterator[Issue]:
    """Every byte of the samples against the shards, where the catalog still has the selection."""
    if manifest.layout == INDEX_ONLY:  # it holds no bytes
        return
    record = None
    if catalog.database_path.is_file():
        record = catalog.find(SelectionRecord, str(manifest.selection.get("selection")))
    if record is None or record.fingerprint != manifest.selection.get("fingerprint"):
        log.info(
            "%s: the catalog no longer has its selection: "
            "not compared with the shards byte by byte",
            folder,
        )
        return
    if manifest.num_forgotten and manifest.keys != KEYS_UNCHANGED:
        # Keys that had to change may have done so because of a sample that is forgotten.
        log.info("%s: samples were forgotten: not compared with the shards byte by byte", folder)
        return
    counts = [shard.num_samples for shard in manifest.shards] if manifest.num_forgotten else None
    try:
        members = SelectionMembers(
            catalog,
            record,
            complement=manifest.complement,
            unique_keys=manifest.unique_keys,
        )
        expected = {
            packed.output.path: expected_checksum(packed.output)
            for packed in members.pack(
                manifest.layout, empty_shards=manifest.empty_shards, counts=counts
            )
            if packed.output
        }
    except CurateError as error:
        problem = f"it cannot be compared with its shards: {error}"
        yield Issue(folder, problem, "mend the shards first")
        return
    written = {shard.path: shard.checksum for shard in manifest.shards}
    for path in sorted(expected.keys() | written.keys()):
        if expected.get(path) != written.get(path):
            location = files.join(folder, path)
            yield Issue(location, "its samples are not byte for byte those of the shards", remedy)
