"""Exports of a selection that has changed: only shards with other members are written again.

What is to be written, and what will be in the way, is stored before anything is touched, and stays
until the manifest is written. So the call after a kill knows which shards of the manifest count.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.records import ExportRecord, SelectionRecord
from curate.execution.types import Resources
from curate.formatting import count_of
from curate.progress import log
from curate.stages.export.clients import (
    DALI,
    ENERGON,
    ENERGON_FOLDER,
    OPEN_CLIP,
    SIZES_NAME,
    WIDS,
    WIDS_NAME,
    write_client_files,
)
from curate.stages.export.layout import SelectionMembers
from curate.stages.export.manifest import (
    INDEX_NAME,
    SIDE_FOLDER,
    Manifest,
    find_side_file,
    read_manifest,
    write_manifest,
)
from curate.stages.export.stage import (
    commit_export,
    make_manifest,
    remove_unfinished_files,
    write_shards,
)
from curate.stages.export.worker import WrittenShard
from curate.storage import files
from curate.storage.atomic import atomic_write
from curate.storage.checksums import Checksum

_PLAN_NAME = f"{SIDE_FOLDER}/update.json"
_INDEX_BATCH = 1 << 16  # rows


@dataclass(frozen=True)
class _Plan:
    """The shards of the folder that do not count, and those that go at the end, by their paths.

    `manifest` is the fingerprint of the manifest that stays until the update has ended.
    """

    manifest: str
    rewritten: set[str]
    obsolete: set[str]

    def merge(self, plan: "_Plan") -> "_Plan":
        rewritten, obsolete = self.rewritten | plan.rewritten, self.obsolete | plan.obsolete
        return _Plan(self.manifest, rewritten, obsolete)


def update_export(catalog: Catalog, record: ExportRecord, resources: Resources) -> str:
    """Write an export's folder anew where its selection has changed; returns what was done."""
    folder = files.resolve(record.path)
    settings = catalog.run_arguments(record.run_id)
    selection, members, fingerprint = _load_target(catalog, record, settings)
    with catalog.write_lock(folder, f"the export '{folder}'"):
        manifest = read_manifest(folder)
        previous_plan = _read_plan(folder)
        old_digests = _digest_index(folder)
        outputs = _Outputs.compare(members, record.layout, manifest, old_digests, previous_plan)
        plan = outputs.plan.merge(previous_plan)
        with atomic_write(files.join(folder, _PLAN_NAME)) as temporary:
            content = {
                "manifest": plan.manifest,
                "rewritten": sorted(plan.rewritten),
                "obsolete": sorted(plan.obsolete),
            }
            temporary.write_text(json.dumps(content), encoding="utf-8")
        clients = _find_clients(folder, manifest)
        with catalog.record_run(
            "export", record.export, settings, parents=[selection.run_id], fingerprint=fingerprint
        ) as run_id:
            for source, target in outputs.links.items():
                files.link_file(files.join(folder, source), files.join(folder, target))
            written, num_changed_keys = write_shards(
                folder, members, record.layout, resources, outputs.unchanged
            )
            remove_unfinished_files(folder)
            updated = replace(
                record,
                num_shards=len(written),
                num_samples=len(members),
                num_bytes=sum(shard.num_bytes for shard in written),
                fingerprint=fingerprint,
                run_id=run_id,
            )
            commit_export(catalog, updated, is_named=True)
            new_manifest = make_manifest(
                catalog, selection, updated, members, num_changed_keys, written
            )
            new_manifest = replace(
                new_manifest,
                complement=bool(settings.get("complement")),
                unique_keys=bool(settings.get("unique_keys")),
            )
            write_client_files(catalog, folder, new_manifest, clients, resources)
            write_manifest(folder, new_manifest)
        _delete_obsolete(folder, plan, new_manifest)
    num_written = len(written) - len(outputs.unchanged)
    description = (
        f"{num_written:,} of {count_of(len(written), 'shard')} written, "
        f"{len(outputs.links):,} moved, {len(outputs.plan.obsolete):,} removed"
    )
    log.info("export '%s': %s, in %s", record.export, description, record.path)
    return description


def is_unfinished(record: ExportRecord) -> bool:
    """Whether an update of the export was killed."""
    return files.is_file(files.join(files.resolve(record.path), _PLAN_NAME))


def find_export_obstacle(catalog: Catalog, record: ExportRecord) -> str | None:
    """Why an export cannot be updated where it is; None where it can."""
    folder = files.resolve(record.path)
    if not files.is_folder(folder):
        return f"its folder {record.path} is gone"
    _, _, fingerprint = _load_target(catalog, record, catalog.run_arguments(record.run_id))
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError):
        return f"{record.path} holds no whole export"
    if manifest.fingerprint not in (record.fingerprint, fingerprint, _read_plan(folder).manifest):
        return f"{record.path} holds another export"
    return None


def _load_target(
    catalog: Catalog, record: ExportRecord, settings: dict[str, Any]
) -> tuple[SelectionRecord, SelectionMembers, str]:
    """The selection as it is now, its members, and the fingerprint of their export."""
    selection = catalog.require(SelectionRecord, record.selection)
    members = SelectionMembers(
        catalog,
        selection,
        complement=bool(settings.get("complement")),
        unique_keys=bool(settings.get("unique_keys")),
    )
    identity = {
        name: value
        for name, value in settings.items()
        if name in ("layout", "complement", "unique_keys")
    }
    fingerprint = provenance.fingerprint(
        "export", identity, selection.fingerprint, members.checksum
    )
    return selection, members, fingerprint


def _read_plan(folder: str) -> _Plan:
    """What an update that was killed has touched."""
    try:
        content = json.loads(files.read_bytes(files.join(folder, _PLAN_NAME)))
        return _Plan(content["manifest"], set(content["rewritten"]), set(content["obsolete"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Plan("", set(), set())


@dataclass(frozen=True)
class _Outputs:
    """What becomes of the output shards, by their paths.

    `links` are from the paths of shards with the same members to new paths, `unchanged` all that
    need not be written, as the manifest will have them.
    """

    unchanged: dict[str, WrittenShard]
    links: dict[str, str]
    plan: _Plan

    @classmethod
    def compare(
        cls,
        members: SelectionMembers,
        layout: str,
        manifest: Manifest,
        old_digests: dict[str, str],
        previous_plan: _Plan,
    ) -> "_Outputs":
        """Compare the shards of an export with those that it must have now."""
        sound = {
            shard.path: shard
            for shard in manifest.shards
            if shard.path not in previous_plan.rewritten
        }
        old_paths = {digest: path for path, digest in old_digests.items() if path in sound}
        unchanged: dict[str, WrittenShard] = {}
        links: dict[str, str] = {}
        paths, rewritten = set(), set()
        for packed in members.pack(layout):
            if packed.output is None:
                continue
            path = packed.output.path
            paths.add(path)
            digest = _digest(packed.rows.sample_ids, packed.keys)
            is_same = old_digests.get(path) == digest if len(packed.keys) else True
            if path in sound and is_same and sound[path].num_samples == len(packed.keys):
                unchanged[path] = sound[path]
            elif path not in old_digests and path not in sound and digest in old_paths:
                # The common folder of all shards is another: what was a.tar is week1/a.tar now.
                source = old_paths.pop(digest)
                links[source] = path
                unchanged[path] = replace(sound[source], path=path)
            else:
                rewritten.add(path)
        obsolete = {shard.path for shard in manifest.shards} - paths
        plan = _Plan(manifest.fingerprint, rewritten | set(links.values()), obsolete)
        return cls(unchanged, links, plan)


def _digest(sample_ids: np.ndarray, keys: list[str]) -> str:
    """A checksum of the members of an output shard, and of their keys in it."""
    checksum = Checksum()
    checksum.update(np.ascontiguousarray(sample_ids, np.int64).data)
    checksum.update("\0".join(keys).encode("utf-8", "surrogateescape"))
    return checksum.text


def _digest_index(folder: str) -> dict[str, str]:
    """The digest of each output shard, by the index of the export as it was."""
    digests: dict[str, str] = {}
    for path, sample_ids, keys in _iterate_indexed_shards(folder):
        digests[path] = _digest(sample_ids, keys)
    return digests


def _iterate_indexed_shards(folder: str) -> Iterator[tuple[str, np.ndarray, list[str]]]:
    """Each output shard with its members' ids and keys; rows of one shard are neighbours."""
    import pyarrow.parquet as pq

    columns = ["shard", "sample_id", "exported_key"]
    path: str | None = None
    sample_ids: list[int] = []
    keys: list[str] = []
    with files.open_binary(find_side_file(folder, INDEX_NAME)) as file:
        parquet = pq.ParquetFile(file)
        if "shard" not in parquet.schema_arrow.names:  # an export without shards
            return
        for batch in parquet.iter_batches(_INDEX_BATCH, columns=columns):
            shards, ids, batch_keys = (batch.column(name).to_pylist() for name in columns)
            for shard, sample_id, key in zip(shards, ids, batch_keys, strict=True):
                if shard != path:
                    if path is not None:
                        yield path, np.array(sample_ids, np.int64), keys
                    path, sample_ids, keys = shard, [], []
                sample_ids.append(sample_id)
                keys.append(key)
    if path is not None:
        yield path, np.array(sample_ids, np.int64), keys


def _find_clients(folder: str, manifest: Manifest) -> list[str]:
    """The clients whose files the export has, which are written anew."""
    first = manifest.shards[0].path if manifest.shards else ""
    below, _, name = first.rpartition("/")
    side_files = {
        OPEN_CLIP: [*filter(None, [below]), SIZES_NAME],
        WIDS: [WIDS_NAME],
        ENERGON: [ENERGON_FOLDER, "index.sqlite"],
        DALI: [*filter(None, [below]), f"{name.removesuffix('.tar')}.idx"],
    }
    return [
        client for client, words in side_files.items() if files.is_file(files.join(folder, *words))
    ]


def _delete_obsolete(folder: str, plan: _Plan, manifest: Manifest) -> None:
    """Remove shards that the export has no more, with their indexes, and last the plan."""
    kept = {shard.path for shard in manifest.shards}
    for path in plan.obsolete - kept:
        for name in (path, f"{path}.idx", f"{path.removesuffix('.tar')}.idx"):
            files.delete_file(files.join(folder, name))
    files.delete_file(files.join(folder, _PLAN_NAME))
