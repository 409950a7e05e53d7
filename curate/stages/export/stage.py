"""`curate export`: a selection as tar shards, byte for byte, or as a list; with a manifest."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ExportRecord, SelectionRecord
from curate.catalog.samples import corpus_roles
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.samples import FIRST_DOT
from curate.formatting import count_of
from curate.options import Option, SetName, Workers, verb
from curate.progress import log, progress_bar
from curate.stages.export.clients import CLIENTS, ENERGON, OPEN_CLIP, write_client_files
from curate.stages.export.layout import (
    INDEX_ONLY,
    MIRROR,
    SelectionMembers,
    repacked_layout,
)
from curate.stages.export.lists import DATACOMP, FORMATS, SHARDS, check_list_path, write_list
from curate.stages.export.manifest import (
    INDEX_NAME,
    KEYS_UNCHANGED,
    SIDE_FOLDER,
    IndexWriter,
    Manifest,
    RepeatSummary,
    WeightSummary,
    find_side_file,
    read_manifest,
    write_manifest,
)
from curate.stages.export.worker import OutputShard, WriteShard, WrittenShard
from curate.stages.staleness import warn_if_stale
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.credentials import hide_credentials
from curate.storage.files import FileStat
from curate.storage.locks import LOCK_NAME, TEMPORARY_PREFIX, remove_temporary_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PLAN_NAME = ".curate-export"  # marks the folder of an unfinished export


def _check_options(arguments: Mapping[str, Any]) -> None:
    if arguments["samples_per_shard"] is not None and arguments["index_only"]:
        raise OptionError("--samples-per-shard takes no --index-only: one writes shards, one none")
    client_files = _list_clients(arguments["clients"], arguments["sizes_json"])
    if client_files and arguments["index_only"]:
        raise OptionError("--for takes no --index-only: its files stand beside shards")
    list_format = arguments["format"]
    check_list_path(str(arguments["out"]), list_format)
    if list_format == SHARDS:
        if arguments["uid"] is not None:
            raise OptionError("--uid goes with --format datacomp")
        return
    if arguments["uid"] is not None and list_format != DATACOMP:
        raise OptionError("--uid goes with --format datacomp")
    for name in ("samples_per_shard", "index_only", "unique_keys"):
        if arguments[name]:
            raise OptionError(f"--format {list_format} writes no shards: leave out its options")
    if client_files:
        raise OptionError(f"--format {list_format} writes no shards: leave out --for")


@verb(check=_check_options)
def export(
    catalog: Catalog | str | Path,
    selection: Annotated[str, Option("A selection's name.")],
    out: Annotated[
        str | Path, Option("New or empty folder, or a URL; a file for other formats than shards.")
    ],
    *,
    format: Annotated[
        str,
        Option(
            "Shards, or one file: keys (*.txt, *.parquet), csv (a plain manifest with the images' "
            "paths), datacomp (*.npy of uids), or index (*.parquet for curate.stream).",
            choices=FORMATS,
        ),
    ] = SHARDS,
    clients: Annotated[
        list[str] | str | None,
        Option(
            "Write what this framework wants beside the shards; repeatable.",
            flag="--for",
            metavar="CLIENT",
            choices=CLIENTS,
        ),
    ] = None,
    sizes_json: Annotated[
        bool, Option("Write sizes.json, samples by shard, as --for open_clip does.")
    ] = False,
    complement: Annotated[
        bool, Option("What was dropped: all other samples of the shards selected from.")
    ] = False,
    unique_keys: Annotated[
        bool,
        Option(
            "No key twice in the whole export: where one would be, all get an id in front. "
            "--for energon implies it."
        ),
    ] = False,
    uid: Annotated[
        str | None,
        Option(
            "Column of sample_scores with the uids for datacomp, 32 hexadecimal digits.",
            metavar="COLUMN",
            default="key",
        ),
    ] = None,
    samples_per_shard: Annotated[
        int | None, Option("Repack into shards of at most this many samples.", minimum=1)
    ] = None,
    index_only: Annotated[
        bool, Option("No images, only index.parquet (url, key, sample_id).")
    ] = False,
    workers: Workers = 1,
    name: SetName = None,
) -> str:
    """Write the selection's samples to the folder `out`, and return its path as it was given.

    By default one output shard for one input shard, under the same name, each sample's bytes as
    they were; a shard of which nothing is kept is an empty one. With `samples_per_shard` evenly
    filled shards, numbered from 000000; keys that would collide in one shard get the input shard's
    id in front. With `index_only` no images. `format` other than shards writes the file `out`.
    """
    catalog = Catalog(catalog)
    record = catalog.require(SelectionRecord, selection)
    out_text, folder = str(out), files.resolve(out)
    if hide_credentials(folder) != folder:
        raise OptionError(
            f"{hide_credentials(folder)}: the manifest would store the password or query of this "
            "URL; give them by the store's own configuration"
        )
    if format != SHARDS:
        run_name = sets.check_name(name) if name else files.filename(folder)
        export_list(
            catalog, record, folder, format, run_name, complement=complement, uid=uid or "key"
        )
        return out_text
    client_names = _list_clients(clients, sizes_json)
    unique_keys = unique_keys or ENERGON in client_names
    layout = repacked_layout(samples_per_shard) if samples_per_shard else MIRROR
    if index_only:
        layout = INDEX_ONLY
    members = SelectionMembers(catalog, record, complement=complement, unique_keys=unique_keys)
    if not len(members):
        raise CurateError(f"'{selection}' has every sample: nothing was dropped")
    variant = {"complement": complement, "unique_keys": unique_keys}
    settings = {"layout": layout} | {name: True for name, is_set in variant.items() if is_set}
    fingerprint = provenance.fingerprint("export", settings, record.fingerprint, members.checksum)
    with catalog.reading() as connection:
        export_name = sets.check_name(name) if name else _free_name(connection, folder)
    with catalog.write_lock(folder, f"the export '{folder}'"):
        warn_if_stale(catalog, record)
        if _is_finished(folder, fingerprint):
            files.delete_file(files.join(folder, _PLAN_NAME))
            remove_unfinished_files(folder)
            log.info("nothing to do: %s holds this export already", out_text)
            manifest = read_manifest(folder)
            write_client_files(catalog, folder, manifest, client_names, Resources(workers))
            return out_text
        is_continued = _reserve_folder(folder, fingerprint)
        settings |= {"selection": selection, "path": folder}
        with catalog.record_run(
            "export", export_name, settings, parents=[record.run_id], fingerprint=fingerprint
        ) as run_id:
            try:
                written, num_changed_keys = write_shards(
                    folder, members, layout, Resources(workers), reuse=is_continued
                )
            except BaseException:
                _release_folder(folder)
                raise
            # A lost machine leaves what it was writing, which others have made again.
            remove_unfinished_files(folder)
            export_record = ExportRecord(
                export=export_name,
                selection=selection,
                path=folder,
                layout=layout,
                num_shards=len(written),
                num_samples=len(members),
                num_bytes=sum(shard.num_bytes for shard in written),
                fingerprint=fingerprint,
                run_id=run_id,
            )
            commit_export(catalog, export_record, is_named=name is not None)
            # Last, because the manifest says that the export is whole.
            manifest = make_manifest(
                catalog, record, export_record, members, num_changed_keys, written
            )
            manifest = replace(manifest, complement=complement, unique_keys=unique_keys)
            write_client_files(catalog, folder, manifest, client_names, Resources(workers))
            write_manifest(folder, manifest)
        files.delete_file(files.join(folder, _PLAN_NAME))
    log.info(
        "exported %s samples in %s shards, %s bytes, to %s",
        f"{len(members):,}",
        f"{len(written):,}",
        f"{export_record.num_bytes:,}",
        out_text,
    )
    return out_text


def _list_clients(clients: list[str] | str | None, sizes_json: bool) -> list[str]:
    """The clients of --for, in the order of CLIENTS."""
    names = [clients] if isinstance(clients, str) else list(clients or [])
    return [name for name in CLIENTS if name in names or (sizes_json and name == OPEN_CLIP)]


def export_list(
    catalog: Catalog,
    record: SelectionRecord,
    location: str,
    list_format: str,
    name: str,
    *,
    complement: bool,
    uid: str,
) -> None:
    """Write the selection as one file, as a run of its own."""
    warn_if_stale(catalog, record)
    settings = {
        "selection": record.selection,
        "path": location,
        "format": list_format,
        "complement": complement,
    }
    if list_format == DATACOMP:
        settings["uid"] = uid
    with catalog.record_run("export", name, settings, parents=[record.run_id]):
        count = write_list(catalog, record, location, list_format, complement=complement, uid=uid)
    log.info("listed %s in %s", count_of(count, "sample"), location)


def _free_name(connection: "DuckDBPyConnection", folder: str) -> str:
    """The folder's name, with a number where an export into another folder has that name."""
    rows = connection.execute("select export, path from exports").fetchall()
    paths = dict(rows)
    plain = re.sub(r"[^A-Za-z0-9@_.,+=-]", "_", files.filename(folder)).lstrip(".") or "export"
    candidates = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    return sets.check_name(next(name for name in candidates if paths.get(name, folder) == folder))


def remove_unfinished_files(folder: str) -> None:
    if not files.is_url(folder):  # an object store has none
        remove_temporary_files(Path(folder))


def _is_finished(folder: str, fingerprint: str) -> bool:
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError):
        return False
    has_index = files.is_file(find_side_file(folder, INDEX_NAME))
    if manifest.fingerprint != fingerprint or not has_index:
        return False
    num_bytes = {files.join(folder, shard.path): shard.num_bytes for shard in manifest.shards}
    stats = files.stat_files(num_bytes)
    return all(
        isinstance(stat, FileStat) and stat.num_bytes == num_bytes[location]
        for location, stat in stats.items()
    )


def _reserve_folder(folder: str, fingerprint: str) -> bool:
    """Mark the folder as this export's; returns whether it continues one that was killed.

    CurateError if it holds something else.
    """
    plan = files.join(folder, _PLAN_NAME)
    if _is_ours(folder, plan, fingerprint):
        remove_unfinished_files(folder)
        return True
    existing = files.list_files(folder)
    # A plan that a kill kept from getting its name.
    unnamed_plans = files.list_files(folder, f"{TEMPORARY_PREFIX}*{_PLAN_NAME}")
    for location in existing:
        if location not in unnamed_plans and files.filename(location) not in (
            LOCK_NAME,
            _PLAN_NAME,
        ):
            raise CurateError(
                f"'{folder}' holds other files or another export: choose an empty or new folder"
            )
    for location in unnamed_plans:
        files.delete_file(location)
    with atomic_write(plan) as temporary:
        temporary.write_text(fingerprint, encoding="utf-8")
    return False


def _release_folder(folder: str) -> None:
    """Leave no trace of an export that ended before anything was written."""
    side_folder = files.join(folder, SIDE_FOLDER)
    own_names = {LOCK_NAME, _PLAN_NAME, SIDE_FOLDER}
    if {files.filename(file) for file in files.list_files(folder)} <= own_names and not (
        files.list_files(side_folder)
    ):
        files.delete_file(files.join(folder, _PLAN_NAME))
        if not files.is_url(folder):
            with contextlib.suppress(OSError):  # it was never made
                os.rmdir(side_folder)


def _is_ours(folder: str, plan: str, fingerprint: str) -> bool:
    """Whether a killed call of just this export has written to the folder."""
    try:
        if files.is_file(plan) and files.read_bytes(plan).decode() == fingerprint:
            return True
        return read_manifest(folder).fingerprint == fingerprint
    except (OSError, ValueError):
        return False


def write_shards(
    folder: str,
    members: SelectionMembers,
    layout: str,
    resources: Resources,
    unchanged: Mapping[str, WrittenShard] | None = None,
    *,
    reuse: bool = False,
) -> tuple[list[WrittenShard], int]:
    """Write the output shards, and the index at the same time.

    With `unchanged`, the shards of an earlier export of the folder: those by their path are there
    already, and others are written whatever is there. `reuse` keeps what a killed call has written.
    Returns what the manifest says of each shard, and how many keys had to change.
    """
    written = []
    with (
        atomic_write(files.join(folder, INDEX_NAME)) as temporary,
        IndexWriter(temporary, members, with_shards=layout != INDEX_ONLY) as index,
        progress_bar("export", len(members)) as advance,
    ):

        def iterate_outputs() -> Iterator[OutputShard]:
            for packed in members.pack(layout):
                index.add(packed)
                if packed.output and unchanged and packed.output.path in unchanged:
                    written.append(unchanged[packed.output.path])
                    advance(len(packed.keys), len(packed.keys))
                elif packed.output:
                    yield packed.output
                else:
                    advance(len(packed.keys), len(packed.keys))

        for _, shard in engine.map_or_raise(
            WriteShard(folder, reuse),
            iterate_outputs(),
            resources,
            advance=advance,
            in_order=True,
        ):
            written.append(shard)
    return written, index.num_changed_keys


def commit_export(catalog: Catalog, record: ExportRecord, *, is_named: bool) -> None:
    with catalog.writing() as connection:
        row = record.to_dict()
        if not is_named:  # another export may have taken the name since
            row["export"] = _free_name(connection, record.path)
        sets.replace_set(connection, ExportRecord(**row))


def make_manifest(
    catalog: Catalog,
    selection: SelectionRecord,
    export_record: ExportRecord,
    members: SelectionMembers,
    num_changed_keys: int,
    written: list[WrittenShard],
) -> Manifest:
    keys = KEYS_UNCHANGED
    if num_changed_keys:
        keys = (
            f"{num_changed_keys} keys have the input shard's id, or the sample's, in front: "
            f"exported_key in {INDEX_NAME}"
        )
    roles = corpus_roles(catalog)
    selection_row = selection.to_dict()
    del selection_row["run_id"]
    return Manifest(
        curate=provenance.version(),
        fingerprint=export_record.fingerprint,
        selection=selection_row,
        layout=export_record.layout,
        num_samples=export_record.num_samples,
        num_shards=export_record.num_shards,
        num_bytes=export_record.num_bytes,
        keys=keys,
        shards=written,
        sources=[source for _, source in sorted(members.sources.items())],
        lineage=_read_lineage(catalog, selection.run_id),
        empty_shards=True,
        key_rule=roles.key_rule if roles else FIRST_DOT,
        weights=_summarize_weights(catalog, selection) if members.has_weights else None,
        repeats=_summarize_repeats(catalog, selection) if members.has_repeats else None,
    )


def _summarize_weights(catalog: Catalog, selection: SelectionRecord) -> WeightSummary:
    with catalog.reading() as connection:
        ((least, largest),) = connection.execute(
            "select min(weight), max(weight) from members where selection = ?",
            [selection.selection],
        ).fetchall()
    return WeightSummary(str(selection.weights_by), least, largest)


def _summarize_repeats(catalog: Catalog, selection: SelectionRecord) -> RepeatSummary:
    with catalog.reading() as connection:
        ((total, largest),) = connection.execute(
            "select sum(repeats)::bigint, max(repeats) from members where selection = ?",
            [selection.selection],
        ).fetchall()
    return RepeatSummary(total, largest)


def _read_lineage(catalog: Catalog, run_id: int) -> list[dict[str, Any]]:
    """The runs that led to a run, the newest first."""
    columns = ("stage", "name", "arguments", "version", "git_commit", "fingerprint", "started_at")
    with catalog.reading() as connection:
        rows = connection.execute(
            "with recursive chain as ("
            "select run_id, parent_run_ids from runs where run_id = ? "
            "union "
            "select runs.run_id, runs.parent_run_ids from chain "
            "join runs on list_contains(chain.parent_run_ids, runs.run_id)) "
            "select stage, name, arguments, version, git_commit, fingerprint, "
            "strftime(started_at, '%Y-%m-%dT%H:%M:%SZ') "
            "from runs where run_id in (select run_id from chain) order by run_id desc",
            [run_id],
        ).fetchall()
    lineage = [dict(zip(columns, row, strict=True)) for row in rows]
    for run in lineage:
        run["arguments"] = json.loads(run["arguments"])
    return lineage
