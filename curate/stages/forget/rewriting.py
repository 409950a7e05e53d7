"""Files without the samples that are forgotten, each replaced in one step.

Every function may be called again after a kill: what is gone already is no error.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.execution.types import Resources
from curate.formats.samples import iterate_samples, to_unicode
from curate.formats.tar import TarReader
from curate.stages.export.clients import (
    CLIENTS,
    DALI,
    ENERGON,
    ENERGON_FOLDER,
    OPEN_CLIP,
    SIZES_NAME,
    WIDS,
    WIDS_NAME,
    write_client_files,
)
from curate.stages.export.manifest import (
    INDEX_NAME,
    Manifest,
    RepeatSummary,
    find_side_file,
    read_manifest,
    write_manifest,
)
from curate.stages.export.worker import SourceShard, WrittenShard
from curate.stages.forget.targets import Target, redact
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum

_COPY = 1 << 20  # bytes


class RewrittenShard(NamedTuple):
    """What a shard of the corpus is after samples were cut out of it."""

    shard_id: int
    url: str
    num_bytes: int
    etag: str
    checksum: str


class CutRange(NamedTuple):
    """Bytes [start, stop) that a file loses."""

    start: int
    stop: int


def rewrite_shard(targets: list[Target], old_bytes: int) -> RewrittenShard:
    """Cut samples out of a shard of the corpus, which had so many bytes.

    Raises CurateError for a shard that is neither as it was nor cut already.
    """
    url = targets[0].url
    cuts = [
        CutRange(target.offset, target.offset + target.length)
        for target in targets
        if target.length
    ]
    new_bytes = old_bytes - sum(cut.stop - cut.start for cut in cuts)
    try:
        num_bytes = files.stat(url).num_bytes
        if num_bytes == old_bytes and new_bytes != old_bytes:
            with (
                files.open_binary(url, sequential=True) as source,
                atomic_write(url) as temporary,
                temporary.open("wb") as target,
            ):
                for data in _iterate_without(source, cuts):
                    target.write(data)
        elif num_bytes != new_bytes:
            raise CurateError(
                f"'{url}' has changed since it was embedded: restore it, then `curate forget` again"
            )
        stat = files.stat(url)
        checksum = file_checksum(url)
    except OSError as error:
        raise CurateError(
            f"'{url}' cannot be rewritten ({error.strerror or error}): make it writable, or leave "
            "out --rewrite-shards"
        ) from error
    return RewrittenShard(
        targets[0].shard_id, url, stat.num_bytes or new_bytes, stat.etag, checksum
    )


def _iterate_without(source: BinaryIO, cuts: list[CutRange]) -> Iterator[bytes]:
    """A file's bytes but for the ranges."""
    position = 0
    for cut in [*sorted(cuts), None]:
        while cut is None or position < cut.start:
            data = source.read(_COPY if cut is None else min(_COPY, cut.start - position))
            if not data:
                break
            position += len(data)
            yield data
        if cut is not None:
            source.seek(cut.stop)
            position = cut.stop


def filter_rows(location: str, forgotten: np.ndarray, *, has_vectors: bool) -> str | None:
    """Take the rows of samples, int64 [k], out of a Parquet file with `sample_id`.

    Returns the checksum of the new file, None where it had none of them. A file without other rows
    stays, empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not files.is_file(location):
        return None
    with files.open_binary(location) as file:
        parquet = pq.ParquetFile(file)
        table = parquet.read()
        compression = parquet.metadata.row_group(0).column(0).compression if len(table) else "none"
    is_kept = ~np.isin(table["sample_id"].to_numpy(), forgotten)
    if is_kept.all():
        return None
    with atomic_write(location) as temporary:
        pq.write_table(
            table.filter(pa.array(is_kept)),
            temporary,
            compression="none" if has_vectors else compression.lower(),
            use_dictionary=False,
            write_statistics=["sample_id"],
        )
        return file_checksum(temporary)


def filter_part(part: Path, names: list[str], forgotten: np.ndarray) -> int:
    """Take samples out of a part of a probe; returns how many of its files had some."""
    summary_file = part / "part.json"
    if not summary_file.is_file():
        return 0
    content = json.loads(summary_file.read_text(encoding="utf-8"))
    checksums = content.get("checksums") or {}
    count, is_changed = 0, False
    for name in names:
        count += filter_rows(str(part / name), forgotten, has_vectors=False) is not None
        # Also of a file that was filtered before a kill, whose checksum is the old one.
        if checksums.get(name) and (part / name).is_file():
            checksum = file_checksum(part / name, checksums[name])
            is_changed |= checksum != checksums[name]
            checksums[name] = checksum
    if is_changed:
        with atomic_write(summary_file) as temporary:
            temporary.write_text(json.dumps(content | {"checksums": checksums}, indent=1))
    return count


# -- exports ---------------------------------------------------------------------------------------


class _ExportedRow(NamedTuple):
    """A row of the index of an export: the key in the shard, and whether it is forgotten."""

    key: str
    is_gone: bool


def rewrite_export(
    catalog: Catalog,
    folder: str,
    forgotten: np.ndarray,
    sources: dict[str, RewrittenShard],
    searched_keys: list[str],
) -> Manifest | None:
    """Take samples out of an exported folder: its shards, then its index, clients' files, manifest.

    `sources` are the shards of the corpus that were rewritten; keys in the manifest's texts, such
    as the selection's condition, are replaced by a mark. Returns the new manifest, None where
    nothing of it changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_manifest(folder)
    index_location = find_side_file(folder, INDEX_NAME)
    with files.open_binary(index_location) as file:
        index = pq.read_table(file)
    is_gone = np.isin(index["sample_id"].to_numpy(), forgotten)
    new_sources = [_renew_source(source, sources) for source in manifest.sources]
    texts = json.dumps([manifest.selection, manifest.lineage], default=str)
    selection, lineage = json.loads(redact(texts, searched_keys))
    has_changed = new_sources != manifest.sources or redact(texts, searched_keys) != texts
    if not is_gone.any() and len(index) == manifest.num_samples and not has_changed:
        return None
    kept = index.filter(pa.array(~is_gone))
    rows_by_shard: dict[str, list[_ExportedRow]] = {}
    if "shard" in index.column_names:
        for path, key, gone in zip(
            index["shard"].to_pylist(),
            index["exported_key"].to_pylist(),
            is_gone.tolist(),
            strict=True,
        ):
            rows_by_shard.setdefault(path, []).append(_ExportedRow(key, gone))
    # Where the index has fewer rows than the manifest says, a kill came between the two.
    is_unfinished = len(index) != manifest.num_samples
    shards = []
    for shard in manifest.shards:
        shard_rows = rows_by_shard.get(shard.path, [])
        if is_unfinished or any(row.is_gone for row in shard_rows):
            shard = _rewrite_exported_shard(folder, shard, shard_rows, manifest.key_rule)
        shards.append(shard)
    manifest = replace(
        manifest,
        shards=shards,
        sources=new_sources,
        selection=selection,
        lineage=lineage,
        num_samples=len(kept),
        repeats=_count_repeats(kept),
        num_forgotten=manifest.num_forgotten + manifest.num_samples - len(kept),
        num_bytes=sum(shard.num_bytes for shard in shards),
    )
    clients = _list_client_files(folder, manifest)
    write_client_files(catalog, folder, manifest, clients, Resources(1))
    if is_gone.any():
        with atomic_write(index_location) as temporary:
            pq.write_table(kept, temporary)
    write_manifest(folder, manifest)
    return manifest


def _count_repeats(index: Any) -> RepeatSummary | None:
    """What is left of them in an index, a pyarrow table."""
    if "repeats" not in index.column_names:
        return None
    repeats = index["repeats"].to_numpy()
    return RepeatSummary(int(repeats.sum()), int(repeats.max(initial=0)))


def _renew_source(source: SourceShard, rewritten: dict[str, RewrittenShard]) -> SourceShard:
    shard = rewritten.get(source.url)
    if shard is None:
        return source
    return source._replace(num_bytes=shard.num_bytes, etag=shard.etag, checksum=shard.checksum)


def _rewrite_exported_shard(
    folder: str, shard: WrittenShard, rows: list[_ExportedRow], key_rule: str
) -> WrittenShard:
    """Cut samples out of an exported shard by their places: a key may come twice in it."""
    location = files.join(folder, shard.path)
    with files.open_binary(location, sequential=True) as stream:
        samples = list(iterate_samples(TarReader(stream), key_rule))
    keys = [to_unicode(sample.key) for sample in samples]
    kept_keys = [row.key for row in rows if not row.is_gone]
    if keys == [row.key for row in rows] and keys != kept_keys:
        cuts = [
            CutRange(sample.offset, sample.offset + sample.length)
            for sample, row in zip(samples, rows, strict=True)
            if row.is_gone
        ]
        with (
            files.open_binary(location, sequential=True) as source,
            atomic_write(location) as temporary,
            temporary.open("wb") as target,
        ):
            for data in _iterate_without(source, cuts):
                target.write(data)
    elif keys != kept_keys:
        raise CurateError(
            f"'{location}' is not as it was exported: remove the export's folder, then "
            "`curate forget` again"
        )
    num_bytes = files.stat(location).num_bytes or 0
    return WrittenShard(shard.path, len(kept_keys), num_bytes, file_checksum(location))


def _list_client_files(folder: str, manifest: Manifest) -> list[str]:
    """The clients whose files stand beside the shards, which must be written anew."""
    existing = {
        OPEN_CLIP: files.join(folder, SIZES_NAME),
        WIDS: files.join(folder, WIDS_NAME),
        ENERGON: files.join(folder, ENERGON_FOLDER, ".info.json"),
    }
    first = manifest.shards[0].path if manifest.shards else ""
    existing[DALI] = files.join(folder, first.removesuffix(".tar") + ".idx")
    return [client for client in CLIENTS if files.is_file(existing[client])]


# -- lists -----------------------------------------------------------------------------------------


def rewrite_list(location: str, targets: list[Target], sources: dict[str, RewrittenShard]) -> bool:
    """Take samples out of a file of `curate export --format …`; whether it had any of them.

    Where lines have only keys, all samples of such a key go. In an index, the offsets of shards
    that were rewritten move.
    """
    suffix = Path(location).suffix
    if suffix == ".parquet":
        return _rewrite_table(location, targets, sources)
    if suffix == ".npy":
        return _rewrite_uids(location, {target.key for target in targets})
    return _rewrite_text(location, targets)


def _rewrite_table(
    location: str, targets: list[Target], sources: dict[str, RewrittenShard]
) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_binary(location) as file:
        table = pq.read_table(file)
    schema, num_rows = table.schema, len(table)
    urls, keys = table["url"].to_pylist(), table["key"].to_pylist()
    if "sample_id" in table.column_names:
        ids = np.array([target.sample_id for target in targets], np.int64)
        is_gone = np.isin(table["sample_id"].to_numpy(), ids)
    else:
        pairs = {(target.url, target.key) for target in targets}
        is_gone = np.array([pair in pairs for pair in zip(urls, keys, strict=True)], bool)
    is_moved = False
    if "offset" in table.column_names and sources:
        offsets, shard_bytes, is_moved = _move_offsets(table, urls, targets, sources)
        for name, values in (("offset", offsets), ("shard_bytes", shard_bytes)):
            position = table.column_names.index(name)
            table = table.set_column(position, schema.field(name), pa.array(values))
    table = table.filter(pa.array(~is_gone)) if num_rows else table
    if not is_gone.any() and not is_moved:
        return False
    with atomic_write(location) as temporary:
        pq.write_table(table.replace_schema_metadata(schema.metadata), temporary)
    return bool(is_gone.any())


def _move_offsets(
    table: Any, urls: list[str], targets: list[Target], sources: dict[str, RewrittenShard]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Offsets and sizes of shards after the cuts; those of shards that are moved already stay."""
    offsets = table["offset"].to_numpy().copy()
    shard_bytes = table["shard_bytes"].to_numpy().copy()
    is_moved = False
    for url, shard in sources.items():
        rows = np.array([row_url == url for row_url in urls], bool)
        rows &= shard_bytes != shard.num_bytes
        cuts = sorted((target.offset, target.length) for target in targets if target.url == url)
        before = np.zeros(len(offsets), np.int64)
        for offset, length in cuts:
            before += np.where(offsets > offset, length, 0)
        offsets[rows] -= before[rows]
        shard_bytes[rows] = shard.num_bytes
        is_moved |= bool(rows.any())
    return offsets, shard_bytes, is_moved


def _rewrite_text(location: str, targets: list[Target]) -> bool:
    import csv
    import io

    text = files.read_bytes(location).decode("utf-8")
    keys = {target.key for target in targets}
    if location.endswith(".csv"):
        ids = {str(target.sample_id) for target in targets}
        rows = list(csv.reader(io.StringIO(text)))
        column = rows[0].index("sample_id") if rows else 0
        kept = [row for number, row in enumerate(rows) if not number or row[column] not in ids]
        output = io.StringIO()
        csv.writer(output).writerows(kept)
        new_text = output.getvalue()
    else:
        lines = text.splitlines(keepends=True)
        new_text = "".join(line for line in lines if line.rstrip("\n") not in keys)
    if len(new_text) == len(text):
        return False
    with atomic_write(location) as temporary:
        temporary.write_bytes(new_text.encode("utf-8"))
    return True


def _rewrite_uids(location: str, keys: set[str]) -> bool:
    """Of keys that are uids, as those of DataComp."""
    import io

    uids = np.load(io.BytesIO(files.read_bytes(location)), allow_pickle=False)
    hexadecimal = {key.lower() for key in keys if len(key) == 32}
    texts = [f"{int(high):016x}{int(low):016x}" for high, low in uids.tolist()]
    is_kept = np.array([text not in hexadecimal for text in texts], bool)
    if is_kept.all():
        return False
    with atomic_write(location) as temporary, temporary.open("wb") as file:
        np.save(file, uids[is_kept], allow_pickle=False)
    return True
