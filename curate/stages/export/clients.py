"""Side files that training frameworks want beside the shards of an export.

open_clip: sizes.json, the number of samples of each shard. wids: wids.json, the list of shards.
energon: .nv-meta/ and an index of each shard. dali: NAME.idx for each NAME.tar.
"""

import json
import sqlite3
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from curate.catalog.catalog import Catalog
from curate.execution import engine
from curate.execution.reporting import report_progress
from curate.execution.types import Resources
from curate.formats.member_roles import last_extension
from curate.formats.samples import split_name, to_unicode
from curate.progress import progress_bar
from curate.stages.export.manifest import Manifest
from curate.stages.export.worker import WrittenShard
from curate.storage import files
from curate.storage.atomic import atomic_write

OPEN_CLIP, WIDS, ENERGON, DALI = "open_clip", "wids", "energon", "dali"
CLIENTS = (OPEN_CLIP, WIDS, ENERGON, DALI)
SIZES_NAME, WIDS_NAME, ENERGON_FOLDER = "sizes.json", "wids.json", ".nv-meta"
_DALI_VERSION = "v1.2"

_ENERGON_TABLES = """
create table samples (
    tar_file_id integer, sample_key text, sample_index integer,
    byte_offset integer, byte_size integer
);
create table sample_parts (
    tar_file_id integer, sample_index integer, part_name text,
    content_byte_offset integer, content_byte_size integer
);
"""
_ENERGON_INDEXES = """
create index idx_samples_sample_key on samples (sample_key);
create index idx_samples_by_tar_and_idx on samples (tar_file_id, sample_index);
create index idx_sample_parts_seq on sample_parts (tar_file_id, sample_index, content_byte_offset);
create index idx_sample_parts_full on sample_parts
    (tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


class ShardMember(NamedTuple):
    """A file in a shard: its extension and name, where its header and its bytes begin."""

    extension: str
    name: str
    header_offset: int
    offset: int
    num_bytes: int


class ShardSample(NamedTuple):
    """Neighbouring members with one key, as all of these clients group them."""

    key: str
    members: list[ShardMember]


@dataclass(frozen=True)
class IndexShard:
    """The task: write the indexes of one shard, and return its samples where energon wants them."""

    folder: str
    clients: tuple[str, ...]

    def __call__(self, shard: WrittenShard) -> list[ShardSample]:
        location = files.join(self.folder, shard.path)
        with files.open_binary(location) as file:
            samples = list(_iterate_shard(file))
        if DALI in self.clients:
            _write_text(location.removesuffix(".tar") + ".idx", _dali_index(samples))
        if ENERGON in self.clients and samples:
            offsets = [sample.members[0].header_offset for sample in samples]
            last = samples[-1].members[-1]
            offsets.append(
                last.offset + -(-last.num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            )
            with atomic_write(f"{location}.idx") as temporary:
                temporary.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        report_progress(shard.num_samples, shard.num_samples)
        return samples if ENERGON in self.clients else []


def write_client_files(
    catalog: Catalog, folder: str, manifest: Manifest, clients: list[str], resources: Resources
) -> None:
    """What the clients want beside the shards that the manifest names."""
    if OPEN_CLIP in clients:
        _write_sizes(folder, manifest)
    shards = [shard for shard in manifest.shards if shard.num_samples]
    if WIDS in clients:
        _write_wids_index(folder, manifest, shards)
    if DALI not in clients and ENERGON not in clients:
        return
    task = IndexShard(folder, tuple(clients))
    with progress_bar("index", manifest.num_samples) as advance:
        # Empty shards have an index for DALI, which wants one for each shard.
        results = engine.map_or_raise(
            task, manifest.shards, resources, advance=advance, in_order=True
        )
        indexed = ((shard, samples) for shard, samples in results if shard.num_samples)
        if ENERGON not in clients:
            for _ in indexed:
                pass
            return
        _write_energon_index(folder, indexed)
    _write_energon_metadata(catalog, folder, manifest, shards)


def _write_sizes(folder: str, manifest: Manifest) -> None:
    """In each folder with shards, because open_clip looks beside the first one."""
    sizes: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        below, _, name = shard.path.rpartition("/")
        sizes.setdefault(below, {})[name] = shard.num_samples
    for below, content in sizes.items():
        _write_json(files.join(folder, *filter(None, [below]), SIZES_NAME), content)


def _write_wids_index(folder: str, manifest: Manifest, shards: list[WrittenShard]) -> None:
    content = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": str(manifest.selection.get("selection", "")),
        "shardlist": [
            {"url": shard.path, "nsamples": shard.num_samples, "filesize": shard.num_bytes}
            for shard in shards
        ],
    }
    _write_json(files.join(folder, WIDS_NAME), content)


def _iterate_shard(file: Any) -> Iterator[ShardSample]:
    """The samples of a tar, by the standard library, which says where members' bytes begin."""
    sample: ShardSample | None = None
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
        for member in tar:
            key, extension = split_name(member.name)
            if not member.isreg() or not key:
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = ShardSample(key, [])
            sample.members.append(
                ShardMember(extension, member.name, member.offset, member.offset_data, member.size)
            )
    if sample is not None:
        yield sample


def _dali_index(samples: list[ShardSample]) -> str:
    lines = [f"{_DALI_VERSION} {len(samples)}"]
    for sample in samples:
        words = [
            f"{member.extension} {member.offset} {member.num_bytes} {to_unicode(member.name)}"
            for member in sample.members
        ]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _write_energon_index(
    folder: str, indexed: Iterator[tuple[WrittenShard, list[ShardSample]]]
) -> None:
    """The database by which energon finds samples by their keys."""
    with atomic_write(files.join(folder, ENERGON_FOLDER, "index.sqlite")) as temporary:
        connection = sqlite3.connect(temporary)
        try:
            connection.executescript(_ENERGON_TABLES)
            for number, (_, samples) in enumerate(indexed):
                connection.executemany(
                    "insert into samples values (?, ?, ?, ?, ?)", _energon_samples(number, samples)
                )
                connection.executemany(
                    "insert into sample_parts values (?, ?, ?, ?, ?)",
                    _energon_parts(number, samples),
                )
            connection.executescript(_ENERGON_INDEXES)
            connection.commit()
        finally:
            connection.close()


def _energon_samples(number: int, samples: list[ShardSample]) -> Iterator[tuple[Any, ...]]:
    for index, sample in enumerate(samples):
        start = sample.members[0].header_offset
        last = sample.members[-1]
        stop = last.offset + -(-last.num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield number, to_unicode(sample.key), index, start, stop - start


def _energon_parts(number: int, samples: list[ShardSample]) -> Iterator[tuple[Any, ...]]:
    for index, sample in enumerate(samples):
        for member in sample.members:
            yield number, index, member.extension, member.offset, member.num_bytes


def _write_energon_metadata(
    catalog: Catalog, folder: str, manifest: Manifest, shards: list[WrittenShard]
) -> None:
    """What `energon prepare` asks for. JSON, which YAML includes."""
    location = files.join(folder, ENERGON_FOLDER)
    counts = {shard.path: shard.num_samples for shard in shards}
    _write_json(files.join(location, ".info.json"), {"shard_counts": counts})
    split = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    _write_json(files.join(location, "split.yaml"), split)
    _write_json(files.join(location, "dataset.yaml"), _energon_sample_type(catalog, manifest))
    _write_text(files.join(location, "index.uuid"), manifest.fingerprint)


def _energon_sample_type(catalog: Catalog, manifest: Manifest) -> dict[str, Any]:
    """Images with class numbers, or with captions, where all samples have them; else crude ones."""
    name = str(manifest.selection.get("selection", ""))
    where = "not in" if manifest.complement else "in"
    with catalog.reading() as connection:
        ((members, num_numbers, num_captions, count),) = connection.execute(
            "select list(distinct member), count(*) filter (regexp_full_match(label, '[0-9]+')), "
            f"count(caption), count(*) from samples where sample_id {where} "
            "(select sample_id from members where selection = ?)",
            [name],
        ).fetchall()
        ((source,),) = connection.execute(
            "select any_value(label_source) from embeddings"
        ).fetchall()
    fields: dict[str, str] = {}
    if count and members and len(members) == 1 and last_extension(members[0]) == members[0]:
        if num_numbers == count and source == "cls":
            fields = {"image": members[0], "label": "cls"}
        elif num_captions == count:
            fields = {"image": members[0], "caption": "txt"}
    if not fields:
        return {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    sample_type = "ImageClassificationSample" if "label" in fields else "CaptioningSample"
    return {
        "sample_type": {"__module__": "megatron.energon", "__class__": sample_type},
        "field_map": fields,
    }


def _write_json(location: str, content: dict[str, Any]) -> None:
    _write_text(location, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(location: str, text: str) -> None:
    with atomic_write(location) as temporary:
        temporary.write_text(text, encoding="utf-8")
